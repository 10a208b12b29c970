//! Service Activator: takes deliveries, runs handlers, and settles a request only after its reply is confirmed.

mod execution;
mod replies;

use crate::config::Config;
use crate::handler::Handler;
use crate::ledger::Ledger;
use futures_util::StreamExt;
use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::BasicCancelOptions;
use shared::amqp::{self, PublishQueue, Publisher, Session, Settle};
use shared::message::{
    Outcome, Reply, Request, ReturnAddress, Unreadable, answer, attempt_of, header_number, return_address, step_of,
};
use shared::problem::Problem;
use shared::topology;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long giving back what still runs may take at the end of a drain.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(3);
/// Redeliveries after lost connections that a running job holds on to; at six the broker gives the request up.
const JOINED_DELIVERIES_MAX: i64 = 3;

/// Runs requests. Outlives sessions: a job goes on while the broker is away.
#[derive(Clone, Debug)]
pub(crate) struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    handlers: BTreeMap<String, Handler>,
    slots: BTreeMap<String, Arc<Semaphore>>,
    ledger: Option<Ledger>,
    publisher: Publisher,
    jobs: TaskTracker,
    /// Cancelled when what still runs must stop.
    stop: CancellationToken,
    /// What runs now, by identity, with the delivery to settle at its end. The broker delivers a request again when
    /// the connection is lost or the requestor sends it again; that delivery then joins the running job.
    running: Mutex<HashMap<String, Option<Acker>>>,
}

/// A request that is being carried out.
struct Job {
    request: Request,
    identity: Option<String>,
    /// The delivery, unless it is in the table of what runs.
    acker: Option<Acker>,
    received: Instant,
    _slot: OwnedSemaphorePermit,
}

/// Why a request ends without a reply.
enum NoReply {
    /// It must be delivered again, since the provider stops.
    GiveBack,
    /// The reply could not be published.
    Unpublished,
}

impl Worker {
    pub(crate) fn new(
        config: Config,
        handlers: BTreeMap<String, Handler>,
        ledger: Option<Ledger>,
        publisher: Publisher,
    ) -> Self {
        let slots = config.effective_concurrency();
        let slots = handlers.keys().map(|kind| (kind.clone(), Arc::new(Semaphore::new(slots)))).collect();
        let (jobs, stop, running) = (TaskTracker::new(), CancellationToken::new(), Mutex::default());
        Self(Arc::new(Inner { config, handlers, slots, ledger, publisher, jobs, stop, running }))
    }

    /// Serves one session until it fails, or until `shutdown` and the end of what was under way.
    pub(crate) async fn serve(
        &self,
        session: &Session,
        queue: &mut PublishQueue,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let kinds: Vec<_> = self.0.handlers.keys().cloned().collect();
        let channel = session.consume_channel().await?;
        // New for each session: the broker may still hold the queue of one that it has not noticed to be over.
        let instance = uuid::Uuid::now_v7().simple().to_string();
        let group = &self.0.config.group;
        amqp::call("declaring", topology::declare_for_provider(&channel, group, &instance, &kinds)).await?;
        session.ready();
        tracing::info!(kinds = kinds.join(","), "serving");
        let work = async {
            futures_util::future::try_join_all(kinds.iter().map(|kind| self.consume(session, kind, shutdown))).await?;
            self.drain().await;
            anyhow::Ok(())
        };
        tokio::select! {
            result = session.publish_from(queue) => result,
            result = work => result,
        }
    }

