//! Sends outcomes to the receivers that callers named (Standard Webhooks 1.0).

mod address;
mod delivery;
mod document;
mod resolver;
mod sender;
mod settings;
mod signature;
mod target;

pub(crate) use delivery::{Attempt, Delivery, DeliveryId, State};
pub(crate) use document::Document;
pub use settings::Pause;
pub use settings::WebhooksConfig;
pub use signature::Secret;
pub(crate) use signature::{Secrets, secrets};
pub use target::Pattern;
pub(crate) use target::Targets;

use crate::operation::after;
use crate::store::{Store, StoreError};
use jiff::Timestamp;
use sender::Sender;
use shared::crash;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

/// How often the store is asked what is due, while nothing is sent.
const EVERY: Duration = Duration::from_millis(250);
/// The pause before the store is asked again to take what it could not take.
const STORE_RETRY: Duration = Duration::from_millis(250);
/// How much longer than an attempt may take no other instance makes it: for writing down what came of it.
const CLAIM: Duration = Duration::from_secs(5);
/// How long attempts under way may take to end at a shutdown. What is cut off is sent again after the next start.
const DRAIN: Duration = Duration::from_secs(5);

/// Sends what is due, until it is told to stop.
#[derive(Debug)]
pub(crate) struct Deliverer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: WebhooksConfig,
    sender: Sender,
    store: Store,
}

/// Attempts under way, by their task.
type UnderWay = HashMap<task::Id, (DeliveryId, String)>;

impl Deliverer {
    /// None if nobody has a secret: what is not signed is not sent.
    pub(crate) fn new(
        config: &WebhooksConfig,
        (secrets, targets): (Arc<Secrets>, Arc<Targets>),
        store: Store,
    ) -> anyhow::Result<Option<Self>> {
        if !secrets.any() {
            return Ok(None);
        }
        let sender = Sender::new(config, (secrets, targets))?;
        Ok(Some(Self(Arc::new(Inner { config: config.clone(), sender, store }))))
    }

    /// Sends until `shutdown`.
    pub(crate) async fn run(&self, shutdown: &CancellationToken) {
        let (mut attempts, mut under_way) = (JoinSet::new(), UnderWay::new());
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Some(ended) = attempts.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    under_way.remove(&id);
                }
                () = shutdown.cancelled() => break,
            }
            if let Err(error) = self.begin(&mut attempts, &mut under_way).await {
                tracing::warn!(%error, "cannot tell now which webhooks are due");
            }
        }
        let drained = async { while attempts.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN, drained).await;
    }

    /// Begins attempts of what is due, as far as there are slots.
    async fn begin(&self, attempts: &mut JoinSet<()>, under_way: &mut UnderWay) -> Result<(), StoreError> {
        let (all, per_host) = (self.0.config.concurrency, self.0.config.concurrency_per_host);
        if under_way.len() >= all {
            return Ok(());
        }
        let now = Timestamp::now();
        // Those under way may still be due in the store, and are among these: they were due before the others of their host.
        let mut chosen = Vec::<Delivery>::new();
        for delivery in self.0.store.webhooks_due(now, all, per_host).await? {
            let hosts = under_way.values().map(|(_, host)| host).chain(chosen.iter().map(|other| &other.host));
            let of_host = hosts.filter(|host| **host == delivery.host).count();
            let begun = under_way.values().any(|(id, _)| *id == delivery.id);
            if !begun && of_host < per_host && under_way.len() + chosen.len() < all {
                chosen.push(delivery);
            }
        }
        let claims = chosen.iter().map(|delivery| delivery.id).collect();
        let ours = self.0.store.claim_webhooks(claims, now, after(now, self.0.config.timeout + CLAIM)).await?;
        for delivery in chosen.into_iter().filter(|delivery| ours.contains(&delivery.id)) {
            let (id, host) = (delivery.id, delivery.host.clone());
            let inner = Arc::clone(&self.0);
            let task = attempts.spawn(async move { inner.attempt(delivery).await });
            under_way.insert(task.id(), (id, host));
        }
        Ok(())
    }
}

impl Inner {
    /// Makes the next attempt and writes down what came of it, however long the store cannot take it: without that
    /// record it would be sent again at once.
    async fn attempt(&self, delivery: Delivery) {
        let (attempt, retry_after) = self.sender.attempt(&delivery).await;
        crash::point("requestor.webhook-sent");
        let (state, next_at) = self.judge(&attempt, retry_after);
        tell(&delivery, &attempt, state);
        while let Err(error) = self.store.webhook_attempted(delivery.id, attempt.clone(), state, next_at).await {
            tracing::warn!(webhook = %delivery.id, %error, "the store cannot take what came of a webhook yet");
            tokio::time::sleep(STORE_RETRY).await;
        }
    }

    fn judge(&self, attempt: &Attempt, retry_after: Option<Duration>) -> (State, Option<Timestamp>) {
        match attempt.state() {
            State::Pending => match self.config.pause_after(attempt.number, retry_after) {
                Some(pause) => (State::Pending, Some(after(Timestamp::now(), pause))),
                None => (State::GivenUp, None),
            },
            ended => (ended, None),
        }
    }
}

/// The URL may hold a secret of its receiver's, so only its host is logged.
fn tell(delivery: &Delivery, attempt: &Attempt, state: State) {
    let Delivery { id, host, .. } = delivery;
    let Attempt { number, status, error, .. } = attempt;
    let result = match state {
        State::Delivered => "delivered",
        State::Pending => "failed",
        State::Refused => "refused",
        State::GivenUp => "given-up",
    };
    metrics::counter!("arr_webhook_attempts_total", "result" => result).increment(1);
    let error = error.as_deref().unwrap_or_default();
    tracing::info!(webhook = %id, host, attempt = number, status, error, result, "webhook sent");
}
