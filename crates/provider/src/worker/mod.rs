//! Service Activator: takes deliveries, runs handlers, and settles a request only after its reply is confirmed.

mod acks;
pub(crate) mod announcing;
mod calls;
mod control;
mod effects;
mod execution;
mod lane;
mod replies;
mod running;

use crate::config::Config;
use crate::handler::Handler;
use crate::ledger::Ledger;
use acks::{Taken, Unsettled};
use futures_util::StreamExt;
use lane::{Held, Lane};
use lapin::message::Delivery;
use lapin::options::BasicCancelOptions;
use lapin::{BasicProperties, Consumer};
use running::{Asked, Canceled, Joined, Running};
use shared::amqp::{self, PublishQueue, Publisher, Session, Settle};
use shared::message::{
    Announcement, Outcome, Reply, Request, ReturnAddress, Unreadable, answer, attempt_of, check_request, header_number,
    return_address, step_of,
};
use shared::problem::Problem;
use shared::topology;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long giving back what still runs may take at the end of a drain.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a shutdown lets requests wait for a slot: far longer than what was taken ahead should need.
const AHEAD_GRACE: Duration = Duration::from_secs(1);

/// Runs requests. Outlives sessions: a job goes on while the broker is away, and when the broker takes its delivery
/// away because it was held for too long.
#[derive(Clone, Debug)]
pub(crate) struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    handlers: BTreeMap<String, Handler>,
    lanes: BTreeMap<String, Lane>,
    announcements: Vec<Announcement>,
    ledger: Option<Ledger>,
    publisher: Publisher,
    jobs: TaskTracker,
    /// Cancelled when no more requests are to be taken.
    shutdown: CancellationToken,
    /// Cancelled when what still runs must stop.
    stop: CancellationToken,
    running: Running,
    canceled: Canceled,
}

/// A request that is being carried out.
struct Job {
    request: Request,
    identity: Option<String>,
    /// The delivery, unless it is in the table of what runs.
    delivery: Option<Taken>,
    received: Instant,
    /// Cancelled when it is certain that the request will have no effect.
    canceled: CancellationToken,
}

impl Job {
    /// Whether a requestor asks, who sends the request again if this provider dies.
    fn is_ours(&self) -> bool {
        self.request.operation.is_some() && matches!(self.request.reply_to, Some(ReturnAddress::Group(_)))
    }
}

/// Why a request ends without a reply.
enum NoReply {
    /// It must be delivered again, since the provider stops or has no slot for it.
    GiveBack,
    /// The reply could not be published.
    Unpublished,
    /// Another execution has taken over.
    Superseded,
}

impl Worker {
    pub(crate) fn new(
        config: Config,
        handlers: BTreeMap<String, Handler>,
        announcements: Vec<Announcement>,
        ledger: Option<Ledger>,
        publisher: Publisher,
        shutdown: CancellationToken,
    ) -> Self {
        let slots = config.effective_concurrency();
        let lanes = handlers.keys().map(|kind| (kind.clone(), Lane::new(slots, config.ahead_max))).collect();
        let (jobs, stop, running, canceled) = Default::default();
        Self(Arc::new(Inner {
            config,
            handlers,
            lanes,
            announcements,
            ledger,
            publisher,
            jobs,
            shutdown,
            stop,
            running,
            canceled,
        }))
    }

    /// Serves one session until it fails, or until the shutdown and the end of what was under way.
    pub(crate) async fn serve(&self, session: &Session, queue: &mut PublishQueue) -> anyhow::Result<()> {
        let kinds: Vec<_> = self.0.handlers.keys().cloned().collect();
        let channel = session.consume_channel().await?;
        // New for each session: the broker may still hold the queue of one that it has not noticed to be over.
        let instance = uuid::Uuid::now_v7().simple().to_string();
        let group = &self.0.config.group;
        amqp::call("declaring", topology::declare_for_provider(&channel, group, &instance, &kinds)).await?;
        session.ready();
        tracing::info!(kinds = kinds.join(","), "serving");
        let (shared, own) = (topology::control_queue(group), topology::instance_queue(group, &instance));
        let requests = async {
            let lanes = self.0.lanes.iter().map(|(kind, lane)| self.consume(session, kind, lane));
            futures_util::future::try_join_all(lanes).await?;
            tokio::join!(self.leave(), self.drain());
            anyhow::Ok(())
        };
        let work = async {
            // Before anything is begun and before the queue has a consumer, which would take what waits there.
            self.0.shutdown.run_until_cancelled(self.catch_up(session)).await.transpose()?;
            tokio::select! {
                result = requests => result,
                result = self.control(session, &shared, true) => result,
            }
        };
        tokio::select! {
            result = session.publish_from(queue) => result,
            result = work => result,
            result = self.control(session, &own, false) => result,
            result = self.announce() => result,
        }
    }

