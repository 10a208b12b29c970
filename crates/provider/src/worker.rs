//! Service Activator: takes deliveries, runs handlers, and settles a request only after its reply is confirmed.

use crate::config::Config;
use crate::context::{Context, Report};
use crate::handler::{Failure, Handler, PureFn};
use crate::ledger::{Executed, Ledger, panicked};
use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::BasicCancelOptions;
use shared::amqp::{self, PublishError, PublishQueue, Publisher, Session, Settle};
use shared::message::{
    Content, Message, Outcome, Progress, Reply, Request, ReturnAddress, Unreadable, answer, attempt_of, header_number,
    return_address,
};
use shared::problem::Problem;
use shared::topology;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Requests that end sooner than this send no progress: their reply says it all.
const FIRST_REPORT_AFTER: Duration = Duration::from_millis(100);
/// How long a handler may take to notice that it is cancelled before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// How often a reply that no queue takes is published before the request is given back.
const REPLY_ATTEMPTS: u32 = 8;
/// The first pause between such attempts; it doubles.
const REPLY_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between such attempts.
const REPLY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The pause before the ledger is asked again to take what it could not take.
const LEDGER_RETRY: Duration = Duration::from_millis(500);
/// How long giving back what still runs may take at the end of a drain.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(3);
/// Redeliveries after lost connections that a running job holds on to; at six the broker gives the request up.
const JOINED_DELIVERIES_MAX: i64 = 3;
/// How much a provider's clock may differ from the requestor's before a deadline in the message is believed.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

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

