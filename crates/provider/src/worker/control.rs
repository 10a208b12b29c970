//! Cancels: a tombstone in the ledger, an end to what runs, and an answer that is true for ever.

use super::Worker;
use crate::ledger::{Answer, Subject};
use futures_util::TryStreamExt;
use lapin::message::Delivery;
use lapin::options::BasicGetOptions;
use shared::amqp::{self, Session, Settle};
use shared::message::{Cancel, Outcome, Reply, answer};
use shared::problem::Problem;
use shared::topology;
use std::time::Duration;
use tokio::time::Instant;

/// Cancels that are worked on at once: each waits for a commit and for the confirm of its answer.
const CANCELS_MAX: u16 = 16;
/// How long requests may wait for the cancels that came while no provider was there. What is canceled but still in
/// that queue then may be carried out first, as if the cancel had come later.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// The pause before a cancel of a kind that this instance does not serve goes back to the queue for another.
const NOT_SERVED_PAUSE: Duration = Duration::from_secs(1);

impl Worker {
    /// Takes the cancels that wait for this group, before requests are taken.
    pub(super) async fn catch_up(&self, session: &Session) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        let queue = topology::control_queue(&self.0.config.group);
        let until = Instant::now() + CATCH_UP_MAX;
        while Instant::now() < until {
            let get = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
            let Some(message) = amqp::call("basic.get", get).await? else { break };
            self.take_cancel(message.delivery, true).await?;
        }
        amqp::call("closing a channel", channel.close(200, "caught up".into())).await
    }

    /// Takes cancels from `queue` until the session ends. What comes to the whole group is answered, what comes to
    /// each of its instances is not.
    pub(super) async fn control(&self, session: &Session, queue: &str, answers: bool) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        let cancels = amqp::consume(&channel, queue, CANCELS_MAX).await?;
        let take = |delivery| self.take_cancel(delivery, answers);
        cancels.map_err(anyhow::Error::from).try_for_each_concurrent(usize::from(CANCELS_MAX), take).await?;
        anyhow::bail!("the consumer of {queue} was cancelled")
    }

    async fn take_cancel(&self, delivery: Delivery, answers: bool) -> anyhow::Result<()> {
        let how = match Cancel::from_delivery(&delivery) {
            Ok(cancel) => self.cancel(&cancel, answers).await,
            Err(error) => {
                metrics::counter!("arr_unreadable_total", "queue" => "arr.control").increment(1);
                tracing::warn!(%error, "unreadable cancel dropped");
                Settle::Ack
            }
        };
        amqp::settle(&delivery.acker, how).await
    }

    /// Cancels what can be canceled. Returns what becomes of the message.
    async fn cancel(&self, cancel: &Cancel, answers: bool) -> Settle {
        let identity = cancel.identity();
        let said = match (self.0.handlers.get(&cancel.kind), &self.0.ledger) {
            (Some(handler), Some(ledger)) if handler.has_effect() => {
                let (kind, deadline) = (cancel.kind.clone(), cancel.deadline);
                let subject = Subject { identity: identity.clone(), kind, deadline };
                match self.insist(|| ledger.cancel(subject.clone(), cancel.attempt)).await {
                    Ok(said) => said,
                    Err(_) => return Settle::Requeue,
                }
            }
            (Some(_), _) => {
                self.0.canceled.insert(&identity);
                Answer::Canceled
            }
            (None, _) if answers => {
                tracing::warn!(
                    kind = cancel.kind,
                    "a cancel of a kind that is not served here: give it a group of its own"
                );
                tokio::time::sleep(NOT_SERVED_PAUSE).await;
                return Settle::Requeue;
            }
            (None, _) => return Settle::Ack,
        };
        if said == Answer::Canceled {
            shared::crash::point("provider.tombstone");
            self.0.running.cancel(&identity);
        }
        if answers {
            metrics::counter!("arr_cancels_total", "kind" => cancel.kind.clone()).increment(1);
            self.answer_cancel(cancel, said).await;
        }
        Settle::Ack
    }

    /// Says what is certain. A running execution that can no longer be canceled answers for itself; and if this
    /// answer is lost, the requestor asks again.
    async fn answer_cancel(&self, cancel: &Cancel, said: Answer) {
        let (attempt, outcome) = match said {
            Answer::Canceled => (cancel.attempt, Outcome::Failed(Problem::canceled())),
            Answer::Recorded { attempt, outcome } => (attempt, outcome),
            Answer::Yes { .. } | Answer::No | Answer::Held => return,
        };
        let reply = self.fitting(Reply::new(cancel.step, attempt, outcome));
        match answer(&cancel.reply_to, &cancel.operation.to_string(), &reply) {
            Ok(message) => drop(self.publish_reply(message, &cancel.reply_to).await),
            Err(error) => tracing::error!(%error, "no answer can be made"),
        }
    }
}
