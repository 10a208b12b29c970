//! What an operation is and how it changes. No I/O and no clock: `now` is passed in.

use crate::rules::Rules;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::message::{Content, OperationId, Outcome, Progress, Reply};
use shared::problem::Problem;
use std::time::Duration;

/// A request that was accepted, and what is known of it so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Also the correlation id of its messages.
    pub id: OperationId,
    /// What is asked.
    pub kind: String,
    /// How far it is.
    pub state: State,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its state last changed.
    pub updated_at: Timestamp,
    /// When it is given up.
    pub deadline: Timestamp,
    /// When it is forgotten; known once it has ended.
    pub expires_at: Option<Timestamp>,
    /// The attempt under way, from 1.
    pub attempt: u32,
    /// The step under way, from 1.
    pub step: u32,
    /// Counts changes.
    pub version: u32,
    /// 0 to 9.
    pub priority: Option<u8>,
    /// W3C Trace Context of the caller.
    pub traceparent: Option<String>,
    /// An outcome that came after the operation had ended with another.
    pub late_outcome: Option<LateOutcome>,
    /// Why the last attempt failed, if another follows or followed.
    pub last_problem: Option<Problem>,
    /// How often the request was sent in this attempt.
    pub sends: u32,
    /// When the request is sent again unless something is heard of it.
    pub next_send_at: Timestamp,
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
}

/// What became of an operation after its caller was told something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LateOutcome {
    /// `Succeeded` or `Failed`.
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
}

/// What an event did.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Nothing: a duplicate, or overtaken by something newer.
    None,
    /// The operation is still open, and known better.
    Updated,
    /// The operation has ended; with its result if it succeeded.
    Ended(Option<Content>),
    /// The operation had ended before; the outcome is kept beside it.
    Late,
}

impl Operation {
    /// An operation that was accepted at `now`, to the millisecond, as the store keeps times.
    #[must_use]
    pub fn new(kind: &str, now: Timestamp, timeout: Duration, first_send_after: Duration) -> Self {
        let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        Self {
            id: OperationId::new(),
            kind: kind.into(),
            state: State::NotStarted,
            created_at: now,
            updated_at: now,
            deadline: after(now, timeout),
            expires_at: None,
            attempt: 1,
            step: 1,
            version: 1,
            priority: None,
            traceparent: None,
            late_outcome: None,
            last_problem: None,
            sends: 0,
            next_send_at: after(now, first_send_after),
        }
    }

