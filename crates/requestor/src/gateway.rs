//! Messaging Gateway: what we send, and what comes back for it.

use crate::config::{Config, RedriveConfig};
use crate::operation::{Change, Event, Operation, after};
use crate::pace::Pace;
use crate::rules::doubled;
use crate::store::{Sent, Store};
use crate::watch::Watch;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, future::join_all};
use jiff::Timestamp;
use lapin::Channel;
use lapin::message::Delivery;
use rand::RngExt;
use shared::amqp::{self, PublishError, PublishQueue, Publisher, Session, Settle, Status, Supervisor};
use shared::message::{
    self, Content, OperationId, Outcome, Progress, Reply, Request, ReturnAddress, Unreadable, attempt_of,
    header_number, step_of,
};
use shared::problem::Problem;
use shared::topology;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Deliveries of one consumer that may be unacknowledged: as many as the store commits together.
const PREFETCH: u16 = 256;
/// The pause before the store is asked again to take a reply that it could not take.
const STORE_RETRY: Duration = Duration::from_millis(250);
/// How often it is noted which requests were sent.
const NOTE_SENT_EVERY: Duration = Duration::from_millis(200);
/// The first pause after the broker had no queue for a request.
const UNROUTABLE_MIN: Duration = Duration::from_secs(1);

type Confirm = BoxFuture<'static, (Attempt, Result<(), PublishError>)>;

/// Which attempt of which operation was sent, and how often now.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    id: OperationId,
    attempt: u32,
    sends: u32,
}

/// Sends requests and takes replies. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    group: String,
    kinds: Vec<String>,
    redrive: RedriveConfig,
    store: Store,
    watch: Watch,
    pace: Pace,
    publisher: Publisher,
    status: watch::Sender<Status>,
    confirms: mpsc::UnboundedSender<Pending>,
    /// Requests that wait to be published or confirmed: sending them once more now would only add to the queue.
    sending: Mutex<HashSet<OperationId>>,
}

struct Pending(Confirm);

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

/// The receiving ends of a gateway, for [`Gateway::run`].
#[derive(Debug)]
pub(crate) struct Queues {
    publish: PublishQueue,
    confirms: mpsc::UnboundedReceiver<Pending>,
}

impl Gateway {
    /// A gateway that is not connected yet.
    #[must_use]
    pub(crate) fn new(config: &Config, store: Store, watch: Watch, pace: Pace) -> (Self, Queues) {
        let (publisher, publish) = amqp::publisher(&config.broker);
        // Bounded by broker.publish_queue_max: each entry has a message in the publisher's queue or in its batch.
        let (confirms, confirmed) = mpsc::unbounded_channel();
        let gateway = Self(Arc::new(Inner {
            group: config.group.clone(),
            kinds: config.kinds.keys().cloned().collect(),
            redrive: config.redrive.clone(),
            store,
            watch,
            pace,
            publisher,
            status: Status::channel(),
            confirms,
            sending: Mutex::default(),
        }));
        (gateway, Queues { publish, confirms: confirmed })
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

    /// Sends the request of `operation`, if that can be done now. If not, the sweeper does it later.
    ///
    /// Returns whether there may be room for another.
    pub(crate) fn dispatch(&self, operation: &Operation, content: Content, now: Timestamp) -> bool {
        if self.broker() != Status::Connected {
            return false;
        }
        if !self.sending().insert(operation.id) {
            return true;
        }
        let request = Request {
            operation: Some(operation.id),
            correlation_id: operation.id.to_string(),
            kind: operation.kind.clone(),
            step: operation.step,
            attempt: operation.attempt,
            deadline: Some(operation.deadline),
            expiration: None,
            reply_to: Some(ReturnAddress::Group(self.0.group.clone())),
            priority: operation.priority,
            traceparent: operation.traceparent.clone(),
            content,
        };
        let message = request.to_message(operation.id, &self.0.group, now).map_err(|_| PublishError::Refused);
        let confirm = match message.and_then(|message| self.0.publisher.try_publish(message)) {
            Ok(confirm) => confirm.boxed(),
            Err(PublishError::Full) => {
                self.sending().remove(&operation.id);
                return false;
            }
            // Its own fault: it is tried again later, and those behind it are sent now.
            Err(error) => {
                tracing::warn!(operation = %operation.id, %error, "request not sent");
                std::future::ready(Err(error)).boxed()
            }
        };
        let sent = Attempt { id: operation.id, attempt: operation.attempt, sends: operation.sends + 1 };
        let _ = self.0.confirms.send(Pending(confirm.map(move |result| (sent, result)).boxed()));
        true
    }

    /// Serves until `shutdown`, over as many sessions as it takes.
    pub(crate) async fn run(&self, config: &Config, queues: Queues, shutdown: &CancellationToken) {
        let Queues { mut publish, confirms } = queues;
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
            () = self.note_sent(confirms) => {}
        }
    }

