//! Acknowledges together: a `basic.ack` is one entry in the log of a quorum queue, however many deliveries it is for.

use futures_util::future::join_all;
use lapin::Acker;
use lapin::message::Delivery;
use lapin::types::DeliveryTag;
use shared::amqp::{self, Settle};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long an acknowledgement waits for others while more are to come. What is taken ahead lasts longer than that, so
/// that no slot waits for its next delivery.
const TOGETHER: Duration = Duration::from_millis(2);

/// The deliveries of one channel that are not settled.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsettled(Arc<Mutex<Tags>>);

#[derive(Debug)]
struct Tags<A = Acker> {
    /// Not done with, or being settled alone: nothing from the first of them on can be acknowledged with `multiple`,
    /// which takes all up to its tag, and no tag twice (AMQP 0-9-1, `basic.ack`).
    open: BTreeSet<DeliveryTag>,
    /// To be acknowledged.
    done: BTreeMap<DeliveryTag, A>,
    /// Whether somebody acknowledges what is done: one at a time, so that what goes alone is before what takes all.
    busy: bool,
}

/// A delivery that was taken and is to be settled once.
#[derive(Debug)]
pub(super) struct Taken {
    acker: Acker,
    tag: DeliveryTag,
    of: Unsettled,
}

impl Unsettled {
    /// Takes a delivery. All of a channel are to be taken in their order, or settled alone before the next is taken.
    pub(super) fn take(&self, delivery: &Delivery) -> Taken {
        self.lock().open.insert(delivery.delivery_tag);
        Taken { acker: delivery.acker.clone(), tag: delivery.delivery_tag, of: self.clone() }
    }

    /// Acknowledges what is done until nothing is.
    async fn acknowledge(&self) {
        loop {
            if !self.lock().open.is_empty() {
                tokio::time::sleep(TOGETHER).await;
            }
            let next = self.lock().next();
            if next.is_empty() {
                return;
            }
            join_all(next.iter().map(|(acker, how)| settle(acker, *how))).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tags> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> Default for Tags<A> {
    fn default() -> Self {
        Self { open: BTreeSet::new(), done: BTreeMap::new(), busy: false }
    }
}

impl<A> Tags<A> {
    /// Notes that a delivery is done with. Returns whether the caller is to acknowledge what is done, since nobody does.
    fn done(&mut self, tag: DeliveryTag, acker: A) -> bool {
        self.open.remove(&tag);
        self.done.insert(tag, acker);
        !std::mem::replace(&mut self.busy, true)
    }

    /// What is to be acknowledged, the first perhaps with all before it. When nothing is, nobody is busy any more.
    fn next(&mut self) -> Vec<(A, Settle)> {
        let later = self.open.first().map(|oldest| self.done.split_off(oldest)).unwrap_or_default();
        let all = self.done.pop_last().map(|(_, acker)| (acker, Settle::AckAll));
        self.done.clear();
        let next: Vec<_> = all.into_iter().chain(later.into_values().map(|acker| (acker, Settle::Ack))).collect();
        self.busy = !next.is_empty();
        next
    }
}

impl Taken {
    /// Whether the broker still waits for it to be settled.
    pub(super) fn usable(&self) -> bool {
        self.acker.usable()
    }

    /// Settles it. One that the session was lost of cannot be settled, and comes again.
    pub(super) async fn settle(self, how: Settle) {
        if how != Settle::Ack {
            return self.settle_alone(how).await;
        }
        let first = self.of.lock().done(self.tag, self.acker);
        if first {
            self.of.acknowledge().await;
        }
    }

    /// Settles it at once, whatever else is to be settled.
    pub(super) async fn settle_alone(self, how: Settle) {
        settle(&self.acker, how).await;
        self.of.lock().open.remove(&self.tag);
    }
}

async fn settle(acker: &Acker, how: Settle) {
    if let Err(error) = amqp::settle(acker, how).await {
        tracing::debug!(%error, "delivery not settled; it comes again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags of which the first `count` are taken.
    fn taken(count: u64) -> Tags<u64> {
        Tags { open: (1..=count).collect(), ..Tags::default() }
    }

    #[test]
    fn all_before_the_oldest_open_one_are_acknowledged_together_and_others_alone() {
        let mut tags = taken(7);
        assert!(tags.done(2, 2), "the first is to acknowledge");
        for tag in [1, 3, 5, 7] {
            assert!(!tags.done(tag, tag), "the others are not");
        }
        assert_eq!(tags.next(), [(3, Settle::AckAll), (5, Settle::Ack), (7, Settle::Ack)]);
        tags.done(6, 6);
        assert_eq!(tags.next(), [(6, Settle::Ack)], "4 is open");
        tags.done(4, 4);
        assert_eq!(tags.next(), [(4, Settle::AckAll)]);
        assert_eq!(tags.next(), []);
        assert!(tags.done(8, 8), "nobody acknowledges any more");
    }
}
