//! What an operation is and how it changes. No I/O and no clock: `now` is passed in.

/// The rules by which an operation changes.
mod apply;
/// What an operation's event log says of a change.
mod log;
#[cfg(test)]
mod tests;

pub use log::Entry;
pub(crate) use log::summary;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared::message::{Content, OperationId, Progress, Reply};
use shared::problem::Problem;
use std::time::Duration;

/// The caller of everything while there are no API keys.
pub const ANONYMOUS: &str = "anonymous";

/// A request that was accepted, and what is known of it so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Also the correlation id of its messages.
    pub id: OperationId,
    /// The caller who asked for it; nobody else but an admin learns that it is there.
    pub owner: String,
    /// What the caller asked for.
    pub kind: String,
    /// What the step under way asks for: `kind`, or a step of the pipeline that `kind` is, or the fallback of one.
    pub asks: String,
    /// The kinds of a pipeline's steps as they were when it was accepted; empty for a plain kind.
    pub steps: Vec<String>,
    /// Which of `steps` is under way, from 1.
    pub position: u32,
    /// How far it is.
    pub state: State,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its state last changed.
    pub updated_at: Timestamp,
    /// When it is given up.
    pub deadline: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When it is forgotten; known once it has ended.
    pub expires_at: Option<Timestamp>,
    /// The request under way, from 1: each step of a pipeline and each fallback is a request of its own.
    pub step: u32,
    /// The attempt under way, from 1 in each step.
    pub attempt: u32,
    /// Attempts of this step that the retry policy no longer counts, since somebody asked for more.
    pub attempts_before: u32,
    /// Counts changes.
    pub version: u32,
    /// 0 to 9.
    pub priority: Option<u8>,
    /// W3C Trace Context of the caller.
    pub traceparent: Option<String>,
    /// Where its outcome is sent to.
    pub callback: Option<Callback>,
    /// Whether the caller wants it canceled. It may end otherwise all the same.
    pub cancel_requested: bool,
    /// How often that was sent again.
    pub cancels: u32,
    /// When that is sent again; known once it is requested.
    pub next_cancel_at: Option<Timestamp>,
    /// An outcome that came after the operation had ended with another.
    pub late_outcome: Option<LateOutcome>,
    /// Why the last attempt failed, if another follows or followed.
    pub last_problem: Option<Problem>,
    /// How often the request was sent in this attempt.
    pub sends: u32,
    /// When the request is sent again unless something is heard of it.
    pub next_send_at: Timestamp,
    /// The number of the last event in its log.
    pub events: u32,
}

/// Where the outcome of an operation is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// The receiver's URL.
    pub url: String,
    /// What its caller put before `/v1`, for the links in what is sent.
    pub base_url: String,
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Stored; no provider has spoken yet.
    NotStarted,
    /// A provider works on it.
    Running(Progress),
    /// The result is stored.
    Succeeded,
    /// It failed, and why.
    Failed(Problem),
    /// It was canceled: the effect of the step under way did not happen and will not.
    Canceled(Problem),
}

/// What became of an operation after its caller was told something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LateOutcome {
    /// `Succeeded`, `Failed` or `Canceled`.
    #[schemars(extend("enum" = ["Succeeded", "Failed", "Canceled"]))]
    pub status: String,
    /// When it came.
    pub received_at: Timestamp,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

/// What can happen to an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A provider reports.
    Progress(Progress),
    /// A provider answers.
    Reply(Reply),
    /// Time has passed.
    Deadline,
    /// The caller wants it canceled.
    Cancel,
    /// Somebody wants a failed operation attempted again, for at most `timeout`.
    Retry {
        /// How long it may take from now on.
        timeout: Duration,
    },
}

/// What an event did.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Nothing: a duplicate, or overtaken by something newer.
    None,
    /// A provider has reported.
    Progressed,
    /// An attempt failed, and the operation goes on all the same.
    AttemptFailed {
        /// The step that failed.
        step: u32,
        /// The attempt that failed.
        attempt: u32,
    },
    /// A step of a pipeline succeeded, and the next has begun.
    StepSucceeded {
        /// The step that succeeded.
        step: u32,
        /// Its result, which is the request of the next.
        result: Content,
    },
    /// Its providers are to be told that it shall not be carried out.
    CancelRequested,
    /// A failed operation is open again.
    Retried,
    /// The operation has ended; with its result if it succeeded.
    Ended(Option<Content>),
    /// The operation had ended before; the outcome is kept beside it.
    Late,
}

