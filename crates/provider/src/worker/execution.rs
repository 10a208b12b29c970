//! Runs a handler: by its kind of effect, with its progress, to its end or its deadline.

use super::{Job, NoReply, Worker};
use crate::context::{Context, Report};
use crate::handler::{Failure, Handler, PureFn, TransactionalFn};
use crate::ledger::{Executed, panicked};
use jiff::{SignedDuration, Timestamp};
use shared::message::{Content, Outcome, Progress, Reply, Request};
use shared::problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Requests that end sooner than this send no progress: their reply says it all.
const FIRST_REPORT_AFTER: Duration = Duration::from_millis(100);
/// How long a handler may take to notice that it is cancelled before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// The pause before the ledger is asked again to take what it could not take.
const LEDGER_RETRY: Duration = Duration::from_millis(500);
/// How much a provider's clock may differ from the requestor's before a deadline in the message is believed.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

type Handled = Result<Content, Failure>;

impl Worker {
    pub(super) async fn execute(&self, job: &Job) -> Result<Reply, NoReply> {
        let (request, started) = (&job.request, Instant::now());
        let result = match self.0.handlers.get(&request.kind) {
            _ if is_overdue(request) => Err(Failure::Permanent(Problem::deadline_exceeded())),
            Some(Handler::Pure(function)) => {
                let until = request.expiration.map(|left| job.received + left);
                self.run_pure(request, until, Arc::clone(function)).await?
            }
            Some(Handler::Transactional(function)) => self.run_in_ledger(request, function).await?,
            None => Err(Failure::Permanent(Problem::new("unknown-kind", 404, "Unknown kind", &request.kind))),
        };
        metrics::histogram!("arr_handler_seconds", "kind" => request.kind.clone()).record(started.elapsed());
        let (outcome, retryable) = match result {
            Ok(content) => (Outcome::Succeeded(content), false),
            Err(Failure::Permanent(problem)) => (Outcome::Failed(problem), false),
            Err(Failure::Transient(problem)) => (Outcome::Failed(problem), true),
        };
        Ok(Reply { retryable, ..Reply::new(request.step, request.attempt, outcome) })
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
            let (step, attempt) = (request.step, request.attempt);
            let progress = Progress { step, attempt, sequence, percent, message, lease: None };
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
    async fn run_in_ledger(&self, request: &Request, function: &Arc<TransactionalFn>) -> Result<Handled, NoReply> {
        let (Some(ledger), Some(identity)) = (&self.0.ledger, request.identity()) else {
            return Ok(Err(Failure::invalid("", "a request with an effect needs a correlation_id")));
        };
        loop {
            let (kind, content) = (request.kind.clone(), request.content.clone());
            let outcome = match ledger.execute(identity.clone(), kind, content, Arc::clone(function)).await {
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
