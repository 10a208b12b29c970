//! The requestor: HTTP in front, RabbitMQ behind, and a record of every operation in between.
#![forbid(unsafe_code)]

/// Who may ask, and for how much at once.
pub mod callers;
/// The configuration and its annotated defaults.
pub mod config;
/// What an operation is and how it changes.
pub mod operation;
pub mod rpc;
/// Settings that decide how operations change.
pub mod rules;

mod backlog;
/// What is promised to callers and providers, as documents.
mod contract;
/// What accepts operations and drives them to their outcomes.
mod engine;
/// Sends requests and takes what comes back.
mod gateway;
mod http;
mod kinds;
/// The same in the caller's own process.
mod library;
mod outcomes;
mod pace;
/// Where operations are kept.
pub mod store;
mod sweeper;
mod watch;
/// Sends outcomes to who wants them.
pub mod webhook;

/// The command line.
pub mod cli;

use crate::config::Config;
use engine::Engine;
use kinds::Kinds;
use std::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use library::{Refused, Requestor, SubmitOptions};
pub use shared::message::{Content, OperationId, Outcome};
pub use shared::problem::Problem;

/// Runs the requestor on `listener` until `shutdown`, and returns when what was under way has ended.
///
/// # Errors
/// What keeps it from starting, or that its store can no longer be trusted.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let kinds = Kinds::load(&config)?;
    // On the heap: it holds all that a session does.
    Box::pin(serve(config, kinds, listener, shutdown)).await
}

/// As [`run`], with kinds that are loaded already.
async fn serve(config: Config, kinds: Kinds, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (engine, background) = Engine::open(&config, kinds).await?;
    tracing::info!(listen = %listener.local_addr()?, group = config.group, store = %config.store.url, "requestor ready");
    let app = http::App::new(&config, engine.clone(), shutdown.clone());
    // The broker is served until the last HTTP request has ended, so that what they accept is still sent.
    let http_ended = CancellationToken::new();
    let server = async {
        let (limits, tls) = (&config.http.limits, &config.http.tls);
        let served = shared::http::serve(listener, http::router(app, &config), limits, tls, &shutdown).await;
        http_ended.cancel();
        anyhow::Ok(served)
    };
    let ended = tokio::try_join!(server, engine.run(&config, background, &shutdown, &http_ended));
    engine.store.close().await;
    ended?.0
}