/// Why a failed operation is not attempted again by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryRefused {
    /// It is open, or ended otherwise.
    NotFailed,
    /// It was to be canceled, and the proof of that may be on its way.
    CancelRequested,
    /// It did succeed, after its caller was told that it failed.
    SucceededLate,
    /// Its provider may have forgotten what it has done for it.
    TooLate,
}

impl Operation {
    /// An operation that was accepted at `now`, to the millisecond, as the store keeps times.
    #[must_use]
    pub fn new(kind: &str, now: Timestamp, timeout: Duration, first_send_after: Duration) -> Self {
        let now = to_millisecond(now);
        Self {
            id: OperationId::new(),
            owner: ANONYMOUS.into(),
            kind: kind.into(),
            asks: kind.into(),
            steps: Vec::new(),
            position: 1,
            state: State::NotStarted,
            created_at: now,
            updated_at: now,
            deadline: after(now, timeout),
            ended_at: None,
            expires_at: None,
            step: 1,
            attempt: 1,
            attempts_before: 0,
            version: 1,
            priority: None,
            traceparent: None,
            callback: None,
            cancel_requested: false,
            cancels: 0,
            next_cancel_at: None,
            late_outcome: None,
            last_problem: None,
            sends: 0,
            next_send_at: after(now, first_send_after),
            events: 0,
        }
    }

    /// The same, asked for by `owner`.
    #[must_use]
    pub fn owned_by(mut self, owner: &str) -> Self {
        self.owner = owner.into();
        self
    }

    /// The same as a pipeline of these `steps`.
    #[must_use]
    pub fn through(mut self, steps: &[String]) -> Self {
        if let Some(first) = steps.first() {
            self.asks.clone_from(first);
        }
        self.steps = steps.to_vec();
        self
    }

    /// Whether the outcome is known; then the state changes only if somebody asks for another attempt.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Succeeded | State::Failed(_) | State::Canceled(_))
    }

    /// Why it failed or was canceled.
    #[must_use]
    pub fn error(&self) -> Option<&Problem> {
        match &self.state {
            State::Failed(problem) | State::Canceled(problem) => Some(problem),
            State::NotStarted | State::Running(_) | State::Succeeded => None,
        }
    }

    /// When the next attempt begins, while none is under way.
    #[must_use]
    pub fn next_attempt_at(&self) -> Option<Timestamp> {
        (self.awaits_attempt() && !self.cancel_requested).then_some(self.next_send_at)
    }

    /// Whether an attempt has failed and nothing has been heard of another.
    fn awaits_attempt(&self) -> bool {
        matches!(&self.state, State::Running(progress) if progress.sequence == 0 && self.last_problem.is_some())
    }

    /// Why it cannot be attempted again by hand at `now`, if it cannot.
    #[must_use]
    pub fn retry_refused(&self, now: Timestamp, window: Duration) -> Option<RetryRefused> {
        let ended_at = self.ended_at.unwrap_or(self.updated_at);
        if !matches!(self.state, State::Failed(_)) {
            Some(RetryRefused::NotFailed)
        } else if self.cancel_requested {
            Some(RetryRefused::CancelRequested)
        } else if self.late_outcome.as_ref().is_some_and(|late| late.error.is_none()) {
            Some(RetryRefused::SucceededLate)
        } else {
            (now > after(ended_at, window)).then_some(RetryRefused::TooLate)
        }
    }
}

/// `time` as precise as the store keeps it.
#[must_use]
pub(crate) fn to_millisecond(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// `now` plus `duration`, at the end of time at the latest.
#[must_use]
pub fn after(now: Timestamp, duration: Duration) -> Timestamp {
    now.checked_add(duration).unwrap_or(Timestamp::MAX)
}
