use super::{Change, Operation, State};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use shared::problem::Problem;

/// The longest detail of a problem that is logged, in bytes; the record has it in full.
const DETAIL_BYTES_MAX: usize = 1024;

/// An entry of an operation's event log.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// From 1, without a gap.
    pub number: u32,
    /// When it happened.
    pub at: Timestamp,
    /// What happened, such as `attempt-failed`.
    pub event_type: String,
    /// What belongs to it.
    pub data: Value,
}

impl Operation {
    /// The first entry of its log.
    pub fn record_created(&mut self) -> Entry {
        let mut data = json!({ "kind": self.kind, "deadline": self.deadline });
        if !self.steps.is_empty() {
            data["steps"] = json!(self.steps);
        }
        self.entry(self.created_at, "created", data)
    }

    /// The entry for `change`, which was just made at `now`. Progress is left out once the log has `progress_max`
    /// entries; everything else is logged always.
    pub fn record(&mut self, change: &Change, now: Timestamp, progress_max: u32) -> Option<Entry> {
        let (event_type, data) = match change {
            Change::None => return None,
            Change::Progressed if self.events >= progress_max => return None,
            Change::Progressed => ("progress", self.progress_data()),
            Change::AttemptFailed { step, attempt } => ("attempt-failed", self.failed_attempt_data(*step, *attempt)),
            Change::StepSucceeded { step, .. } => ("step-succeeded", json!({ "step": step, "next": self.asks })),
            Change::CancelRequested => ("cancel-requested", json!({})),
            Change::Retried => ("retried", json!({ "attempt": self.attempt, "deadline": self.deadline })),
            Change::Late => ("late-outcome", self.late_data()),
            Change::Ended(_) => self.end_data()?,
        };
        Some(self.entry(now, event_type, data))
    }

    fn entry(&mut self, at: Timestamp, event_type: &str, data: Value) -> Entry {
        self.events += 1;
        Entry { number: self.events, at, event_type: event_type.into(), data }
    }

    fn progress_data(&self) -> Value {
        let mut data = json!({ "step": self.step, "attempt": self.attempt });
        if let State::Running(progress) = &self.state {
            if let Some(percent) = progress.percent {
                data["percent"] = percent.into();
            }
            if let Some(message) = &progress.message {
                data["message"] = message.as_str().into();
            }
        }
        data
    }

    fn failed_attempt_data(&self, step: u32, attempt: u32) -> Value {
        let mut data = json!({ "step": step, "attempt": attempt });
        if let Some(problem) = &self.last_problem {
            data["problem"] = json!(summary(problem));
        }
        if let Some(at) = self.next_attempt_at() {
            data["nextAttemptAt"] = json!(at);
        }
        if step != self.step {
            data["fallback"] = self.asks.as_str().into();
        }
        data
    }

    fn late_data(&self) -> Value {
        let Some(late) = &self.late_outcome else { return json!({}) };
        match &late.error {
            None => json!({ "status": late.status }),
            Some(problem) => json!({ "status": late.status, "problem": summary(problem) }),
        }
    }

    fn end_data(&self) -> Option<(&'static str, Value)> {
        let event_type = match self.state {
            State::Succeeded => "succeeded",
            State::Failed(_) => "failed",
            State::Canceled(_) => "canceled",
            State::NotStarted | State::Running(_) => return None,
        };
        let data = self.error().map_or_else(|| json!({}), |problem| json!({ "problem": summary(problem) }));
        Some((event_type, data))
    }
}

/// A problem without its further members, which may be many.
pub(crate) fn summary(problem: &Problem) -> Problem {
    let mut detail = problem.detail.clone();
    if let Some(detail) = &mut detail {
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
    }
    let title = problem.title.clone();
    Problem { type_uri: problem.type_uri.clone(), title, status: problem.status, detail, extensions: Map::new() }
}