    /// Takes requests of `kind` until the shutdown, as many at a time as its lane holds.
    async fn consume(&self, session: &Session, kind: &str, lane: &Lane) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        let (queue, mut held, unsettled) = (topology::request_queue(kind), lane.held(), Unsettled::default());
        while !self.0.shutdown.is_cancelled() {
            let prefetch = held.now();
            if prefetch == 0 {
                let _ = self.0.shutdown.run_until_cancelled(held.changed()).await;
                continue;
            }
            // A queue that was just recovered may take its time to answer, and a shutdown must not wait for it.
            let consumer = self.0.shutdown.run_until_cancelled(amqp::consume(&channel, &queue, prefetch)).await;
            let Some(mut deliveries) = consumer.transpose()? else { break };
            self.take(kind, &mut deliveries, &mut held, &unsettled).await?;
            let options = BasicCancelOptions::default();
            amqp::call("basic.cancel", channel.basic_cancel(deliveries.tag(), options)).await?;
            // What has come and may be held no more goes back to the queue.
            let keep = held.now() >= prefetch && !self.0.shutdown.is_cancelled();
            while let Some(delivery) = deliveries.next().await {
                match delivery? {
                    delivery if keep => self.accept(kind, delivery, &unsettled).await,
                    delivery => amqp::settle(&delivery.acker, Settle::Requeue).await?,
                }
            }
        }
        Ok(())
    }

    /// Begins what is delivered, until the shutdown or until more or fewer may be held.
    async fn take(
        &self,
        kind: &str,
        deliveries: &mut Consumer,
        held: &mut Held<'_>,
        unsettled: &Unsettled,
    ) -> anyhow::Result<()> {
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.0.shutdown.cancelled() => return Ok(()),
                () = held.changed() => return Ok(()),
                delivery = deliveries.next() => delivery,
            };
            match delivery {
                Some(delivery) => self.accept(kind, delivery?, unsettled).await,
                None => anyhow::bail!("the consumer of {} was cancelled", topology::request_queue(kind)),
            }
        }
    }

    /// Begins one request, joins it to the job that runs it already, or answers what is no request.
    async fn accept(&self, kind: &str, mut delivery: Delivery, unsettled: &Unsettled) {
        let received = Instant::now();
        let deliveries = header_number(&delivery.properties, "x-delivery-count").unwrap_or_default();
        let taken = unsettled.take(&delivery);
        let request = match self.read(kind, &mut delivery) {
            Ok(request) => request,
            Err(problem) => return self.refuse(kind, &delivery.properties, taken, problem).await,
        };
        let foreign = matches!(request.reply_to, Some(ReturnAddress::Foreign(_)));
        let asked = Asked { attempt: request.attempt, deliveries, foreign };
        let (canceled, delivery, identity) = match request.identity() {
            None => (CancellationToken::new(), Some(taken), None),
            Some(identity) => match self.0.running.join(&identity, taken, asked) {
                Joined::No(canceled) => (canceled, None, Some(identity)),
                Joined::Held => return count_joined(kind),
                Joined::Superfluous(taken) => {
                    count_joined(kind);
                    return taken.settle_alone(Settle::Ack).await;
                }
            },
        };
        self.0.jobs.spawn(self.clone().work(Job { request, identity, delivery, received, canceled }));
    }

    fn read(&self, kind: &str, delivery: &mut Delivery) -> Result<Request, Problem> {
        check_request(delivery, self.0.config.broker.message_bytes_max)?;
        Ok(self.answerable(Request::from_delivery(kind, delivery)?)?)
    }

    /// A request that nobody could be answered is not carried out.
    fn answerable(&self, request: Request) -> Result<Request, Unreadable> {
        match &request.reply_to {
            Some(ReturnAddress::Group(_)) => Ok(request),
            Some(ReturnAddress::Foreign(_)) if self.0.config.replies.foreign => Ok(request),
            Some(ReturnAddress::Foreign(queue)) => {
                Err(Unreadable(format!("replies to {queue:.64} need the setting replies.foreign")))
            }
            None => Err(Unreadable("no return address in reply_to".into())),
        }
    }

    /// Counts and answers what is no request of ours, and is done with it: another delivery would not help.
    async fn refuse(&self, kind: &str, properties: &BasicProperties, taken: Taken, problem: Problem) {
        let queue = topology::request_queue(kind);
        metrics::counter!("arr_unreadable_total", "queue" => queue.clone()).increment(1);
        tracing::warn!(queue, problem = problem.detail, "unreadable message refused");
        let address = return_address(properties)
            .filter(|address| self.0.config.replies.foreign || matches!(address, ReturnAddress::Group(_)));
        if let Some(address) = address {
            let reply = Reply::new(step_of(properties), attempt_of(properties), Outcome::Failed(problem));
            let correlation_id = properties.correlation_id().as_ref().map_or("", |id| id.as_str());
            if let Ok(message) = answer(&address, correlation_id, &reply) {
                // Not awaited here: one bad message must not hold up the good ones behind it.
                let worker = self.clone();
                self.0.jobs.spawn(async move {
                    let published = worker.publish_reply(message, &address).await;
                    taken.settle(published.err().map_or(Settle::Ack, |_| Settle::Reject)).await;
                });
                return;
            }
        }
        taken.settle_alone(Settle::Ack).await;
    }

    /// Carries a request out, replies, and only then settles it.
    async fn work(self, job: Job) {
        shared::crash::point("provider.received");
        let mut took = Duration::ZERO;
        let executed = match self.slot(&job).await {
            // The slot is free for another while the broker takes the reply.
            Ok(slot) => {
                let begun = Instant::now();
                let executed = self.execute(&job).await;
                took = slot.map(|_| begun.elapsed()).unwrap_or_default();
                executed
            }
            Err(no_reply) => Err(no_reply),
        };
        let result = match executed {
            Ok(reply) => {
                if let Some(identity) = &job.identity {
                    self.0.running.answering(identity);
                }
                self.reply(&job.request, reply).await
            }
            Err(no_reply) => Err(no_reply),
        };
        let held = job.identity.as_ref().and_then(|identity| self.0.running.remove(identity));
        let another = held.as_ref().is_some_and(|held| held.another);
        let how = match result {
            Ok(()) | Err(NoReply::Superseded) if !another => Settle::Ack,
            Ok(()) | Err(NoReply::GiveBack | NoReply::Superseded) => Settle::Requeue,
            Err(NoReply::Unpublished) => Settle::Reject,
        };
        if held.as_ref().is_some_and(|held| held.leased) {
            if matches!(result, Err(NoReply::GiveBack | NoReply::Unpublished)) {
                self.end_lease(&job.request).await;
            }
            if let Some(lane) = self.0.lanes.get(&job.request.kind) {
                lane.end_lease();
            }
        }
        if let Some(lane) = self.0.lanes.get(&job.request.kind) {
            lane.ended(took);
        }
        let delivery = job.delivery.or(held.and_then(|held| held.delivery));
        // It may acknowledge for others for long.
        drop(job.request);
        if let Some(delivery) = delivery {
            delivery.settle(how).await;
        }
    }

    /// Waits for a slot, though not for longer than a delivery may be held. A transactional handler needs none on SQLite:
    /// the ledger runs one after the other, and commits together those that wait.
    async fn slot(&self, job: &Job) -> Result<Option<OwnedSemaphorePermit>, NoReply> {
        let kind = &job.request.kind;
        let (Some(lane), Some(handler)) = (self.0.lanes.get(kind), self.0.handlers.get(kind)) else {
            return Err(NoReply::GiveBack);
        };
        let together = self.0.ledger.as_ref().is_some_and(Ledger::commits_together);
        if together && matches!(handler, Handler::Transactional(_)) {
            return Ok(None);
        }
        tokio::select! {
            biased;
            permit = Arc::clone(&lane.slots).acquire_owned() => permit.map(Some).map_err(|_| NoReply::GiveBack),
            // What was taken ahead is short, and is rather ended: until RabbitMQ 4.3, giving back counts as a delivery.
            () = async {
                self.0.shutdown.cancelled().await;
                tokio::time::sleep(AHEAD_GRACE).await;
            } => Err(NoReply::GiveBack),
            () = tokio::time::sleep_until(job.received + self.0.config.ack_hold) => Err(NoReply::GiveBack),
        }
    }

    /// Waits for what runs; what takes longer than `drain` is cancelled and given back.
    async fn drain(&self) {
        self.0.jobs.close();
        if tokio::time::timeout(self.0.config.drain, self.0.jobs.wait()).await.is_err() {
            tracing::warn!(requests = self.0.running.len(), "still running; giving back");
            self.0.stop.cancel();
            let _ = tokio::time::timeout(GIVE_BACK_TIMEOUT, self.0.jobs.wait()).await;
        }
    }
}

fn count_joined(kind: &str) {
    metrics::counter!("arr_joined_total", "kind" => kind.to_owned()).increment(1);
}
