//! Wakes who waits at another instance: hints of what has changed in the store that all share. They may be lost, since
//! whoever waits also reads the store now and then.

use super::{Gateway, PREFETCH};
use crate::store::Changed;
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::ShortString;
use serde::{Deserialize, Serialize};
use shared::amqp::{self, Session, Settle};
use shared::message::{JSON, Message, OperationId};
use shared::topology;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Changes in one hint at most; a message of some 60 KB.
const CHANGES_MAX: usize = 1000;
/// Commits that wait to be told at most. Beyond that hints are dropped: who waits then learns it a little later.
const COMMITS_MAX: usize = 256;

/// Where commits are told that other instances should hear of.
pub(crate) type Tell = mpsc::Sender<Vec<Changed>>;
/// The other end of [`Tell`].
pub(crate) type Told = mpsc::Receiver<Vec<Changed>>;

/// A way to tell, and its other end.
pub(crate) fn hints() -> (Tell, Told) {
    mpsc::channel(COMMITS_MAX)
}

/// The body of a hint.
#[derive(Debug, Serialize, Deserialize)]
struct Hint {
    /// Who tells.
    from: Uuid,
    /// Which operation, and whose.
    changed: Vec<(OperationId, String)>,
}

impl Gateway {
    /// Tells the other instances of the group what has changed here, all that waits at once; never returns.
    pub(super) async fn tell(&self, mut told: Told) {
        let mut commits = Vec::new();
        while told.recv_many(&mut commits, COMMITS_MAX).await > 0 {
            let changes: Vec<_> = commits.drain(..).flatten().map(|it| (it.id, it.owner.to_string())).collect();
            for changed in changes.chunks(CHANGES_MAX) {
                if let Some(message) = self.hint(changed.to_vec()) {
                    self.0.publisher.hint(message);
                }
            }
        }
    }

    fn hint(&self, changed: Vec<(OperationId, String)>) -> Option<Message> {
        let body = serde_json::to_vec(&Hint { from: self.0.instance, changed }).ok()?.into();
        let message_id = ShortString::from(Uuid::now_v7().simple().to_string());
        let properties = BasicProperties::default()
            .with_type(topology::CHANGED.into())
            .with_content_type(JSON.into())
            .with_message_id(message_id.clone());
        let routing_key = self.0.group.as_str().into();
        Some(Message { exchange: topology::CHANGED, routing_key, properties, message_id, body, mandatory: false })
    }

    /// Takes hints of other instances until the session ends; waits for that alone if nobody shares the store.
    pub(super) async fn hear_changes(&self, session: &Session) -> anyhow::Result<()> {
        if !self.0.store.is_shared() {
            return std::future::pending().await;
        }
        let channel = session.consume_channel().await?;
        // New for each session: the broker may still hold the queue of one that it has not noticed to be over.
        let name = Uuid::now_v7().simple().to_string();
        let queue = amqp::call("declaring", topology::declare_for_changes(&channel, &self.0.group, &name)).await?;
        let mut deliveries = amqp::consume(&channel, &queue, PREFETCH).await?.ready_chunks(PREFETCH.into());
        while let Some(chunk) = deliveries.next().await {
            let chunk = chunk.into_iter().collect::<lapin::Result<Vec<_>>>()?;
            let changes: Vec<_> = chunk.iter().flat_map(|delivery| self.heard_of(delivery)).collect();
            self.0.outcomes.look(changes.iter().map(|change| change.id));
            self.0.watch.notify(changes);
            if let Some(last) = chunk.last() {
                amqp::settle(&last.acker, Settle::AckAll).await?;
            }
        }
        anyhow::bail!("the consumer of {queue} was cancelled")
    }

    /// What another instance says to have changed. It is only looked up, so who says it does not matter.
    fn heard_of(&self, delivery: &Delivery) -> Vec<Changed> {
        match serde_json::from_slice::<Hint>(&delivery.data) {
            Ok(hint) if hint.from == self.0.instance => Vec::new(),
            Ok(hint) => hint
                .changed
                .into_iter()
                .take(CHANGES_MAX)
                .map(|(id, owner)| Changed { id, owner: owner.into() })
                .collect(),
            Err(error) => {
                metrics::counter!("arr_unreadable_total", "queue" => topology::CHANGED).increment(1);
                tracing::warn!(%error, "hint of a change dropped");
                Vec::new()
            }
        }
    }
}
