//! Wakes whoever waits for an operation, or for any of a caller's.

use crate::store::{Changed, Scope};
use shared::message::OperationId;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// What somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// One operation.
    Operation(OperationId),
    /// All operations in a scope.
    All(Scope),
}

/// Who waits for what. Nothing depends on it: a waiter also reads the store now and then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiters: Mutex<Waiters>,
    /// What has changed since [`Watch::run`] last looked; only what is waited for.
    changed: Mutex<HashSet<Subject>>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Waiters {
    by_subject: HashMap<Subject, watch::Sender<u64>>,
    /// Never given twice, so that what was read after one wake-up is not taken for what was read after another.
    last_wake: u64,
}

/// A wish to hear of one subject, as long as it is held.
#[derive(Debug)]
pub(crate) struct Subscription {
    watch: Watch,
    subject: Subject,
    /// Taken by drop only.
    changes: Option<watch::Receiver<u64>>,
}

impl Watch {
    /// Subscribes. Read the store after this, not before, or a change in between is missed.
    #[must_use]
    pub(crate) fn subscribe(&self, subject: Subject) -> Subscription {
        let mut waiters = lock(&self.0.waiters);
        let wake = waiters.next_wake();
        let sender = waiters.by_subject.entry(subject.clone()).or_insert_with(|| watch::Sender::new(wake));
        let changes = Some(sender.subscribe());
        Subscription { watch: self.clone(), subject, changes }
    }

    /// Has all woken who wait for one of these. Called by the store's writer, which it takes no longer than looking
    /// them up, however many wait.
    pub(crate) fn notify(&self, changes: Vec<Changed>) {
        if changes.is_empty() {
            return;
        }
        let subjects = changes.into_iter().flat_map(|Changed { id, owner }| {
            [Subject::Operation(id), Subject::All(Scope::Of(owner)), Subject::All(Scope::All)]
        });
        let waiters = lock(&self.0.waiters);
        let waited_for = subjects.filter(|subject| waiters.by_subject.contains_key(subject));
        lock(&self.0.changed).extend(waited_for);
        drop(waiters);
        self.0.bell.notify_one();
    }

    /// Wakes waiters, once for all that has changed meanwhile; never returns.
    pub(crate) async fn run(&self) {
        loop {
            self.0.bell.notified().await;
            let changed = std::mem::take(&mut *lock(&self.0.changed));
            let waited_for = self.senders(changed);
            // Not under the lock, since there may be thousands to wake.
            for (sender, wake) in waited_for {
                sender.send_replace(wake);
            }
        }
    }

    fn senders(&self, subjects: HashSet<Subject>) -> Vec<(watch::Sender<u64>, u64)> {
        let mut waiters = lock(&self.0.waiters);
        let wake = waiters.next_wake();
        subjects.iter().filter_map(|subject| Some((waiters.by_subject.get(subject)?.clone(), wake))).collect()
    }
}

impl Waiters {
    fn next_wake(&mut self) -> u64 {
        self.last_wake += 1;
        self.last_wake
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

    /// The last wake-up, which has then been heard. All who see the same may share what they read after it.
    pub(crate) fn wake(&mut self) -> u64 {
        self.changes.as_mut().map_or(0, |changes| *changes.borrow_and_update())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiters = lock(&self.watch.0.waiters);
        // Under the lock, so that of two that are dropped together the second sees that it is the last.
        self.changes = None;
        if waiters.by_subject.get(&self.subject).is_some_and(|sender| sender.receiver_count() == 0) {
            waiters.by_subject.remove(&self.subject);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// Lets `watch` wake whoever it has to.
    fn run(watch: &Watch) {
        assert!(watch.run().now_or_never().is_none());
    }

    fn change(id: OperationId) -> Changed {
        Changed { id, owner: "me".into() }
    }

    #[tokio::test]
    async fn a_change_between_subscribing_and_waiting_is_not_missed() {
        let (watch, id) = (Watch::default(), OperationId::new());
        let subject = Subject::Operation(id);
        let (mut first, second) = (watch.subscribe(subject.clone()), watch.subscribe(subject));
        watch.notify(vec![change(id)]);
        run(&watch);
        first.changed().await;
        assert!(first.changed().now_or_never().is_none());
        drop((first, second));
        assert!(lock(&watch.0.waiters).by_subject.is_empty());
    }

    #[tokio::test]
    async fn many_changes_are_one_wake_up_and_only_for_who_waits() {
        let watch = Watch::default();
        let mut mine = watch.subscribe(Subject::All(Scope::Of("me".into())));
        let mut other = watch.subscribe(Subject::All(Scope::Of("other".into())));
        let before = (mine.wake(), other.wake());
        watch.notify((0..100).map(|_| change(OperationId::new())).collect());
        assert_eq!(lock(&watch.0.changed).len(), 1);
        run(&watch);
        assert!(mine.wake() > before.0 && other.wake() == before.1);
        assert!(mine.changed().now_or_never().is_none());
    }
}
