//! The queue before a writer, who commits together what waits: work under way goes before new work, so that however much
//! is asked, what was accepted comes to its end.

use super::DatabaseError;
use std::time::Duration;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Writes of work under way that may wait.
const UNDER_WAY_MAX: usize = 4096;
/// Writes of new work that may wait: some tenths of a second. More would only wait longer, so it is refused.
const NEW_MAX: usize = 2048;
/// The part of a batch that is kept for new work: one in so many, so that a flood of reports does not stop all submits.
const NEW_SHARE: usize = 4;
/// How long a full queue is waited for before the caller is told to come back.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to a writer. Cheap to clone.
pub struct Writes<T> {
    under_way: Sender<T>,
    new: Sender<T>,
}

/// The writer's end.
pub struct Waiting<T> {
    under_way: Receiver<T>,
    new: Receiver<T>,
}

/// Both ends of a queue.
#[must_use]
pub fn queue<T>() -> (Writes<T>, Waiting<T>) {
    let ((to_under_way, under_way), (to_new, new)) = (mpsc::channel(UNDER_WAY_MAX), mpsc::channel(NEW_MAX));
    (Writes { under_way: to_under_way, new: to_new }, Waiting { under_way, new })
}

impl<T> Clone for Writes<T> {
    fn clone(&self) -> Self {
        Self { under_way: self.under_way.clone(), new: self.new.clone() }
    }
}

impl<T> std::fmt::Debug for Writes<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "room for {} under way and {} new", self.under_way.capacity(), self.new.capacity())
    }
}

impl<T> std::fmt::Debug for Waiting<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} under way and {} new", self.under_way.len(), self.new.len())
    }
}

impl<T> Writes<T> {
    /// Takes a write of work under way.
    ///
    /// # Errors
    /// [`DatabaseError::Busy`] when there was no room for 5 s.
    pub async fn send(&self, write: T) -> Result<(), DatabaseError> {
        self.under_way.send_timeout(write, BUSY_TIMEOUT).await.map_err(|_| DatabaseError::Busy)
    }

    /// Takes a write that brings more work.
    ///
    /// # Errors
    /// [`DatabaseError::Busy`] at once when there is no room.
    pub fn send_new(&self, write: T) -> Result<(), DatabaseError> {
        self.new.try_send(write).map_err(|_| DatabaseError::Busy)
    }

    /// Takes a write behind all others, however long that takes.
    pub(super) async fn send_last(&self, write: T) {
        let _ = self.new.send(write).await;
    }
}

impl<T> Waiting<T> {
    /// Waits until something waits, and moves what does into `batch`, which then has at most `max`. Returns false when
    /// nothing can come any more.
    pub async fn receive(&mut self, batch: &mut Vec<T>, max: usize) -> bool {
        tokio::select! {
            biased;
            Some(write) = self.under_way.recv() => batch.push(write),
            Some(write) = self.new.recv() => batch.push(write),
            else => return false,
        }
        self.fill(batch, max);
        true
    }

    /// The same without waiting.
    pub fn fill(&mut self, batch: &mut Vec<T>, max: usize) {
        take(&mut self.under_way, batch, max - max / NEW_SHARE);
        take(&mut self.new, batch, max);
        take(&mut self.under_way, batch, max);
    }
}

fn take<T>(queue: &mut Receiver<T>, batch: &mut Vec<T>, max: usize) {
    while batch.len() < max
        && let Ok(write) = queue.try_recv()
    {
        batch.push(write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn work_under_way_goes_first_and_new_work_has_its_share() {
        let (writes, mut waiting) = queue();
        for number in 0..6 {
            writes.send_new(("new", number)).unwrap();
        }
        for number in 0..8 {
            writes.send(("under way", number)).await.unwrap();
        }
        let mut batch = Vec::new();
        assert!(waiting.receive(&mut batch, 8).await);
        let under_way = |range: std::ops::Range<i32>| range.map(|number| ("under way", number)).collect::<Vec<_>>();
        assert_eq!(batch, [under_way(0..6), vec![("new", 0), ("new", 1)]].concat());
        batch.clear();
        assert!(waiting.receive(&mut batch, 8).await);
        assert_eq!(batch, [under_way(6..8), (2..6).map(|number| ("new", number)).collect()].concat());
        drop(writes);
        assert!(!waiting.receive(&mut batch, 8).await);
    }

    #[tokio::test]
    async fn new_work_is_refused_at_once_and_work_under_way_waits_for_room() {
        let (writes, mut waiting) = queue();
        let new = (0..=NEW_MAX).filter(|_| writes.send_new(()).is_err()).count();
        assert_eq!(new, 1);
        for _ in 0..UNDER_WAY_MAX {
            assert_eq!(writes.send(()).await, Ok(()), "no new work has taken its room");
        }
        let mut more = Box::pin(writes.send(()));
        assert!((&mut more).now_or_never().is_none());
        assert!(waiting.receive(&mut Vec::new(), 1).await);
        assert_eq!(more.await, Ok(()));
    }
}
