//! Messaging Gateway: what we send, and what comes back for it.

/// Hears what providers serve.
mod announcements;
/// Tells other instances what has changed, and hears it of them.
mod changes;
/// Answers what the broker has given up.
mod dead_letters;
/// Sends requests and wishes to cancel, and sees to it that they arrive.
mod sending;

use crate::config::{Config, RedriveConfig};
use crate::kinds::Kinds;
use crate::operation::{Change, Event, Operation};
use crate::outcomes::Outcomes;
use crate::pace::Pace;
use crate::store::{RequestId, Store};
use crate::watch::Watch;
pub(crate) use changes::{Tell, Told, hints};
use futures_util::StreamExt;
use futures_util::future::join_all;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};
use sending::Pending;
use shared::amqp::{self, PublishQueue, Publisher, Session, Settle, Status, Supervisor};
use shared::message::{OperationId, Progress, Reply, Unreadable, check_headers};
use shared::{crash, topology};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Deliveries of one consumer that may be unacknowledged: as many as the store commits together.
const PREFETCH: u16 = 512;
/// The pause before the store is asked again to take a reply that it could not take.
const STORE_RETRY: Duration = Duration::from_millis(250);
/// Sends requests and takes replies. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    group: String,
    kinds: Kinds,
    /// `announcements.keep_providers`.
    keep_providers: Duration,
    redrive: RedriveConfig,
    store: Store,
    pace: Pace,
    outcomes: Outcomes,
    watch: Watch,
    /// Tells this process from others.
    instance: Uuid,
    publisher: Publisher,
    /// `replies.users`.
    users: Vec<String>,
    message_bytes_max: usize,
    status: watch::Sender<Status>,
    confirms: mpsc::UnboundedSender<Pending>,
    /// Requests that wait to be published or confirmed: sending them once more now would only add to the queue.
    sending: Mutex<HashSet<RequestId>>,
    /// Changes when some of them need no longer be there, since it is noted that they were sent.
    noted: watch::Sender<()>,
    /// How often in a row the broker could not take a request at all.
    invalid: Mutex<HashMap<RequestId, u32>>,
}

/// The receiving ends of a gateway, for [`Gateway::run`].
#[derive(Debug)]
pub(crate) struct Queues {
    publish: PublishQueue,
    confirms: mpsc::UnboundedReceiver<Pending>,
    told: Told,
}

impl Gateway {
    /// A gateway that is not connected yet.
    #[must_use]
    pub(crate) fn new(
        config: &Config,
        kinds: Kinds,
        store: Store,
        (pace, outcomes, watch): (Pace, Outcomes, Watch),
        told: Told,
    ) -> (Self, Queues) {
        let (publisher, publish) = amqp::publisher(&config.broker);
        // Bounded by broker.publish_queue_max: each entry has a message in the publisher's queue or in its batch.
        let (confirms, confirmed) = mpsc::unbounded_channel();
        let gateway = Self(Arc::new(Inner {
            group: config.group.clone(),
            kinds,
            keep_providers: config.announcements.keep_providers,
            redrive: config.redrive.clone(),
            store,
            pace,
            outcomes,
            watch,
            instance: Uuid::now_v7(),
            publisher,
            users: config.replies.users.clone(),
            message_bytes_max: config.broker.message_bytes_max,
            status: Status::channel(),
            confirms,
            sending: Mutex::default(),
            noted: watch::Sender::new(()),
            invalid: Mutex::default(),
        }));
        (gateway, Queues { publish, confirms: confirmed, told })
    }

    /// What is known of the broker.
    #[must_use]
    pub(crate) fn broker(&self) -> Status {
        self.0.status.borrow().clone()
    }