    /// Whether the outcome is known; then the state never changes again.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Succeeded | State::Failed(_))
    }

    /// Applies `event` and tells what it did.
    ///
    /// Messages come at least once and in any order: a duplicate, a report that a newer one has overtaken, and
    /// whatever follows the outcome change nothing, but an outcome that contradicts is kept beside it.
    pub fn apply(&mut self, event: Event, now: Timestamp, rules: Rules) -> Change {
        let change = match event {
            Event::Reply(reply) if self.has_ended() => self.keep_late(reply.outcome, now),
            _ if self.has_ended() => Change::None,
            Event::Progress(progress) => self.progress(progress, now, rules),
            // Only this clock decides that: a provider's may be wrong, and another provider may still answer.
            Event::Reply(Reply { outcome: Outcome::Failed(problem), .. })
                if problem.is("deadline-exceeded") && now < self.deadline =>
            {
                Change::None
            }
            Event::Reply(Reply { outcome: Outcome::Succeeded(content), .. }) => {
                self.end(State::Succeeded, Some(content), now, rules)
            }
            Event::Reply(Reply { outcome: Outcome::Failed(problem), retryable: true, attempt, .. }) => {
                self.retry(problem, attempt, now, rules)
            }
            Event::Reply(Reply { outcome: Outcome::Failed(problem), .. }) => {
                self.end(State::Failed(problem), None, now, rules)
            }
            Event::Deadline if now >= self.deadline => {
                self.end(State::Failed(Problem::deadline_exceeded()), None, now, rules)
            }
            Event::Deadline => Change::None,
        };
        if change != Change::None {
            self.version += 1;
            self.updated_at = now;
        }
        change
    }

    fn progress(&mut self, progress: Progress, now: Timestamp, rules: Rules) -> Change {
        if let State::Running(last) = &self.state
            && (progress.attempt, progress.sequence) <= (last.attempt, last.sequence)
        {
            return Change::None;
        }
        self.state = State::Running(progress);
        self.next_send_at = after(now, rules.quiet);
        Change::Updated
    }

    /// Another attempt, unless there were enough or it would come after the deadline.
    fn retry(&mut self, problem: Problem, attempt: u32, now: Timestamp, rules: Rules) -> Change {
        if attempt < self.attempt {
            // Of an attempt that has been given up: it says nothing of the one under way.
            return Change::None;
        }
        let next = after(now, rules.retries.pause_before(self.attempt + 1).mul_f64(rules.jitter));
        if self.attempt >= rules.retries.attempts || next >= self.deadline {
            return self.end(State::Failed(problem), None, now, rules);
        }
        self.attempt += 1;
        (self.sends, self.next_send_at, self.last_problem) = (0, next, Some(problem));
        let message = format!("attempt {} of {} follows", self.attempt, rules.retries.attempts);
        let attempt = self.attempt;
        self.state = State::Running(Progress {
            step: self.step,
            attempt,
            sequence: 0,
            percent: None,
            message: Some(message),
            lease: None,
        });
        Change::Updated
    }

    /// When the next attempt begins, while none is under way.
    #[must_use]
    pub fn next_attempt_at(&self) -> Option<Timestamp> {
        matches!(&self.state, State::Running(progress) if progress.sequence == 0 && self.last_problem.is_some())
            .then_some(self.next_send_at)
    }

    fn end(&mut self, state: State, result: Option<Content>, now: Timestamp, rules: Rules) -> Change {
        self.state = state;
        self.expires_at = Some(after(now, rules.retention));
        Change::Ended(result)
    }

    fn keep_late(&mut self, outcome: Outcome, now: Timestamp) -> Change {
        let error = match (&self.state, outcome) {
            (State::Failed(_), Outcome::Succeeded(_)) => None,
            (State::Failed(known), Outcome::Failed(problem)) if *known != problem => Some(problem),
            // A repeat of what is known, or a failure of a repeat that ran after a success.
            _ => return Change::None,
        };
        if self.late_outcome.is_some() {
            return Change::None;
        }
        let status = if error.is_none() { "Succeeded" } else { "Failed" };
        self.late_outcome = Some(LateOutcome { status: status.into(), received_at: now, error });
        Change::Late
    }
}

