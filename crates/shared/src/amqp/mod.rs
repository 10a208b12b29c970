//! AMQP 0-9-1 by lapin, without its automatic recovery: a session is used until it fails, then made anew.

mod consumer;
pub mod line;
mod publisher;
mod session;

pub use consumer::{Settle, consume, settle};
pub use publisher::{PublishError, PublishQueue, Publisher, publisher};
pub use session::{BrokerConfig, Session, Status, Supervisor};

use std::time::Duration;

/// How long a broker may take to answer a call such as a declaration or an acknowledgement.
///
/// lapin may leave such a call pending for ever when the connection is lost at the wrong moment or blocked by a
/// resource alarm, so none is awaited without this limit.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Awaits a call to the broker, but not for ever.
///
/// # Errors
/// What the call fails with, or that it was not answered in 20 seconds.
pub async fn call<T>(what: &str, future: impl Future<Output = lapin::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, future).await {
        Ok(result) => result.map_err(|error| anyhow::Error::new(error).context(format!("{what} failed"))),
        Err(_) => anyhow::bail!("{what}: the broker did not answer within {} s", CALL_TIMEOUT.as_secs()),
    }
}