type Handled = Result<Content, Failure>;

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
        amqp::call("declaring", topology::declare_for_provider(&channel, &kinds)).await?;
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
            let reply = Reply { attempt: attempt_of(properties), retryable: false, outcome: Outcome::Failed(problem) };
            let correlation_id = properties.correlation_id().as_ref().map_or("", |id| id.as_str());
            if let Ok(message) = answer(&address, correlation_id, 1, &reply) {
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
    async fn work(self, mut job: Job) {
        let result = match self.execute(&job).await {
            Ok(reply) => self.reply(&job.request, &reply).await,
            Err(no_reply) => Err(no_reply),
        };
        let joined = job.identity.as_ref().and_then(|identity| self.running().remove(identity).flatten());
        let how = match result {
            Ok(()) => Settle::Ack,
            Err(NoReply::GiveBack) => Settle::Requeue,
            Err(NoReply::Unpublished) => Settle::Reject,
        };
        self.settle(job.acker.take().or(joined), how).await;
    }

    /// A delivery of a session that is over cannot be settled and comes again.
    async fn settle(&self, acker: Option<Acker>, how: Settle) {
        if let Some(acker) = acker
            && let Err(error) = amqp::settle(&acker, how).await
        {
            tracing::debug!(%error, "delivery not settled; it comes again");
        }
    }

    async fn execute(&self, job: &Job) -> Result<Reply, NoReply> {
        let (request, started) = (&job.request, Instant::now());
        let result = match self.0.handlers.get(&request.kind) {
            _ if is_overdue(request) => Err(Failure::Permanent(Problem::deadline_exceeded())),
            Some(Handler::Pure(function)) => {
                let until = request.expiration.map(|left| job.received + left);
                self.run_pure(request, until, Arc::clone(function)).await?
            }
            Some(handler) => self.run_in_ledger(request, handler).await?,
            None => Err(Failure::Permanent(Problem::new("unknown-kind", 404, "Unknown kind", &request.kind))),
        };
        metrics::histogram!("arr_handler_seconds", "kind" => request.kind.clone()).record(started.elapsed());
        let (outcome, retryable) = match result {
            Ok(content) => (Outcome::Succeeded(content), false),
            Err(Failure::Permanent(problem)) => (Outcome::Failed(problem), false),
            Err(Failure::Transient(problem)) => (Outcome::Failed(problem), true),
        };
        Ok(Reply { attempt: request.attempt, retryable, outcome })
    }

    /// Runs a pure handler, reports its progress, and ends it at the deadline or when the provider must stop.
    async fn run_pure(
        &self,
        request: &Request,
        until: Option<Instant>,
        function: Arc<PureFn>,
    ) -> Result<Handled, NoReply> {
        let cancelled = self.0.stop.child_token();
        let (reports, newest) = watch::channel(Report::default());
        let (content, context) = (request.content.clone(), Context::new(request, cancelled.clone(), reports));
        // A task of its own, so that a panic is this operation's failure and nothing else's.
        let mut task = self.0.jobs.spawn(async move { function(content, context).await });
        let mut ended = tokio::select! {
            joined = &mut task => Some(joined),
            () = sleep_until_or_forever(until) => None,
            () = cancelled.cancelled() => None,
            () = self.report(request, newest) => None,
        };
        let in_time = ended.is_some();
        if !in_time {
            cancelled.cancel();
            ended = tokio::time::timeout(CANCEL_GRACE, &mut task).await.ok();
            task.abort();
        }
        match ended {
            Some(Ok(Ok(content))) => Ok(Ok(content)),
            _ if self.0.stop.is_cancelled() => Err(NoReply::GiveBack),
            Some(Ok(Err(failure))) if in_time => Ok(Err(failure)),
            Some(Err(error)) => {
                tracing::error!(kind = request.kind, correlation_id = request.correlation_id, %error, "handler failed");
                Ok(Err(Failure::Permanent(panicked())))
            }
            _ => Ok(Err(Failure::Permanent(Problem::deadline_exceeded()))),
        }
    }

    /// Sends what the handler says of itself, and signs of life while it says nothing. Never returns.
    async fn report(&self, request: &Request, mut newest: watch::Receiver<Report>) {
        let mut sequence = 0;
        let pace = &self.0.config.progress;
        tokio::time::sleep(FIRST_REPORT_AFTER).await;
        loop {
            let Report { percent, message } = newest.borrow_and_update().clone();
            sequence = Timestamp::now().as_microsecond().max(sequence + 1);
            let progress = Progress { attempt: request.attempt, sequence, percent, message };
            if let Ok(Some(message)) = request.progress_message(&progress) {
                self.0.publisher.hint(message);
            }
            let (earliest, latest) = (Instant::now() + pace.interval, Instant::now() + pace.heartbeat);
            // An error means that the handler has dropped its context; then only signs of life are left.
            if let Ok(Err(_)) = tokio::time::timeout_at(latest, newest.changed()).await {
                tokio::time::sleep_until(latest).await;
            }
            tokio::time::sleep_until(earliest).await;
        }
    }

    /// Runs a transactional handler, or answers from the ledger what it did before. A ledger that cannot be written
    /// now holds this request's slot, so that no more requests are taken than it will be able to record.
    async fn run_in_ledger(&self, request: &Request, handler: &Handler) -> Result<Handled, NoReply> {
        let (Some(ledger), Some(identity)) = (&self.0.ledger, request.identity()) else {
            return Ok(Err(Failure::invalid("", "a request with an effect needs a correlation_id")));
        };
        loop {
            let (kind, content) = (request.kind.clone(), request.content.clone());
            let outcome = match ledger.execute(identity.clone(), kind, content, handler.clone()).await {
                Ok(Executed::Now(outcome)) => outcome,
                Ok(Executed::Before(outcome)) => {
                    metrics::counter!("arr_repeats_total", "kind" => request.kind.clone()).increment(1);
                    outcome
                }
                Ok(Executed::NotNow(problem)) => return Ok(Err(Failure::Transient(problem))),
                Err(error) => {
                    tracing::warn!(%error, "the ledger cannot be written yet");
                    tokio::select! {
                        () = tokio::time::sleep(LEDGER_RETRY) => continue,
                        () = self.0.stop.cancelled() => return Err(NoReply::GiveBack),
                    }
                }
            };
            return Ok(match outcome {
                Outcome::Succeeded(content) => Ok(content),
                Outcome::Failed(problem) => Err(Failure::Permanent(problem)),
            });
        }
    }

    async fn reply(&self, request: &Request, reply: &Reply) -> Result<(), NoReply> {
        let Some(address) = &request.reply_to else { return Ok(()) };
        match request.reply_message(&self.fitting(reply)) {
            Ok(Some(message)) => self.publish_reply(message, address).await,
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "no reply can be made");
                Ok(())
            }
        }
    }

    /// A result that no message can carry becomes a failure that says so.
    fn fitting(&self, reply: &Reply) -> Reply {
        let limit = self.0.config.broker.message_bytes_max;
        match &reply.outcome {
            Outcome::Succeeded(content) if content.body.len() > limit => {
                let detail = format!("the result has {} bytes, more than {limit}", content.body.len());
                let problem = Problem::new("result-too-large", 500, "Result too large", detail);
                Reply { outcome: Outcome::Failed(problem), ..*reply }
            }
            _ => reply.clone(),
        }
    }

    /// Publishes until the broker has it, over as many sessions as it takes; gives up when no queue takes it.
    async fn publish_reply(&self, message: Message, address: &ReturnAddress) -> Result<(), NoReply> {
        let (mut left, mut pause) = (REPLY_ATTEMPTS, REPLY_PAUSE);
        while left > 0 {
            match self.0.publisher.publish(message.clone()).await {
                Ok(()) => return Ok(()),
                // A foreign client that has gone takes its queue with it.
                Err(PublishError::Unroutable) if matches!(address, ReturnAddress::Foreign(_)) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, message_id = %message.message_id, "reply not published");
                    left -= 1;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REPLY_PAUSE_MAX);
        }
        Err(NoReply::Unpublished)
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

/// Whether the requestor has given the request up. Its clock decides, so that a clock that differs does no harm.
fn is_overdue(request: &Request) -> bool {
    request.deadline.is_some_and(|deadline| Timestamp::now().duration_since(deadline) > CLOCK_TOLERANCE)
}

async fn sleep_until_or_forever(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
