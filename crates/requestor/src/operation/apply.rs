use super::{Change, Event, LateOutcome, Operation, State, after};
use crate::rules::Rules;
use jiff::Timestamp;
use shared::message::{Content, Outcome, Progress, Reply};
use shared::problem::Problem;
use std::time::Duration;

impl Operation {
    /// Applies `event` and tells what it did.
    ///
    /// Messages come at least once and in any order: a duplicate, a report that a newer one has overtaken, what an
    /// earlier step or a failed earlier attempt has to say, and whatever follows the outcome change nothing; but an
    /// outcome that contradicts is kept beside it.
    pub fn apply(&mut self, event: Event, now: Timestamp, rules: &Rules) -> Change {
        let change = match event {
            Event::Reply(reply) => self.reply(reply, now, rules),
            Event::Progress(progress) => self.progress(progress, now, rules),
            Event::Deadline => self.give_up(now, rules),
            Event::Cancel => self.cancel(now, rules),
            Event::Retry { timeout } => self.retry(timeout, now, rules),
        };
        if change != Change::None {
            self.version += 1;
            self.updated_at = now;
        }
        change
    }

    /// An attempt beyond ours is not believed to be more than ours; of a step beyond ours there can be no news.
    fn progress(&mut self, progress: Progress, now: Timestamp, rules: &Rules) -> Change {
        let progress = Progress { attempt: progress.attempt.min(self.attempt), ..progress };
        let overtaken = match &self.state {
            State::Running(last) => (progress.attempt, progress.sequence) <= (last.attempt, last.sequence),
            _ => false,
        };
        if self.has_ended() || progress.step != self.step || overtaken {
            return Change::None;
        }
        self.next_send_at = after(now, progress.lease.unwrap_or(rules.quiet));
        self.state = State::Running(progress);
        Change::Progressed
    }

    fn reply(&mut self, reply: Reply, now: Timestamp, rules: &Rules) -> Change {
        let Reply { step, attempt, retryable, retry_after, outcome } = reply;
        if step != self.step {
            return Change::None;
        }
        if self.has_ended() {
            return self.keep_late(outcome, now);
        }
        match outcome {
            Outcome::Succeeded(content) => self.succeeded(content, now, rules),
            // Only this clock decides that: a provider's may be wrong, and another provider may still answer.
            Outcome::Failed(problem) if problem.is("deadline-exceeded") && now < self.deadline => Change::None,
            Outcome::Failed(problem) if problem.is("canceled") && self.cancel_requested => {
                self.end(State::Canceled(problem), None, now, rules)
            }
            // Of an attempt that has been given up: it says nothing of the one under way.
            Outcome::Failed(_) if attempt < self.attempt => Change::None,
            Outcome::Failed(problem) if retryable => self.attempt_failed(problem, retry_after, now, rules),
            Outcome::Failed(problem) => self.end(State::Failed(problem), None, now, rules),
        }
    }

    fn succeeded(&mut self, result: Content, now: Timestamp, rules: &Rules) -> Change {
        let step = self.step;
        match self.steps.get(self.position as usize).cloned() {
            None => self.end(State::Succeeded, Some(result), now, rules),
            Some(_) if self.cancel_requested => {
                let problem = self.canceled_between_steps();
                self.end(State::Canceled(problem), None, now, rules)
            }
            Some(next) => {
                self.position += 1;
                self.begin_step(next, now);
                self.last_problem = None;
                Change::StepSucceeded { step, result }
            }
        }
    }

    fn canceled_between_steps(&self) -> Problem {
        let (done, all) = (self.position, self.steps.len());
        let detail = format!("{done} of {all} steps were done, and their effects stay; the next was never begun");
        Problem { detail: Some(detail), ..Problem::canceled() }.with("stepsDone", done)
    }

    fn begin_step(&mut self, kind: String, now: Timestamp) {
        self.asks = kind;
        self.step += 1;
        (self.attempt, self.attempts_before) = (1, 0);
        self.await_attempt(now, None);
    }

