//! What runs now, and what was canceled lately.

use super::acks::Taken;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Redeliveries after lost connections that a running job holds on to; at six the broker gives the request up.
const JOINED_DELIVERIES_MAX: i64 = 3;
/// Canceled requests of pure kinds that are remembered, so that a copy in the queue is not begun. One that is forgotten
/// is work for nothing and no more; a name takes some 100 bytes.
const CANCELED_MAX: usize = 10_000;

/// The requests that are carried out or wait for a slot, by identity.
///
/// The broker delivers a request again when the connection is lost, and the requestor sends it again when it has heard
/// nothing for long; such a delivery joins the running job.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<String, Held>>);

/// What belongs to a running job.
#[derive(Debug)]
pub(super) struct Held {
    /// The delivery to settle at the job's end.
    pub(super) delivery: Option<Taken>,
    /// The attempt that the delivery asks for; not less than that of the job.
    attempt: u32,
    /// Whether the delivery is to be given back at the job's end, since the job does not answer it.
    pub(super) another: bool,
    /// Whether the job's reply is on its way.
    answering: bool,
    /// Whether the job has acknowledged its delivery early.
    pub(super) leased: bool,
    canceled: CancellationToken,
}

/// What a delivery asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) attempt: u32,
    /// How often it was delivered before.
    pub(super) deliveries: i64,
    /// Whether no requestor asks, who would know a reply that it had already.
    pub(super) foreign: bool,
}

/// What becomes of a delivery.
pub(super) enum Joined {
    /// Nothing runs its request: it is to be begun, and given up when the token is cancelled.
    No(CancellationToken),
    /// The running job settles it.
    Held,
    /// This delivery is to be acknowledged now: a copy of one that is still held, of a request that has a lease, or
    /// one that was lost so often that it would soon be taken for a request that kills its providers.
    Superfluous(Taken),
}

impl Running {
    /// Joins a delivery to the job that runs its request, or begins one.
    pub(super) fn join(&self, identity: &str, taken: Taken, asked: Asked) -> Joined {
        match self.lock().entry(identity.to_owned()) {
            Entry::Vacant(vacant) => {
                let canceled = CancellationToken::new();
                let attempt = asked.attempt;
                vacant.insert(Held {
                    delivery: Some(taken),
                    attempt,
                    another: false,
                    answering: false,
                    leased: false,
                    canceled: canceled.clone(),
                });
                Joined::No(canceled)
            }
            Entry::Occupied(mut occupied) => occupied.get_mut().join(taken, asked),
        }
    }

    /// Tells the job, if there is one, that its request is canceled for certain.
    pub(super) fn cancel(&self, identity: &str) {
        if let Some(held) = self.lock().get(identity) {
            held.canceled.cancel();
        }
    }

    /// Notes that the job acknowledges its delivery early, and returns the delivery.
    pub(super) fn lease(&self, identity: &str) -> Option<Taken> {
        let mut running = self.lock();
        let held = running.get_mut(identity)?;
        held.leased = true;
        held.delivery.take()
    }

    /// The job's reply is on its way from now on.
    pub(super) fn answering(&self, identity: &str) {
        if let Some(held) = self.lock().get_mut(identity) {
            held.answering = true;
        }
    }

    /// The job has ended.
    pub(super) fn remove(&self, identity: &str) -> Option<Held> {
        self.lock().remove(identity)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn join(&mut self, taken: Taken, Asked { attempt, deliveries, foreign }: Asked) -> Joined {
        let usable = self.delivery.as_ref().is_some_and(Taken::usable);
        // Who keeps no record may have had the reply already, and asks for it once more.
        if attempt > self.attempt || (foreign && self.answering && usable) {
            self.attempt = self.attempt.max(attempt);
            self.another = true;
            return self.delivery.replace(taken).map_or(Joined::Held, Joined::Superfluous);
        }
        if self.leased || usable || deliveries >= JOINED_DELIVERIES_MAX {
            return Joined::Superfluous(taken);
        }
        self.delivery = Some(taken);
        Joined::Held
    }
}

/// The requests of pure kinds that were canceled last.
#[derive(Debug, Default)]
pub(super) struct Canceled(Mutex<(HashSet<String>, VecDeque<String>)>);

impl Canceled {
    /// Remembers one, and forgets the oldest if there are too many.
    pub(super) fn insert(&self, identity: &str) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (set, order) = &mut *guard;
        if set.insert(identity.to_owned()) {
            order.push_back(identity.to_owned());
        }
        if order.len() > CANCELED_MAX
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
    }

    /// Whether it is remembered.
    pub(super) fn contains(&self, identity: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.contains(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_cancel_is_forgotten_first() {
        let canceled = Canceled::default();
        for n in 0..=CANCELED_MAX {
            canceled.insert(&n.to_string());
            canceled.insert(&n.to_string());
        }
        assert!(!canceled.contains("0") && canceled.contains("1") && canceled.contains(&CANCELED_MAX.to_string()));
    }
}
