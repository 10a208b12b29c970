//! What the tests and the demo have in common: brokers, services, and a caller.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a harness that fails must fail the test, with its place")]

/// A requestor that a test plays, to speak with a provider alone.
pub mod asker;
/// Real brokers: given, in a container, or a private node; the one place that fetches or starts one.
pub mod broker;
/// A caller of the HTTP interface.
pub mod caller;
/// Clocks that are wrong.
pub mod clock;
/// The program that the video kinds need.
pub mod ffmpeg;
/// Orders, and what became of them.
pub mod orders;
/// Both services in this process.
pub mod pair;
/// Databases of PostgreSQL, one a test.
pub mod postgres;
/// The services as processes, to be killed.
pub mod process;
/// A relay in front of a broker: cuts, holds, slows, and knows AMQP well enough to lose and repeat messages.
pub mod proxy;
/// A Python of the tests' own.
pub mod python;
/// Both services as processes.
pub mod services;
/// What requestors of tests keep their operations in.
pub mod store;
/// Readers of event streams, over connections that can be cut at any byte.
pub mod streams;
mod watchdog;
/// A receiver of webhooks.
pub mod webhook_receiver;

use std::time::Duration;
use tokio::time::Instant;

/// How long anything may take before a test fails. A broker that restarts on a busy machine takes half of it.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Asks `probe` until it has an answer, and fails after [`PATIENCE`] with the last that was `seen`.
///
/// # Panics
/// When there is no answer in time.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}; last seen: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An HTTP client that follows no redirect and keeps no connection: one may be closed by a service that is killed
/// just when it is used again.
#[must_use]
pub fn http_client() -> reqwest::Client {
    // Only the first call in a process can succeed, and any provider will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).pool_max_idle_per_host(0);
    builder.timeout(Duration::from_secs(60)).build().unwrap()
}

/// A port of this machine that is free now. The system gives ports from 32768 on to outgoing connections, so that one
/// might be taken while a service that listens there is down; this one is below.
#[must_use]
pub fn free_port() -> u16 {
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| rand::random_range(10_000..32_000)).find(is_free).unwrap()
}

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "the harness is told by its environment which broker to use")]
#[must_use]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