    /// Another attempt; if there were enough, or it would come after the deadline, the fallback; or the end.
    fn attempt_failed(
        &mut self,
        problem: Problem,
        retry_after: Option<Duration>,
        now: Timestamp,
        rules: &Rules,
    ) -> Change {
        let failed = Change::AttemptFailed { step: self.step, attempt: self.attempt };
        if self.cancel_requested {
            // No attempt follows, but the same is asked for again in a while, should the cancel stay unanswered: an
            // external effect that was begun must be brought to its end.
            if self.awaits_attempt() {
                return Change::None;
            }
            self.await_attempt(after(now, rules.quiet), Some("failed; to be canceled".into()));
            self.last_problem = Some(problem);
            return failed;
        }
        let tried = self.attempt.saturating_sub(self.attempts_before);
        let pause = rules.retries.pause_before(tried + 1).mul_f64(rules.jitter);
        let next = after(now, pause.max(retry_after.unwrap_or_default()));
        if tried < rules.retries.attempts && next < self.deadline {
            self.attempt += 1;
            self.await_attempt(next, Some(format!("attempt {} of {} follows", tried + 1, rules.retries.attempts)));
        } else if let Some(fallback) = rules.fallback.clone().filter(|_| now < self.deadline) {
            self.begin_step(fallback, now);
        } else {
            return self.end(State::Failed(problem), None, now, rules);
        }
        self.last_problem = Some(problem);
        failed
    }

    /// Nothing has been heard of the attempt under way, which is sent at `at`.
    fn await_attempt(&mut self, at: Timestamp, message: Option<String>) {
        let (step, attempt) = (self.step, self.attempt);
        self.state = State::Running(Progress { step, attempt, sequence: 0, percent: None, message, lease: None });
        (self.sends, self.next_send_at) = (0, at);
    }

    fn cancel(&mut self, now: Timestamp, rules: &Rules) -> Change {
        if self.has_ended() || self.cancel_requested {
            return Change::None;
        }
        if self.awaits_attempt() {
            self.next_send_at = self.next_send_at.max(after(now, rules.quiet));
        }
        self.cancel_requested = true;
        self.next_cancel_at = Some(after(now, rules.cancel_resend));
        Change::CancelRequested
    }

    /// The step that failed is attempted again, and the attempts of its kind's policy count anew.
    fn retry(&mut self, timeout: Duration, now: Timestamp, rules: &Rules) -> Change {
        let State::Failed(problem) = &self.state else { return Change::None };
        if self.retry_refused(now, rules.retry_window).is_some() {
            return Change::None;
        }
        self.last_problem = Some(problem.clone());
        self.attempts_before = self.attempt;
        self.attempt += 1;
        self.deadline = after(now, timeout);
        (self.ended_at, self.expires_at, self.late_outcome) = (None, None, None);
        self.await_attempt(now, Some("asked for again".into()));
        Change::Retried
    }

    fn give_up(&mut self, now: Timestamp, rules: &Rules) -> Change {
        match self.has_ended() || now < self.deadline {
            true => Change::None,
            false => self.end(State::Failed(Problem::deadline_exceeded()), None, now, rules),
        }
    }

    fn end(&mut self, state: State, result: Option<Content>, now: Timestamp, rules: &Rules) -> Change {
        self.state = state;
        (self.ended_at, self.expires_at) = (Some(now), Some(after(now, rules.retention)));
        Change::Ended(result)
    }

    fn keep_late(&mut self, outcome: Outcome, now: Timestamp) -> Change {
        let (status, error) = match (&self.state, outcome) {
            // What ends a step, but not the last, is not the outcome of the whole.
            (_, Outcome::Succeeded(_)) if self.steps.len() > self.position as usize => return Change::None,
            (State::Failed(_) | State::Canceled(_), Outcome::Succeeded(_)) => ("Succeeded", None),
            (State::Failed(known), Outcome::Failed(problem)) if *known != problem => {
                let canceled = self.cancel_requested && problem.is("canceled");
                (if canceled { "Canceled" } else { "Failed" }, Some(problem))
            }
            // A repeat of what is known, or a failure of a repeat that ran after a success.
            _ => return Change::None,
        };
        if self.late_outcome.is_some() {
            return Change::None;
        }
        self.late_outcome = Some(LateOutcome { status: status.into(), received_at: now, error });
        Change::Late
    }
}
