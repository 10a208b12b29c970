//! Wakes whoever waits for an operation.

use shared::message::OperationId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

type Waiters = HashMap<OperationId, watch::Sender<()>>;

/// Who waits for which operation. Nothing depends on it: a waiter also reads the record now and then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Mutex<Waiters>>);

/// A wish to hear of one operation, as long as it is held.
#[derive(Debug)]
pub(crate) struct Subscription {
    watch: Watch,
    id: OperationId,
    /// Taken by drop only.
    changes: Option<watch::Receiver<()>>,
}

impl Watch {
    /// Subscribes. Read the record after this, not before, or a change in between is missed.
    #[must_use]
    pub(crate) fn subscribe(&self, id: OperationId) -> Subscription {
        let changes = self.lock().entry(id).or_insert_with(|| watch::Sender::new(())).subscribe();
        Subscription { watch: self.clone(), id, changes: Some(changes) }
    }

    /// Wakes all who wait for `id`.
    pub(crate) fn notify(&self, id: OperationId) {
        if let Some(waiters) = self.lock().get(&id) {
            waiters.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Returns after the next change, or at once if there was one since the last call.
    pub(crate) async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes {
            // The sender stays in the map as long as this subscription is held, so there is no error.
            let _ = changes.changed().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiters = self.watch.lock();
        // Under the lock, so that of two that are dropped together the second sees that it is the last.
        self.changes = None;
        if waiters.get(&self.id).is_some_and(|sender| sender.receiver_count() == 0) {
            waiters.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_change_between_subscribing_and_waiting_is_not_missed() {
        let (watch, id) = (Watch::default(), OperationId::new());
        let (mut first, second) = (watch.subscribe(id), watch.subscribe(id));
        watch.notify(id);
        first.changed().await;
        assert!(first.changed().now_or_never().is_none());
        drop((first, second));
        assert!(watch.lock().is_empty());
    }
}