    /// Follows what is known of the broker.
    #[must_use]
    pub(crate) fn subscribe(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// Serves until `shutdown`, over as many sessions as it takes.
    pub(crate) async fn run(&self, config: &Config, queues: Queues, shutdown: &CancellationToken) {
        let Queues { mut publish, confirms, told } = queues;
        let name = format!("requestor {}", config.group);
        let sessions = async {
            let mut supervisor = Supervisor::new(&config.broker, name, &self.0.status, shutdown);
            while let Some(session) = supervisor.open().await {
                let served = shutdown.run_until_cancelled(Box::pin(self.serve(&session, &mut publish)));
                let served = async { served.await.unwrap_or(Ok(())) };
                let result = supervisor.guard(&session, served).await;
                if supervisor.close(session, result).await {
                    break;
                }
            }
        };
        tokio::select! {
            () = sessions => {}
            ((), ()) = async { tokio::join!(self.note_sent(confirms), self.tell(told)) } => {}
        }
    }

    async fn serve(&self, session: &Session, publish: &mut PublishQueue) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        let kinds: Vec<_> = self.0.kinds.asked().into_iter().collect();
        amqp::call("declaring", topology::declare_for_requestor(&channel, &self.0.group, &kinds)).await?;
        if self.0.store.is_shared() {
            // Before anything is published to it.
            amqp::call("declaring", topology::declare_changed(&channel)).await?;
        }
        session.ready();
        let replies = topology::reply_queue(&self.0.group);
        let progress = topology::progress_queue(&self.0.group);
        tokio::try_join!(
            session.publish_from(publish),
            self.receive(&channel, &replies, |delivery| {
                let (id, reply) = Reply::from_delivery(delivery)?;
                Ok((id, Event::Reply(reply.at_most(self.0.message_bytes_max))))
            }),
            async {
                let channel = session.consume_channel().await?;
                let parse = |delivery: &mut Delivery| {
                    Progress::from_delivery(delivery).map(|(id, progress)| (id, Event::Progress(progress)))
                };
                self.receive(&channel, &progress, parse).await
            },
            self.answer_all_dead_letters(session),
            self.hear(session),
            self.hear_changes(session)
        )?;
        Ok(())
    }

    /// Applies what comes through `queue`; acknowledges when it is durable. What waits is committed together.
    async fn receive(
        &self,
        channel: &Channel,
        queue: &str,
        parse: impl Fn(&mut Delivery) -> Result<(OperationId, Event), Unreadable>,
    ) -> anyhow::Result<()> {
        let mut deliveries = amqp::consume(channel, queue, PREFETCH).await?.ready_chunks(PREFETCH.into());
        while let Some(chunk) = deliveries.next().await {
            let mut chunk = chunk.into_iter().collect::<lapin::Result<Vec<_>>>()?;
            crash::point("requestor.received");
            join_all(chunk.iter_mut().map(|delivery| {
                let parsed = self.believed(&delivery.properties).and_then(|()| parse(delivery));
                self.take(parsed, queue)
            }))
            .await;
            crash::point("requestor.stored");
            if let Some(last) = chunk.last() {
                amqp::settle(&last.acker, Settle::AckAll).await?;
            }
        }
        anyhow::bail!("the consumer of {queue} was cancelled")
    }

    /// Whether a message comes from who may answer, and has headers as an honest sender has.
    fn believed(&self, properties: &BasicProperties) -> Result<(), Unreadable> {
        // The broker has checked that the sender is who it says.
        let user = properties.user_id().as_ref().map_or("", ShortString::as_str);
        if !self.0.users.is_empty() && !self.0.users.iter().any(|known| known == user) {
            return Err(Unreadable(format!("{user:?} is none of replies.users")));
        }
        check_headers(properties)
    }

    /// Applies one event, however long the store cannot take it: the message waits at the broker meanwhile.
    async fn take(&self, parsed: Result<(OperationId, Event), Unreadable>, queue: &str) {
        let (id, event) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                metrics::counter!("arr_unreadable_total", "queue" => queue.to_owned()).increment(1);
                tracing::warn!(queue, %error, "unreadable message dropped");
                return;
            }
        };
        let applied = loop {
            match self.0.store.apply(id, event.clone(), Timestamp::now()).await {
                Ok(applied) => break applied,
                Err(error) => tracing::warn!(operation = %id, %error, "the store cannot take a message yet"),
            }
            tokio::time::sleep(STORE_RETRY).await;
        };
        match applied {
            Some(applied) => self.changed(&applied.operation, &applied.change),
            None => {
                metrics::counter!("arr_unknown_operation_total").increment(1);
                tracing::debug!(operation = %id, "message for an unknown operation dropped");
            }
        }
    }

    /// What follows from a change, once it is durable.
    pub(crate) fn changed(&self, operation: &Operation, change: &Change) {
        match change {
            Change::None => metrics::counter!("arr_duplicate_messages_total").increment(1),
            Change::Late => metrics::counter!("arr_late_outcomes_total").increment(1),
            _ => {}
        }
        if let Change::StepSucceeded { result, .. } = change {
            self.dispatch(operation, result.clone(), Timestamp::now());
        }
        if let Change::Progressed = change {
            self.0.pace.progressed(operation);
        }
        if let Change::Ended(result) = change {
            self.0.outcomes.hand(operation, result.as_ref());
            // It is not to be sent again, so when need not be noted.
            self.sending().remove(&RequestId::of(operation));
            self.0.pace.ended(operation);
            let status = crate::store::status_name(operation);
            metrics::counter!("arr_operations_ended_total", "kind" => operation.kind.clone(), "status" => status)
                .increment(1);
        }
    }
}
