//! Reads pages of the log, each once for all followers that want it at the same time.

use super::follower::Log;
use super::page::{EventView, Page, Piece};
use crate::store::{LoggedEvent, Lost, Scope, Store, StoreError};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Events in a page. A stream holds one page, and what the connection has not sent yet.
const PAGE_EVENTS: usize = 100;
/// From so many entries on, those that nobody reads any more are taken out.
const SWEEP_FROM: usize = 64;

/// What a follower reads.
#[derive(Clone, Debug)]
pub(super) enum Read {
    /// Events, the number of the last, and whether the operation has ended with it.
    Events { piece: Piece, last: u64, ended: bool },
    /// There is nothing new; whether the operation has ended.
    Nothing { ended: bool },
    /// It cannot simply go on.
    Lost(Lost),
    /// There is no such operation any more.
    Forgotten,
}

type ReadFuture = BoxFuture<'static, Result<Read, StoreError>>;
pub(super) type Reading = Shared<ReadFuture>;

/// Which page. The last is the wake-up after which it is read: what was read after an earlier one may lack something.
type Key = (Scope, Log, u64, u64);

/// Pages that are being read or sent. They go with the last follower that holds them.
#[derive(Debug, Default)]
pub(crate) struct SharedPages(Mutex<HashMap<Key, WeakShared<ReadFuture>>>);

impl SharedPages {
    pub(super) fn read(&self, store: &Store, key: Key, behind_max: usize) -> Reading {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = pages.get(&key).and_then(WeakShared::upgrade) {
            return reading;
        }
        if pages.len() == pages.capacity().max(SWEEP_FROM) {
            pages.retain(|_, page| page.upgrade().is_some());
        }
        let (scope, log, after, _) = key.clone();
        let reading = read(store.clone(), scope, log, after, behind_max).boxed().shared();
        if let Some(weak) = reading.downgrade() {
            pages.insert(key, weak);
        }
        reading
    }
}

async fn read(store: Store, scope: Scope, log: Log, after: u64, behind_max: usize) -> Result<Read, StoreError> {
    match log {
        Log::Operation(id) => {
            let Some(page) = store.operation_log(scope, id, after, PAGE_EVENTS).await? else {
                return Ok(Read::Forgotten);
            };
            if after > page.last {
                return Ok(Read::Lost(Lost::Unknown));
            }
            if page.last - after > behind_max as u64 {
                return Ok(Read::Lost(Lost::Behind));
            }
            let ended = |last| page.ended && last == page.last;
            Ok(render(&page.events, after, |event| (event.number, EventView::of_one(event)), ended))
        }
        Log::All => {
            let page = store.log_of_all(scope, after, (PAGE_EVENTS, Some(behind_max))).await?;
            if let Some(lost) = page.lost {
                return Ok(Read::Lost(lost));
            }
            Ok(render(&page.events, after, |event| (event.sequence, EventView::of_all(event)), |_| false))
        }
    }
}

fn render<'a>(
    events: &'a [LoggedEvent],
    after: u64,
    view: impl Fn(&'a LoggedEvent) -> (u64, EventView<'a>),
    ended: impl Fn(u64) -> bool,
) -> Read {
    let (mut page, mut last) = (Page::default(), after);
    for event in events {
        let (number, view) = view(event);
        page.push(Some(number), &event.event_type, &view);
        last = number;
    }
    match events.is_empty() {
        true => Read::Nothing { ended: ended(last) },
        false => Read::Events { piece: page.finish(), last, ended: ended(last) },
    }
}
