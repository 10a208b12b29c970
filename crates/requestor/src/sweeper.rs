//! What happens because time has passed: requests are sent again, operations given up, old ones forgotten.

use crate::config::Config;
use crate::gateway::Gateway;
use crate::operation::Event;
use crate::store::{RequestId, Store, StoreError};
use futures_util::future::try_join_all;
use jiff::Timestamp;
use shared::amqp::Status;
use shared::crash;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// How often the store is asked what is due.
const EVERY: Duration = Duration::from_millis(250);
/// How many operations are read or changed at a time, so that submits go on in between.
const BATCH: usize = 256;

/// Sweeps until `shutdown`.
pub(crate) async fn run(store: &Store, gateway: &Gateway, config: &Config, shutdown: &CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        // On the heap: it holds all that a sweep does.
        let sweep = Box::pin(sweep(store, gateway, config));
        if let Some(Err(error)) = shutdown.run_until_cancelled(sweep).await {
            tracing::warn!(%error, "cannot sweep now");
        }
    }
}

/// A batch of each, so that none waits long for the others.
async fn sweep(store: &Store, gateway: &Gateway, config: &Config) -> Result<(), StoreError> {
    let now = Timestamp::now();
    give_up(store, gateway, now).await?;
    if gateway.broker() == Status::Connected {
        send_all(store, gateway, now).await?;
        let pauses = (config.cancel.resend, config.cancel.resend_max);
        for operation in store.to_cancel(now, BATCH, pauses).await? {
            gateway.cancel(&operation);
        }
    }
    store.purge(now, BATCH, config.operations.forgotten_max).await?;
    Ok(())
}

/// Gives up operations whose deadline has passed.
async fn give_up(store: &Store, gateway: &Gateway, now: Timestamp) -> Result<(), StoreError> {
    let overdue = store.overdue(now, BATCH).await?;
    let given_up = overdue.into_iter().map(|id| store.apply(id, Event::Deadline, now));
    for applied in try_join_all(given_up).await?.into_iter().flatten() {
        gateway.changed(&applied.operation, &applied.change);
    }
    Ok(())
}

/// Sends page after page, as fast as the broker takes them, so that what was accepted while it was away goes at once; but not
/// for so long that all else waits.
async fn send_all(store: &Store, gateway: &Gateway, now: Timestamp) -> Result<(), StoreError> {
    let until = Instant::now() + EVERY;
    loop {
        let sent = send(store, gateway, now).await?;
        if sent.len() < BATCH || timeout_at(until, gateway.noted(&sent)).await.is_err() {
            return Ok(());
        }
    }
}

/// Sends what was never sent, or what nothing has been heard of for too long: a page, of which those are returned that are
/// on their way.
async fn send(store: &Store, gateway: &Gateway, now: Timestamp) -> Result<Vec<RequestId>, StoreError> {
    let mut sent = Vec::new();
    for (operation, content) in store.to_send(now, BATCH).await? {
        if operation.sends > 0 {
            metrics::counter!("arr_redrives_total", "kind" => operation.kind.clone()).increment(1);
        }
        if !gateway.dispatch(&operation, content, now) {
            break;
        }
        sent.push(RequestId::of(&operation));
        crash::point("requestor.swept");
    }
    Ok(sent)
}
