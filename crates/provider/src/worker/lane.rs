//! How many requests of a kind are held at once: as many as there are slots, and of short ones some ahead.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// How long a request that is taken ahead waits here at most, as things go: less than what another provider could do for
/// it meanwhile, and many times what it takes to have its reply confirmed and the next request delivered, so that many
/// replies are confirmed and stored together. With 20 ms all, the broker too, had twice the work that they had with 100 ms.
const AHEAD: Duration = Duration::from_millis(50);
/// How often the pace is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The requests of one kind.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) slots: Arc<Semaphore>,
    concurrency: usize,
    ahead_max: usize,
    window: watch::Sender<Window>,
    pace: Mutex<Pace>,
}

/// What is taken beside the free slots, and what of them is not free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    /// Slots of jobs that have acknowledged their delivery early, so that the broker would send another in its place.
    leased: usize,
    /// Deliveries beyond the slots.
    ahead: usize,
}

#[derive(Debug)]
struct Pace {
    since: Instant,
    ended: u32,
    /// How long those that ended had their slots, all together.
    took: Duration,
}

impl Lane {
    pub(super) fn new(concurrency: usize, ahead_max: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(concurrency)),
            concurrency,
            ahead_max,
            window: watch::Sender::default(),
            pace: Mutex::new(Pace::new(Instant::now())),
        }
    }

    /// Follows how many may be held. It begins with the slots alone: what kills its provider is then delivered again with
    /// few others, which are not taken for killers themselves.
    pub(super) fn held(&self) -> Held<'_> {
        Held { lane: self, window: self.window.subscribe() }
    }

    /// A request has ended, reply and all, which had its slot for so long. Those that are short raise what is taken ahead,
    /// those that are long lower it.
    pub(super) fn ended(&self, took: Duration) {
        let ahead =
            self.pace.lock().unwrap_or_else(PoisonError::into_inner).ended(Instant::now(), took, self.ahead_max);
        if let Some(ahead) = ahead {
            self.window.send_if_modified(|window| window.follow(ahead));
        }
    }

    pub(super) fn lease(&self) {
        self.window.send_modify(|window| window.leased += 1);
    }

    pub(super) fn end_lease(&self) {
        self.window.send_modify(|window| window.leased -= 1);
    }
}

impl Pace {
    fn new(since: Instant) -> Self {
        Self { since, ended: 0, took: Duration::ZERO }
    }

    /// How many end within [`AHEAD`], when it is time to look. If it holds that many, it never waits for the broker. It
    /// is 0 if each takes longer than that: then many that ended together say nothing of when the next will.
    fn ended(&mut self, now: Instant, took: Duration, max: usize) -> Option<usize> {
        self.ended += 1;
        self.took += took;
        let passed = now - self.since;
        if passed < LOOK_EVERY {
            return None;
        }
        let Self { ended, took, .. } = std::mem::replace(self, Self::new(now));
        if took > AHEAD * ended {
            return Some(0);
        }
        let ahead = f64::from(ended) * AHEAD.as_secs_f64() / passed.as_secs_f64();
        Some((ahead as usize).min(max))
    }
}

impl Window {
    /// Changes only by much, since the consumer is made anew for it.
    fn follow(&mut self, ahead: usize) -> bool {
        let changes = ahead >= 2 * self.ahead.max(1) || 4 * ahead < self.ahead;
        if changes {
            self.ahead = ahead;
        }
        changes
    }
}

/// What a consumer may hold.
pub(super) struct Held<'a> {
    lane: &'a Lane,
    window: watch::Receiver<Window>,
}

impl Held<'_> {
    /// How many deliveries may be held now.
    pub(super) fn now(&mut self) -> u16 {
        let Window { leased, ahead } = *self.window.borrow_and_update();
        let held = match self.lane.concurrency.saturating_sub(leased) {
            0 => 0,
            // Where a job is long, others may be, and what is held could not be begun elsewhere.
            free if leased > 0 => free,
            free => free + ahead,
        };
        u16::try_from(held).unwrap_or(u16::MAX)
    }

    /// Returns when it may be another number.
    pub(super) async fn changed(&mut self) {
        // The lane has the sender, so there is no error.
        let _ = self.window.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    /// What a lane holds after requests that take so long and end at this rate, in steps of a tenth of a second.
    fn held_at(lane: &Lane, held: &mut Held<'_>, took: Duration, each_second: u32) -> u16 {
        let mut now = Instant::now();
        for _ in 0..10 {
            lane.pace.lock().unwrap().since = now;
            for _ in 0..each_second / 10 - 1 {
                lane.pace.lock().unwrap().ended(now, took, lane.ahead_max);
            }
            now += LOOK_EVERY;
            let ahead = lane.pace.lock().unwrap().ended(now, took, lane.ahead_max).unwrap();
            lane.window.send_if_modified(|window| window.follow(ahead));
        }
        held.now()
    }

    #[tokio::test]
    async fn short_requests_are_taken_ahead_and_long_ones_are_not() {
        let lane = Lane::new(2, 512);
        let mut held = lane.held();
        assert_eq!(held.now(), 2);
        assert_eq!(held_at(&lane, &mut held, Duration::from_millis(200), 10), 2);
        assert_eq!(held_at(&lane, &mut held, SHORT, 1000), 52);
        assert_eq!(held_at(&lane, &mut held, SHORT, 1100), 52, "a little more is no reason for a new consumer");
        assert_eq!(held_at(&lane, &mut held, SHORT, 100_000), 514, "not beyond the limit");
        assert_eq!(held_at(&lane, &mut held, 2 * AHEAD, 100_000), 2, "long ones that end together");
        lane.lease();
        assert_eq!(held.now(), 1);
        lane.lease();
        assert_eq!(held.now(), 0);
        lane.end_lease();
        lane.end_lease();
        assert_eq!(held_at(&lane, &mut held, SHORT, 10), 2);
    }
}
