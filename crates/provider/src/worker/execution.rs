//! Runs an asynchronous handler, with its signs of life, to its end, its deadline, or its cancel.

use super::{Job, Worker};
use crate::context::{Context, Report};
use crate::handler::{AsyncFn, Failure};
use crate::ledger::Claim;
use jiff::Timestamp;
use shared::amqp::Settle;
use shared::message::{Content, Progress, Request};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Requests that end sooner than this send no progress: their reply says it all.
const FIRST_REPORT_AFTER: Duration = Duration::from_millis(100);
/// How long a handler may take to notice that it is cancelled before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// How the execution of a handler ended.
pub(super) enum Ended {
    /// It returned.
    Handled(Result<Content, Failure>),
    /// It panicked.
    Panicked,
    /// What the message had left of its deadline has passed.
    Deadline,
    /// The request was canceled for certain.
    Canceled,
    /// The provider must stop.
    Stopped,
}

impl Worker {
    pub(super) async fn run(&self, job: &Job, function: &Arc<AsyncFn>, claim: Option<&Claim>) -> Ended {
        let cancelled = CancellationToken::new();
        let (reports, newest) = watch::channel(Report::default());
        let context = Context::new(&job.request, cancelled.clone(), reports, claim.cloned());
        let (function, content) = (Arc::clone(function), job.request.content.clone());
        // A task of its own, so that a panic is this operation's failure and nothing else's.
        let mut task = self.0.jobs.spawn(async move { function(content, context).await });
        let cut = tokio::select! {
            joined = &mut task => return ended(&job.request, joined),
            () = job.canceled.cancelled() => Ended::Canceled,
            () = self.0.stop.cancelled() => Ended::Stopped,
            () = sleep_until_or_forever(job.request.expiration.map(|left| job.received + left)) => Ended::Deadline,
            () = self.report(job, newest, claim) => Ended::Stopped,
        };
        cancelled.cancel();
        let last = tokio::time::timeout(CANCEL_GRACE, &mut task).await;
        task.abort();
        match (cut, last) {
            // What was canceled for certain is not a success, whatever the handler says.
            (Ended::Canceled, _) => Ended::Canceled,
            (_, Ok(Ok(Ok(content)))) => Ended::Handled(Ok(content)),
            (Ended::Deadline, Ok(Err(error))) => ended(&job.request, Err(error)),
            (cut, _) => cut,
        }
    }

    /// Sends what the handler says of itself, and signs of life while it says nothing. When the delivery has been
    /// held for `ack_hold`, it is acknowledged, and signs of life extend a lease from then on. Never returns.
    async fn report(&self, job: &Job, mut newest: watch::Receiver<Report>, claim: Option<&Claim>) {
        let (config, mut sequence) = (&self.0.config, 0);
        // Who asks without being a requestor would not ask again, so that delivery is held to the end.
        let mut hold_until = job.is_ours().then(|| job.received + config.ack_hold);
        let mut leased = false;
        // Also while the delivery is held: if its connection ends, another instance gets it.
        let mut renew_at = Instant::now() + config.progress.heartbeat;
        tokio::time::sleep(FIRST_REPORT_AFTER).await;
        loop {
            let report = newest.borrow_and_update().clone();
            if hold_until.is_some_and(|until| until <= Instant::now()) {
                (hold_until, leased) = (None, true);
                self.acknowledge_early(job, &report).await;
            }
            sequence = Timestamp::now().as_microsecond().max(sequence + 1);
            if let Some(message) = progress(&job.request, sequence, report, leased.then_some(config.lease)) {
                self.0.publisher.hint(message);
            }
            if let Some(claim) = claim
                && renew_at <= Instant::now()
            {
                if let Err(error) = claim.renew(config.lease).await {
                    tracing::warn!(%error, "the ledger cannot be written yet");
                }
                renew_at = Instant::now() + config.progress.heartbeat;
            }
            let earliest = Instant::now() + config.progress.interval;
            let latest = Instant::now() + config.progress.heartbeat;
            let latest = hold_until.map_or(latest, |until| until.max(earliest).min(latest));
            // An error means that the handler has dropped its context; then only signs of life are left.
            if let Ok(Err(_)) = tokio::time::timeout_at(latest, newest.changed()).await {
                tokio::time::sleep_until(latest).await;
            }
            tokio::time::sleep_until(earliest).await;
        }
    }

    /// Tells the requestor that there is a lease, and then acknowledges: long before the broker would take the
    /// delivery from a provider that it believes to hang.
    async fn acknowledge_early(&self, job: &Job, report: &Report) {
        let sequence = Timestamp::now().as_microsecond();
        if let Some(message) = progress(&job.request, sequence, report.clone(), Some(self.0.config.lease)) {
            let _ = self.0.publisher.publish(message).await;
        }
        let Some(identity) = &job.identity else { return };
        if let Some(lane) = self.0.lanes.get(&job.request.kind) {
            lane.lease();
        }
        if let Some(taken) = self.0.running.lease(identity) {
            taken.settle_alone(Settle::Ack).await;
        }
        shared::crash::point("provider.acked-early");
    }

    /// A job that holds no delivery any more is asked for again at once.
    pub(super) async fn end_lease(&self, request: &Request) {
        let sequence = Timestamp::now().as_microsecond();
        let report = Report { percent: None, message: Some("the provider stops".into()) };
        if let Some(message) = progress(request, sequence, report, Some(Duration::ZERO)) {
            let _ = self.0.publisher.publish(message).await;
        }
    }
}

fn progress(
    request: &Request,
    sequence: i64,
    report: Report,
    lease: Option<Duration>,
) -> Option<shared::message::Message> {
    let (step, attempt) = (request.step, request.attempt);
    let progress = Progress { step, attempt, sequence, percent: report.percent, message: report.message, lease };
    request.progress_message(&progress).ok().flatten()
}

fn ended(request: &Request, joined: Result<Result<Content, Failure>, JoinError>) -> Ended {
    match joined {
        Ok(result) => Ended::Handled(result),
        Err(error) => {
            tracing::error!(kind = request.kind, correlation_id = request.correlation_id, %error, "handler failed");
            Ended::Panicked
        }
    }
}

pub(super) async fn sleep_until_or_forever(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