    /// Takes requests of `kind` until `shutdown`; what was prefetched and not begun goes back to the queue.
    async fn consume(&self, session: &Session, kind: &str, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        let queue = topology::request_queue(kind);
        let prefetch = u16::try_from(self.0.config.effective_concurrency()).unwrap_or(u16::MAX);
        let mut deliveries = amqp::consume(&channel, &queue, prefetch).await?;
        loop {
            let delivery = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                delivery = deliveries.next() => delivery,
            };
            match delivery {
                Some(delivery) => self.accept(kind, delivery?, shutdown).await?,
                None => anyhow::bail!("the consumer of {queue} was cancelled"),
            }
        }
        amqp::call("basic.cancel", channel.basic_cancel(deliveries.tag(), BasicCancelOptions::default())).await?;
        while let Some(delivery) = deliveries.next().await {
            amqp::settle(&delivery?.acker, Settle::Requeue).await?;
        }
        Ok(())
    }

    /// Begins one request, joins it to the job that runs it already, or answers what is no request.
    async fn accept(&self, kind: &str, mut delivery: Delivery, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let received = Instant::now();
        let deliveries = header_number(&delivery.properties, "x-delivery-count").unwrap_or_default();
        let request = Request::from_delivery(kind, &mut delivery).and_then(|request| self.answerable(request));
        let request = match request {
            Ok(request) => request,
            Err(error) => return self.refuse(kind, delivery, error).await,
        };
        let identity = request.identity();
        if let Some(identity) = &identity
            && let Some(superfluous) = self.join(identity, &delivery.acker, deliveries)
        {
            metrics::counter!("arr_joined_total", "kind" => kind.to_owned()).increment(1);
            return match superfluous {
                true => amqp::settle(&delivery.acker, Settle::Ack).await,
                false => Ok(()),
            };
        }
        let slots = self.0.slots.get(kind).map(Arc::clone).ok_or_else(|| anyhow::anyhow!("no handler for {kind}"))?;
        let Some(slot) = shutdown.run_until_cancelled(slots.acquire_owned()).await else {
            return amqp::settle(&delivery.acker, Settle::Requeue).await;
        };
        let mut acker = Some(delivery.acker);
        if let Some(identity) = &identity {
            self.running().insert(identity.clone(), acker.take());
        }
        self.0.jobs.spawn(self.clone().work(Job { request, identity, acker, received, _slot: slot? }));
        Ok(())
    }

    /// Joins a delivery to the job that runs its request; none if there is no such job. Returns whether the delivery
    /// is superfluous: a copy of one that is still held, or one that was lost so often that it would soon be taken
    /// for a request that kills its providers. The requestor sends that one again if this process dies too.
    fn join(&self, identity: &str, acker: &Acker, deliveries: i64) -> Option<bool> {
        let mut running = self.running();
        let held = running.get_mut(identity)?;
        let superfluous = held.as_ref().is_some_and(Acker::usable) || deliveries >= JOINED_DELIVERIES_MAX;
        if !superfluous {
            *held = Some(acker.clone());
        }
        Some(superfluous)
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
    async fn refuse(&self, kind: &str, delivery: Delivery, error: Unreadable) -> anyhow::Result<()> {
        let queue = topology::request_queue(kind);
        metrics::counter!("arr_unreadable_total", "queue" => queue.clone()).increment(1);
        tracing::warn!(queue, %error, "unreadable message refused");
        let properties = &delivery.properties;
        let address = return_address(properties)
            .filter(|address| self.0.config.replies.foreign || matches!(address, ReturnAddress::Group(_)));
        if let Some(address) = address {
            let problem = Problem::new("unreadable-message", 400, "The message is no request", error.to_string());
            let reply = Reply::new(step_of(properties), attempt_of(properties), Outcome::Failed(problem));
            let correlation_id = properties.correlation_id().as_ref().map_or("", |id| id.as_str());
            if let Ok(message) = answer(&address, correlation_id, &reply) {
                // Not awaited here: one bad message must not hold up the good ones behind it.
                let worker = self.clone();
                self.0.jobs.spawn(async move {
                    let published = worker.publish_reply(message, &address).await;
                    worker.settle(Some(delivery.acker), published.err().map_or(Settle::Ack, |_| Settle::Reject)).await;
                });
                return Ok(());
            }
        }
        amqp::settle(&delivery.acker, Settle::Ack).await
    }

    /// Carries a request out, replies, and only then settles it.
    async fn work(self, job: Job) {
        let result = match self.execute(&job).await {
            Ok(reply) => self.reply(&job.request, reply).await,
            Err(no_reply) => Err(no_reply),
        };
        let joined = job.identity.as_ref().and_then(|identity| self.running().remove(identity).flatten());
        let how = match result {
            Ok(()) => Settle::Ack,
            Err(NoReply::GiveBack) => Settle::Requeue,
            Err(NoReply::Unpublished) => Settle::Reject,
        };
        self.settle(job.acker.or(joined), how).await;
    }

    /// A delivery of a session that is over cannot be settled and comes again.
    async fn settle(&self, acker: Option<Acker>, how: Settle) {
        if let Some(acker) = acker
            && let Err(error) = amqp::settle(&acker, how).await
        {
            tracing::debug!(%error, "delivery not settled; it comes again");
        }
    }

    /// Waits for what runs; what takes longer than `drain` is cancelled and given back.
    async fn drain(&self) {
        self.0.jobs.close();
        if tokio::time::timeout(self.0.config.drain, self.0.jobs.wait()).await.is_err() {
            tracing::warn!(requests = self.running().len(), "still running; giving back");
            self.0.stop.cancel();
            let _ = tokio::time::timeout(GIVE_BACK_TIMEOUT, self.0.jobs.wait()).await;
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Option<Acker>>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
