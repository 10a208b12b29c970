//! How long operations of a kind take, so that callers know when to ask again.

mod estimate;

use crate::kinds::Kinds;
use crate::operation::{Operation, State};
use crate::store::{Store, StoreError};
use estimate::Outlook;
use jiff::Timestamp;
use shared::message::OperationId;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Operations of each kind that are remembered: enough for a distribution, and few enough to follow a change.
const WINDOW: usize = 100;
/// Operations under way of which it is kept when they were begun. Of others, it is taken from those that ended before.
const BEGUN_MAX: usize = 100_000;
/// How often it is looked who waits, for kinds that somebody has asked about lately.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after the last question about a kind it is no longer looked who waits; what was seen then is of no use.
const LATELY: Duration = Duration::from_secs(10);
/// The open operations of a kind that are looked at. Whoever is behind so many is told to come back late anyway.
const AHEAD_MAX: usize = 1000;

/// What kinds took lately, and who waits. In memory only: after a start from what the store has of it.
#[derive(Clone, Debug)]
pub(crate) struct Pace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kinds: Kinds,
    shortest: Duration,
    longest: Duration,
    paces: Mutex<Paces>,
}

#[derive(Debug, Default)]
struct Paces {
    by_kind: HashMap<String, Lately>,
    /// When operations under way were begun.
    begun: HashMap<OperationId, Timestamp>,
}

/// What is known of one kind.
#[derive(Debug, Default)]
struct Lately {
    /// How long the last ones took once they were begun, the newest last.
    took: VecDeque<Duration>,
    /// When they ended.
    ended: VecDeque<Timestamp>,
    /// The oldest open ones, as of the last look.
    open: Vec<OperationId>,
    asked_at: Option<Instant>,
}

impl Pace {
    /// Knows nothing yet. What callers are told is at least `shortest` and at most `longest`.
    pub(crate) fn new(kinds: Kinds, (shortest, longest): (Duration, Duration)) -> Self {
        Self(Arc::new(Inner { kinds, shortest, longest, paces: Mutex::default() }))
    }