    async fn serve(&self, session: &Session, publish: &mut PublishQueue) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        amqp::call("declaring", topology::declare_for_requestor(&channel, &self.0.group, &self.0.kinds)).await?;
        session.ready();
        let replies = topology::reply_queue(&self.0.group);
        let progress = topology::progress_queue(&self.0.group);
        let dead = async {
            let channel = session.consume_channel().await?;
            let each = self.0.kinds.iter().map(|kind| self.answer_dead_letters(&channel, kind));
            futures_util::future::try_join_all(each).await.map(drop)
        };
        tokio::try_join!(
            session.publish_from(publish),
            self.receive(&channel, &replies, |delivery| {
                Reply::from_delivery(delivery).map(|(id, reply)| (id, Event::Reply(reply)))
            }),
            async {
                let channel = session.consume_channel().await?;
                let parse = |delivery: &mut Delivery| {
                    Progress::from_delivery(delivery).map(|(id, progress)| (id, Event::Progress(progress)))
                };
                self.receive(&channel, &progress, parse).await
            },
            dead
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
            join_all(chunk.iter_mut().map(|delivery| self.take(parse(delivery), queue))).await;
            if let Some(last) = chunk.last() {
                amqp::settle(&last.acker, Settle::AckAll).await?;
            }
        }
        anyhow::bail!("the consumer of {queue} was cancelled")
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

    /// Tells whoever waits, once a change is durable.
    pub(crate) fn changed(&self, operation: &Operation, change: &Change) {
        match change {
            Change::None => metrics::counter!("arr_duplicate_messages_total").increment(1),
            Change::Late => metrics::counter!("arr_late_outcomes_total").increment(1),
            Change::Updated | Change::Ended(_) => self.0.watch.notify(operation.id),
        }
        if let Change::Ended(_) = change {
            self.0.pace.ended(operation);
            let status = crate::store::status_name(operation);
            metrics::counter!("arr_operations_ended_total", "kind" => operation.kind.clone(), "status" => status)
                .increment(1);
        }
    }

    /// Answers dead letters to their return address, which may be another group's: the broker gave them up, so
    /// their provider will not answer.
    async fn answer_dead_letters(&self, channel: &Channel, kind: &str) -> anyhow::Result<()> {
        let queue = topology::dead_queue(kind);
        let mut deliveries = amqp::consume(channel, &queue, PREFETCH).await?;
        while let Some(delivery) = deliveries.next().await {
            let delivery = delivery?;
            metrics::counter!("arr_dead_letters_total", "kind" => kind.to_owned()).increment(1);
            if let Some(message) = dead_letter_answer(&delivery, kind) {
                match self.0.publisher.publish(message).await {
                    Ok(()) | Err(PublishError::Unroutable | PublishError::TooLarge(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            amqp::settle(&delivery.acker, Settle::Ack).await?;
        }
        anyhow::bail!("the consumer of {queue} was cancelled")
    }

    /// Notes which requests were sent, many at a time and not at once: after a crash a few are sent again.
    async fn note_sent(&self, mut confirms: mpsc::UnboundedReceiver<Pending>) {
        let (mut pending, mut sent) = (FuturesUnordered::new(), Vec::new());
        let mut tick = tokio::time::interval(NOTE_SENT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(Pending(confirm)) = confirms.recv() => pending.push(confirm),
                Some((Attempt { id, attempt, sends }, result)) = pending.next() => {
                    if result == Err(PublishError::Unroutable) {
                        metrics::counter!("arr_unroutable_total").increment(1);
                    }
                    let next_send_at = after(Timestamp::now(), self.pause(sends, &result));
                    sent.push(Sent { id, attempt, sends, next_send_at });
                }
                _ = tick.tick(), if !sent.is_empty() => {
                    let ids: Vec<_> = sent.iter().map(|sent: &Sent| sent.id).collect();
                    if let Err(error) = self.0.store.sent(std::mem::take(&mut sent)).await {
                        tracing::warn!(%error, "cannot note which requests were sent; they are sent again");
                    }
                    let mut sending = self.sending();
                    for id in ids {
                        sending.remove(&id);
                    }
                }
            }
        }
    }

    /// How long to wait for news before sending again: exponential with half jitter, so that what was sent
    /// together is not sent again together.
    fn pause(&self, sends: u32, result: &Result<(), PublishError>) -> Duration {
        let (first, longest) = match result {
            Ok(()) => (self.0.redrive.waiting, self.0.redrive.waiting_max),
            Err(_) => (UNROUTABLE_MIN, self.0.redrive.unroutable_max),
        };
        doubled(first, longest, sends.saturating_sub(1)).mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    fn sending(&self) -> std::sync::MutexGuard<'_, HashSet<OperationId>> {
        self.0.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dead_letter_answer(delivery: &Delivery, kind: &str) -> Option<message::Message> {
    let properties = &delivery.properties;
    let address = message::return_address(properties).filter(|address| matches!(address, ReturnAddress::Group(_)))?;
    let correlation_id = properties.correlation_id().as_ref()?;
    let reason = message::header_text(properties, "x-first-death-reason").unwrap_or("unknown");
    let problem = match reason {
        "expired" => Problem::deadline_exceeded(),
        _ => Problem::new(
            "poison",
            500,
            "No provider survives this request",
            format!("the broker gave the request up ({reason}); each provider of {kind} that took it ended before it answered"),
        )
        .with("deliveries", header_number(properties, "x-delivery-count")),
    };
    let reply = Reply::new(step_of(properties), attempt_of(properties), Outcome::Failed(problem));
    message::answer(&address, correlation_id.as_str(), &reply).ok()
}