/// `now` plus `duration`, at the end of time at the latest.
#[must_use]
pub fn after(now: Timestamp, duration: Duration) -> Timestamp {
    now.checked_add(duration).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Retries;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;

    const RETRIES: Retries = Retries { attempts: 3, pause: Duration::from_secs(2), pause_max: Duration::from_secs(60) };
    const RULES: Rules =
        Rules { retention: Duration::from_secs(3600), quiet: Duration::from_secs(60), retries: RETRIES, jitter: 1.0 };

    fn operation() -> Operation {
        let now = Timestamp::from_second(1_000_000).unwrap();
        Operation::new("echo", now, Duration::from_secs(60), Duration::from_secs(5))
    }

    fn progress(sequence: i64) -> Event {
        Event::Progress(Progress {
            step: 1,
            attempt: 1,
            sequence,
            percent: Some(sequence as f64),
            message: None,
            lease: None,
        })
    }

    fn reply(outcome: Outcome) -> Event {
        Event::Reply(Reply::new(1, 1, outcome))
    }

    fn success() -> Event {
        reply(Outcome::Succeeded(Content::json("1")))
    }

    fn failure(name: &str) -> Event {
        reply(Outcome::Failed(Problem::new(name, 409, "No", "no")))
    }

    #[test]
    fn the_first_outcome_is_final() {
        let mut operation = operation();
        let now = operation.created_at;
        assert_eq!(operation.apply(success(), now, RULES), Change::Ended(Some(Content::json("1"))));
        let ended = operation.clone();
        for event in [success(), failure("late"), progress(1), Event::Deadline] {
            assert_eq!(operation.apply(event, operation.deadline, RULES), Change::None);
        }
        assert_eq!(operation, ended);
    }

    #[test]
    fn an_outcome_after_the_deadline_is_kept_beside_the_record() {
        let mut operation = operation();
        assert_eq!(operation.apply(Event::Deadline, operation.created_at, RULES), Change::None);
        assert_eq!(operation.apply(Event::Deadline, operation.deadline, RULES), Change::Ended(None));
        let state = operation.state.clone();
        assert_eq!(operation.apply(success(), operation.deadline, RULES), Change::Late);
        assert_eq!(operation.apply(success(), operation.deadline, RULES), Change::None);
        assert_eq!(operation.state, state);
        assert_eq!(operation.late_outcome.unwrap().status, "Succeeded");
    }

    #[test]
    fn a_provider_whose_clock_is_ahead_ends_nothing() {
        let mut operation = operation();
        let refused = || reply(Outcome::Failed(Problem::deadline_exceeded()));
        assert_eq!(operation.apply(refused(), operation.created_at, RULES), Change::None);
        assert_eq!(operation.apply(refused(), operation.deadline, RULES), Change::Ended(None));
    }

    #[test]
    fn progress_puts_off_the_next_send_and_never_goes_back() {
        let mut operation = operation();
        let now = operation.next_send_at;
        assert_eq!(operation.apply(progress(2), now, RULES), Change::Updated);
        assert_eq!(operation.next_send_at, after(now, RULES.quiet));
        assert_eq!(operation.apply(progress(2), now, RULES), Change::None);
        assert_eq!(operation.apply(progress(1), now, RULES), Change::None);
        assert_eq!(operation.version, 2);
    }

    #[test]
    fn a_failure_that_may_pass_is_attempted_again_with_growing_pauses() {
        let mut operation = operation();
        let now = operation.created_at;
        let problem = Problem::new("busy", 503, "Busy", "busy");
        let transient = |attempt| {
            Event::Reply(Reply { retryable: true, ..Reply::new(1, attempt, Outcome::Failed(problem.clone())) })
        };
        for (attempt, pause) in [(2, 2), (3, 4)] {
            assert_eq!(operation.apply(transient(attempt - 1), now, RULES), Change::Updated);
            assert_eq!((operation.attempt, operation.sends), (attempt, 0));
            assert_eq!(operation.next_attempt_at(), Some(after(now, Duration::from_secs(pause))));
            assert_eq!(operation.apply(transient(attempt - 1), now, RULES), Change::None, "a repeat");
        }
        let begun = Progress { step: 1, attempt: 3, sequence: 1, percent: None, message: None, lease: None };
        assert_eq!(operation.apply(Event::Progress(begun), now, RULES), Change::Updated);
        assert_eq!(operation.next_attempt_at(), None);
        assert_eq!(operation.apply(transient(3), now, RULES), Change::Ended(None));
        assert_eq!(operation.state, State::Failed(problem));
    }

    #[test]
    fn no_attempt_is_made_after_the_deadline() {
        let mut operation = operation();
        let now = operation.deadline.checked_sub(Duration::from_secs(1)).unwrap();
        let outcome = Outcome::Failed(Problem::new("busy", 503, "Busy", "busy"));
        let transient = Event::Reply(Reply { retryable: true, ..Reply::new(1, 1, outcome) });
        assert_eq!(operation.apply(transient, now, RULES), Change::Ended(None));
    }

    #[test]
    fn any_order_of_repeated_messages_ends_once() {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..10_000 {
            let mut operation = operation();
            let mut events: Vec<_> = (0..4).map(progress).collect();
            events.extend([success(), success(), failure("a"), failure("b"), Event::Deadline]);
            events.shuffle(&mut random);
            let (mut ends, mut last, mut outcome) = (0, -1, None);
            for event in events {
                match operation.apply(event, operation.deadline, RULES) {
                    Change::Ended(_) => (ends, outcome) = (ends + 1, Some(operation.state.clone())),
                    Change::Updated => {
                        let State::Running(now) = &operation.state else { panic!("updated, but not running") };
                        assert!(now.sequence > last);
                        last = now.sequence;
                    }
                    Change::None | Change::Late => {}
                }
            }
            assert_eq!((ends, Some(operation.state)), (1, outcome));
        }
    }
}