    /// Learns from what the store has of the time before a restart.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn warm_up(&self, store: &Store) -> Result<(), StoreError> {
        for kind in self.0.kinds.names() {
            let took = store.took_lately(kind.clone(), WINDOW).await?;
            let mut paces = self.lock();
            let lately = paces.by_kind.entry(kind).or_default();
            for (created_at, ended_at) in took {
                lately.note(between(created_at, ended_at), ended_at);
            }
        }
        Ok(())
    }

    /// Looks every second who waits, for the kinds that somebody asks about, until `shutdown`.
    pub(crate) async fn look(&self, store: &Store, shutdown: &CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            for kind in self.asked_about() {
                match store.open_of_kind(kind.clone(), AHEAD_MAX).await {
                    Ok(open) => self.lock().by_kind.entry(kind).or_default().open = open,
                    Err(error) => tracing::debug!(%error, "cannot look who waits"),
                }
            }
        }
    }

    fn asked_about(&self) -> Vec<String> {
        let mut paces = self.lock();
        let mut asked = Vec::new();
        for (kind, lately) in &mut paces.by_kind {
            match lately.asked_at {
                Some(at) if at.elapsed() < LATELY => asked.push(kind.clone()),
                Some(_) => (lately.asked_at, lately.open) = (None, Vec::new()),
                None => {}
            }
        }
        asked
    }

    /// Takes note of an operation that a provider works on.
    pub(crate) fn progressed(&self, operation: &Operation) {
        let mut paces = self.lock();
        if matches!(operation.state, State::Running(_)) && paces.begun.len() < BEGUN_MAX {
            paces.begun.entry(operation.id).or_insert(operation.updated_at);
        }
    }

    /// Takes note of an operation that has ended.
    pub(crate) fn ended(&self, operation: &Operation) {
        let slots = self.slots(operation);
        let mut paces = self.lock();
        let begun = paces.begun.remove(&operation.id);
        // How long somebody thought it over, or nobody was there, says nothing of the next.
        let typical = match &operation.state {
            State::Succeeded => operation.attempts_before == 0,
            State::Failed(problem) => operation.attempts_before == 0 && !problem.is("deadline-exceeded"),
            _ => false,
        };
        if !typical {
            return;
        }
        let ended_at = operation.ended_at.unwrap_or(operation.updated_at);
        let lately = paces.by_kind.entry(operation.kind.clone()).or_default();
        let begun = begun.unwrap_or_else(|| lately.begun(operation, 0, slots));
        lately.note(between(begun, ended_at), ended_at);
    }

    /// In how many seconds it is worth asking for `operation` again (RFC 9110 section 10.2.3).
    #[must_use]
    pub(crate) fn retry_after(&self, operation: &Operation, now: Timestamp) -> u64 {
        let (slots, pause) = (self.slots(operation), operation.next_attempt_at().map(|next| between(now, next)));
        let mut paces = self.lock();
        let known = paces.begun.get(&operation.id).copied();
        let lately = paces.by_kind.entry(operation.kind.clone()).or_default();
        lately.asked_at = Some(Instant::now());
        let ahead = match operation.state {
            State::NotStarted if operation.steps.is_empty() => lately.open.partition_point(|id| *id < operation.id),
            _ => 0,
        };
        let begun = known.unwrap_or_else(|| lately.begun(operation, ahead, slots));
        let elapsed = if pause.is_some() { Duration::ZERO } else { between(begun, now) };
        let report = match &operation.state {
            State::Running(progress) if operation.steps.is_empty() && pause.is_none() => progress.percent,
            _ => None,
        };
        let report = report.map(|percent| (percent, between(operation.updated_at, now)));
        let took = lately.took.make_contiguous();
        let wait = estimate::wait(&Outlook { took, ahead, slots, elapsed, report }) + pause.unwrap_or_default();
        drop(paces);
        // At its deadline it has ended in any case.
        let wait = wait.min(between(now, operation.deadline)).clamp(self.0.shortest, self.0.longest);
        (wait.as_secs_f64().ceil() as u64).max(1)
    }

    /// How many operations of its kind are worked on at once. Of providers that do not say so, one is certain.
    fn slots(&self, operation: &Operation) -> usize {
        let (_, slots) = self.0.kinds.providers(&operation.asks, Timestamp::now());
        (slots as usize).max(1)
    }

    fn lock(&self) -> MutexGuard<'_, Paces> {
        self.0.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lately {
    fn note(&mut self, took: Duration, ended_at: Timestamp) {
        self.took.push_back(took);
        self.ended.push_back(ended_at);
        if self.took.len() > WINDOW {
            self.took.pop_front();
            self.ended.pop_front();
        }
    }

    /// When an operation with so many `ahead` was probably begun: when it was accepted, or when another made room for it.
    /// Short work is not reported before its end, nor is that of plain RPC servers.
    fn begun(&self, operation: &Operation, ahead: usize, slots: usize) -> Timestamp {
        let made_room = slots.checked_sub(ahead).and_then(|back| self.ended.len().checked_sub(back));
        let made_room = made_room.and_then(|place| self.ended.get(place));
        match made_room {
            Some(at) if operation.steps.is_empty() => operation.created_at.max(*at),
            _ => operation.created_at,
        }
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULTS};
    use crate::operation::after;
    use shared::message::Progress;

    fn pace() -> Pace {
        let config: Config = shared::config::load(DEFAULTS, "REQUESTOR_UNIT_TEST", None).unwrap();
        Pace::new(Kinds::load(&config).unwrap(), (Duration::from_secs(1), Duration::from_secs(100)))
    }

    fn at(seconds: u64) -> Timestamp {
        after(Timestamp::UNIX_EPOCH, Duration::from_secs(seconds))
    }

    fn accepted(seconds: u64) -> Operation {
        Operation::new("echo", at(seconds), Duration::from_secs(1000), Duration::from_secs(5))
    }

    fn end(pace: &Pace, mut operation: Operation, seconds: u64) {
        (operation.state, operation.updated_at, operation.ended_at) =
            (State::Succeeded, at(seconds), Some(at(seconds)));
        pace.ended(&operation);
    }

    fn running(mut operation: Operation, seconds: u64, percent: Option<f64>) -> Operation {
        let progress = Progress { step: 1, attempt: 1, sequence: 1, percent, message: None, lease: None };
        (operation.state, operation.updated_at) = (State::Running(progress), at(seconds));
        operation
    }

    #[test]
    fn callers_are_asked_to_come_back_when_it_is_probably_done() {
        let pace = pace();
        assert_eq!(pace.retry_after(&accepted(0), at(0)), 1, "nothing is known");
        end(&pace, accepted(0), 20);
        assert_eq!(pace.retry_after(&accepted(30), at(35)), 15);
        assert_eq!(pace.retry_after(&accepted(30), at(70)), 20, "longer than any");
        assert_eq!(pace.retry_after(&accepted(30), at(400)), 100, "http.retry_after_max");
        assert_eq!(pace.retry_after(&accepted(30), at(1025)), 5, "its deadline");
    }

    #[test]
    fn time_in_the_queue_is_not_taken_for_work() {
        let pace = pace();
        // Four that were accepted together, of a provider with one slot that needs ten seconds for each.
        for n in 1..=4 {
            end(&pace, accepted(0), n * 10);
        }
        assert_eq!(pace.lock().by_kind["echo"].took, [Duration::from_secs(10); 4]);
        // One that said when it was begun.
        let operation = accepted(0);
        pace.progressed(&running(operation.clone(), 90, None));
        end(&pace, operation, 100);
        assert_eq!(pace.lock().by_kind["echo"].took, [Duration::from_secs(10); 5]);
        assert!(pace.lock().begun.is_empty());
    }

    #[test]
    fn those_ahead_and_percentages_are_taken_into_account() {
        let pace = pace();
        end(&pace, accepted(0), 10);
        let queue: Vec<_> = (0..5).map(|_| accepted(20)).collect();
        pace.lock().by_kind.get_mut("echo").unwrap().open = queue.iter().map(|operation| operation.id).collect();
        assert_eq!(pace.retry_after(&queue[0], at(20)), 10);
        assert_eq!(pace.retry_after(&queue[3], at(20)), 40);
        assert_eq!(pace.retry_after(&accepted(20), at(20)), 60);
        let begun = running(queue[0].clone(), 24, None);
        pace.progressed(&begun);
        assert_eq!(pace.retry_after(&begun, at(30)), 4);
        assert_eq!(pace.retry_after(&running(begun, 44, Some(50.0)), at(44)), 20);
    }
}
