//! Hands outcomes to those who wait for them in this process, so that they need not read what was just written.

use crate::operation::Operation;
use shared::message::{Content, OperationId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// An operation, and its result where that is at hand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) operation: Operation,
    pub(crate) result: Option<Content>,
}

type Sender = watch::Sender<Option<Arc<Seen>>>;

/// Who waits for which outcome. Nothing depends on it: a waiter also reads the store now and then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes(Arc<Mutex<HashMap<OperationId, Sender>>>);

/// A wish to have one operation's outcome, as long as it is held.
#[derive(Debug)]
pub(crate) struct Awaiting {
    outcomes: Outcomes,
    id: OperationId,
    /// Taken by drop only.
    outcome: Option<watch::Receiver<Option<Arc<Seen>>>>,
}

impl Outcomes {
    /// Waits for the outcome of `id` from now on. What has ended before is in the store: read it after this, not before.
    pub(crate) fn expect(&self, id: OperationId) -> Awaiting {
        let outcome = self.lock().entry(id).or_default().subscribe();
        Awaiting { outcomes: self.clone(), id, outcome: Some(outcome) }
    }

    /// The operation has ended, and that is durable.
    pub(crate) fn hand(&self, operation: &Operation, result: Option<&Content>) {
        if let Some(sender) = self.lock().get(&operation.id) {
            sender.send_replace(Some(Arc::new(Seen { operation: operation.clone(), result: result.cloned() })));
        }
    }

    /// Another instance has changed these: who waits for them here is to read the store.
    pub(crate) fn look(&self, ids: impl Iterator<Item = OperationId>) {
        let waiters = self.lock();
        for sender in ids.filter_map(|id| waiters.get(&id)) {
            // Not over an outcome that was handed and not yet taken.
            sender.send_modify(|_| {});
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, Sender>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Awaiting {
    /// Which operation's.
    pub(crate) fn id(&self) -> OperationId {
        self.id
    }

    /// The outcome, when it is handed over; none when the store may have it.
    pub(crate) async fn outcome(&mut self) -> Option<Seen> {
        let outcome = self.outcome.as_mut()?;
        // The sender stays in the map as long as this is held, so there is no error.
        let _ = outcome.changed().await;
        outcome.borrow_and_update().as_deref().cloned()
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        let mut waiters = self.outcomes.lock();
        // Under the lock, so that of two that are dropped together the second sees that it is the last.
        self.outcome = None;
        if waiters.get(&self.id).is_some_and(|sender| sender.receiver_count() == 0) {
            waiters.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use jiff::Timestamp;
    use std::time::Duration;

    #[test]
    fn an_outcome_is_handed_to_all_who_wait_and_to_none_after() {
        let outcomes = Outcomes::default();
        let operation = Operation::new("echo", Timestamp::now(), Duration::from_secs(1), Duration::from_secs(1));
        let result = Content::json("1");
        outcomes.hand(&operation, Some(&result));
        let mut both = [outcomes.expect(operation.id), outcomes.expect(operation.id)];
        assert!(both[0].outcome().now_or_never().is_none());
        outcomes.hand(&operation, Some(&result));
        for one in &mut both {
            let seen = one.outcome().now_or_never().flatten().unwrap();
            assert_eq!((seen.operation.id, seen.result.as_ref()), (operation.id, Some(&result)));
        }
        let mut late = outcomes.expect(OperationId::new());
        outcomes.look([late.id(), operation.id].into_iter());
        assert_eq!(late.outcome().now_or_never(), Some(None), "it is to be read");
        drop((both, late));
        assert!(outcomes.lock().is_empty());
    }
}
