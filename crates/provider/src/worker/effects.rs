//! Carries a request out by its handler's kind of effect.

use super::execution::Ended;
use super::{Job, NoReply, Worker};
use crate::handler::{AsyncFn, Failure, Forms, Handler};
use crate::ledger::{Answer, Claim, Claimed, Executed, Ledger, Subject, panicked};
use jiff::{SignedDuration, Timestamp};
use shared::database::DatabaseError;
use shared::message::{Content, Outcome, Reply, Request};
use shared::problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The pause before the ledger is asked again to take what it could not take.
const LEDGER_RETRY: Duration = Duration::from_millis(500);
/// How much a provider's clock may differ from the requestor's before a deadline in the message is believed.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

impl Worker {
    pub(super) async fn execute(&self, job: &Job) -> Result<Reply, NoReply> {
        let (request, started) = (&job.request, Instant::now());
        let reply = match self.0.handlers.get(&request.kind) {
            _ if is_overdue(request) => Ok(failed(request, Problem::deadline_exceeded())),
            Some(Handler::Pure(function)) => self.run_pure(job, function).await,
            Some(Handler::Transactional(forms)) => self.run_transactional(request, forms).await,
            Some(Handler::External(function)) => self.run_external(job, function).await,
            None => Ok(failed(request, Problem::new("unknown-kind", 404, "Unknown kind", &request.kind))),
        };
        metrics::histogram!("arr_handler_seconds", "kind" => request.kind.clone()).record(started.elapsed());
        reply
    }

    async fn run_pure(&self, job: &Job, function: &Arc<AsyncFn>) -> Result<Reply, NoReply> {
        let request = &job.request;
        if job.identity.as_ref().is_some_and(|identity| self.0.canceled.contains(identity)) {
            return Ok(failed(request, Problem::canceled()));
        }
        match self.run(job, function, None).await {
            Ended::Handled(result) => Ok(handled(request, result)),
            Ended::Panicked => Ok(failed(request, panicked())),
            Ended::Deadline => Ok(failed(request, Problem::deadline_exceeded())),
            Ended::Canceled => Ok(failed(request, Problem::canceled())),
            Ended::Stopped => Err(NoReply::GiveBack),
        }
    }

    /// Runs a transactional handler, or answers from the ledger what it did before.
    async fn run_transactional(&self, request: &Request, forms: &Forms) -> Result<Reply, NoReply> {
        let Some((ledger, subject)) = self.ledger_for(request) else { return Ok(nameless(request)) };
        let ask = || ledger.execute(subject.clone(), request.attempt, request.content.clone(), forms);
        match self.insist(ask).await? {
            Executed::Now(outcome) => {
                shared::crash::point("provider.done");
                Ok(Reply::new(request.step, request.attempt, outcome))
            }
            Executed::Before(answer) => repeated(request, answer),
            Executed::NotNow(failure) => Ok(handled(request, Err(failure))),
        }
    }

