//! How long operations of a kind take, so that callers know when to ask again.

use crate::operation::{Operation, State};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The share of the newest duration in the moving average.
const NEWEST: f64 = 0.2;
/// Callers are asked to wait between one second, the header's resolution, and a minute.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A moving average of how long operations took, by kind. Empty after a start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace(Arc<Mutex<HashMap<String, Duration>>>);

impl Pace {
    /// Takes note of an operation that has ended.
    pub(crate) fn ended(&self, operation: &Operation) {
        if operation.state != State::Succeeded {
            return;
        }
        let took = between(operation.created_at, operation.updated_at);
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match paces.get_mut(&operation.kind) {
            Some(pace) => *pace = pace.mul_f64(1.0 - NEWEST) + took.mul_f64(NEWEST),
            None => drop(paces.insert(operation.kind.clone(), took)),
        }
    }

    /// In how many seconds it is worth asking for `operation` again (RFC 9110 section 10.2.3), at least 1.
    #[must_use]
    pub(crate) fn retry_after(&self, operation: &Operation, now: jiff::Timestamp) -> u64 {
        let elapsed = between(operation.created_at, now);
        let expected = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&operation.kind).copied();
        // What has taken longer than usual already may well take that long again.
        let left = match expected {
            Some(expected) if expected > elapsed => expected - elapsed,
            Some(_) => elapsed / 2,
            None => elapsed,
        };
        left.min(RETRY_AFTER_MAX).as_secs_f64().ceil().max(1.0) as u64
    }
}

fn between(from: jiff::Timestamp, to: jiff::Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::after;
    use jiff::Timestamp;

    #[test]
    fn callers_are_asked_to_come_back_when_it_is_probably_done() {
        let (pace, now) = (Pace::default(), Timestamp::UNIX_EPOCH);
        let mut operation = Operation::new("echo", now, Duration::from_secs(60), Duration::from_secs(5));
        assert_eq!(pace.retry_after(&operation, now), 1);
        operation.state = State::Succeeded;
        operation.updated_at = after(now, Duration::from_secs(20));
        pace.ended(&operation);
        assert_eq!(pace.retry_after(&operation, after(now, Duration::from_secs(5))), 15);
        assert_eq!(pace.retry_after(&operation, after(now, Duration::from_secs(40))), 20);
    }
}