    /// Claims a request, runs its handler, and records what came of it before it is said.
    async fn run_external(&self, job: &Job, function: &Arc<AsyncFn>) -> Result<Reply, NoReply> {
        let request = &job.request;
        let Some((ledger, subject)) = self.ledger_for(request) else { return Ok(nameless(request)) };
        let (lease, mut held) = (self.0.config.lease, false);
        let claim = loop {
            match self.insist(|| ledger.claim(subject.clone(), request.attempt, lease)).await? {
                Claimed::Now(claim) => break claim,
                Claimed::Before(answer) => return repeated(request, answer),
                // Who has renewed it lives, and will answer.
                Claimed::Held(_) if held => return Err(NoReply::Superseded),
                Claimed::Held(left) => {
                    let over = self.0.stop.run_until_cancelled(tokio::time::sleep(left.min(lease))).await;
                    over.ok_or(NoReply::GiveBack)?;
                    held = true;
                }
            }
        };
        shared::crash::point("provider.claimed");
        let outcome = match self.run(job, function, Some(&claim)).await {
            Ended::Handled(Ok(content)) => Outcome::Succeeded(content),
            Ended::Handled(Err(Failure::Permanent(problem))) => Outcome::Failed(problem),
            Ended::Panicked => Outcome::Failed(panicked()),
            Ended::Handled(transient) => return self.release(&claim, request, handled(request, transient)).await,
            // Whether the effect happened is not known here, so nothing is recorded: a repeat finds it out.
            Ended::Deadline => {
                return self.release(&claim, request, failed(request, Problem::deadline_exceeded())).await;
            }
            Ended::Canceled => return Ok(failed(request, Problem::canceled())),
            Ended::Stopped => {
                let _ = claim.release().await;
                return Err(NoReply::GiveBack);
            }
        };
        shared::crash::point("provider.effect");
        match self.insist(|| claim.record(outcome.clone())).await? {
            Answer::Yes { .. } => {
                shared::crash::point("provider.done");
                Ok(Reply::new(request.step, request.attempt, outcome))
            }
            answer => repeated(request, answer),
        }
    }

    /// Gives a claim back and replies, unless the request was canceled meanwhile.
    async fn release(&self, claim: &Claim, request: &Request, reply: Reply) -> Result<Reply, NoReply> {
        match self.insist(|| claim.release()).await? {
            Answer::Yes { .. } => Ok(reply),
            answer => repeated(request, answer),
        }
    }

    fn ledger_for(&self, request: &Request) -> Option<(&Ledger, Subject)> {
        Some((self.0.ledger.as_ref()?, Subject::of(request)?))
    }

    /// Asks the ledger until it can do what it is asked. A ledger that cannot be written now holds this request's
    /// slot, so that no more requests are taken than it will be able to record.
    pub(super) async fn insist<T, F>(&self, ask: impl Fn() -> F) -> Result<T, NoReply>
    where
        F: Future<Output = Result<T, DatabaseError>>,
    {
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => tracing::warn!(%error, "the ledger cannot be written yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(LEDGER_RETRY) => {}
                () = self.0.stop.cancelled() => return Err(NoReply::GiveBack),
            }
        }
    }
}

/// The reply of what the ledger says without an execution.
fn repeated(request: &Request, answer: Answer) -> Result<Reply, NoReply> {
    metrics::counter!("arr_repeats_total", "kind" => request.kind.clone()).increment(1);
    match answer {
        Answer::Recorded { attempt, outcome } => Ok(Reply::new(request.step, attempt, outcome)),
        Answer::Canceled => Ok(failed(request, Problem::canceled())),
        Answer::Yes { .. } | Answer::No | Answer::Held => Err(NoReply::Superseded),
    }
}

fn handled(request: &Request, result: Result<Content, Failure>) -> Reply {
    let (outcome, retryable, retry_after) = match result {
        Ok(content) => (Outcome::Succeeded(content), false, None),
        Err(Failure::Permanent(problem)) => (Outcome::Failed(problem), false, None),
        Err(Failure::Transient(problem)) => (Outcome::Failed(problem), true, None),
        Err(Failure::TransientFor(pause, problem)) => (Outcome::Failed(problem), true, Some(pause)),
    };
    Reply { retryable, retry_after, ..Reply::new(request.step, request.attempt, outcome) }
}

pub(super) fn failed(request: &Request, problem: Problem) -> Reply {
    handled(request, Err(Failure::Permanent(problem)))
}

fn nameless(request: &Request) -> Reply {
    handled(request, Err(Failure::invalid("", "a request with an effect needs a correlation_id")))
}

/// Whether the requestor has given the request up. The broker keeps what has an `expiration` no longer than that, by
/// one clock; only for other requests is this provider's clock compared with the requestor's, which may differ.
fn is_overdue(request: &Request) -> bool {
    request.expiration.is_none()
        && request.deadline.is_some_and(|deadline| Timestamp::now().duration_since(deadline) > CLOCK_TOLERANCE)
}
