//! Follows a log: pulls page after page at the pace of its reader, so that it needs no memory but for one.

use super::page::{OpenView, Page, Piece, Reason, Snapshot};
use super::shared_pages::{Read, Reading};
use crate::callers::Caller;
use crate::http::App;
use crate::http::view::OperationView;
use crate::rules::half_jittered;
use crate::store::{Scope, StoreError};
use crate::watch::{Subject, Subscription};
use axum::http::HeaderMap;
use shared::message::OperationId;
use std::time::Duration;
use tokio::time::Instant;

/// The log is read at least this often, in case a wake-up is lost; half of it drawn, so that thousands of idle
/// followers do not read together.
const POLL: Duration = Duration::from_secs(60);

/// Which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Log {
    /// That of one operation.
    Operation(OperationId),
    /// That of all operations that the caller may see.
    All,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    /// To be sent.
    Piece(Piece),
    /// Nothing any more: the operation has ended, and its last event was sent.
    Ended,
    /// Nothing any more: the operation was forgotten.
    Forgotten,
}

/// A place in a log, from which on everything is told once.
#[derive(Debug)]
pub(super) struct Follower {
    app: App,
    scope: Scope,
    log: Log,
    base_url: String,
    /// The number of the last event that was given out. None: first of all a snapshot.
    after: Option<u64>,
    subscription: Subscription,
    /// Kept while its page is being sent, so that others who come for the same page find it.
    reading: Option<Reading>,
    /// Everything was told; what comes is waited for at most until then.
    idle_until: Option<Instant>,
    ended: bool,
}

impl Follower {
    /// Follows `log` from behind the event `after`; from a snapshot on if that is none.
    pub(super) fn new(app: &App, caller: &Caller, log: Log, after: Option<u64>, headers: &HeaderMap) -> Self {
        let scope = caller.scope();
        let subject = match log {
            Log::Operation(id) => Subject::Operation(id),
            Log::All => Subject::All(scope.clone()),
        };
        let subscription = app.0.engine.watch.subscribe(subject);
        let (app, base_url) = (app.clone(), app.base_url(headers));
        Self { app, scope, log, base_url, after, subscription, reading: None, idle_until: None, ended: false }
    }

    /// Whether it was told from where to go on, or has begun already.
    pub(super) fn has_position(&self) -> bool {
        self.after.is_some()
    }

    /// Goes on from behind the event `after`.
    pub(super) fn seek(&mut self, after: u64) {
        (self.after, self.idle_until, self.ended) = (Some(after), None, false);
    }

    /// Waits for what comes next. Nothing is lost if it is given up in between.
    pub(super) async fn next(&mut self) -> Result<Next, StoreError> {
        loop {
            if let Some(until) = self.idle_until {
                tokio::select! {
                    () = self.subscription.changed() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                self.idle_until = None;
            }
            if let Some(next) = self.advance().await? {
                return Ok(next);
            }
            self.reading = None;
            self.idle_until = Some(Instant::now() + half_jittered(POLL));
        }
    }

    async fn advance(&mut self) -> Result<Option<Next>, StoreError> {
        let Some(after) = self.after else { return self.snapshot(Reason::Start).await.map(Some) };
        if self.ended {
            return Ok(Some(Next::Ended));
        }
        let key = (self.scope.clone(), self.log, after, self.subscription.wake());
        let inner = &self.app.0;
        let reading = inner.pages.read(&inner.engine.store, key, inner.http.streams.behind_max);
        let read = self.reading.insert(reading).clone().await?;
        Ok(match read {
            Read::Events { piece, last, ended } => {
                (self.after, self.ended) = (Some(last), ended);
                Some(Next::Piece(piece))
            }
            Read::Nothing { ended } => ended.then_some(Next::Ended),
            Read::Lost(lost) => Some(self.snapshot(lost.into()).await?),
            Read::Forgotten => Some(Next::Forgotten),
        })
    }

    async fn snapshot(&mut self, reason: Reason) -> Result<Next, StoreError> {
        match self.log {
            Log::Operation(id) => self.snapshot_of_one(id, reason).await,
            Log::All => self.snapshot_of_all(reason).await,
        }
    }

    /// The whole log follows, unless it is too long.
    async fn snapshot_of_one(&mut self, id: OperationId, reason: Reason) -> Result<Next, StoreError> {
        let Some(operation) = self.app.0.engine.store.get(self.scope.clone(), id).await? else {
            return Ok(Next::Forgotten);
        };
        let url = format!("{}/v1/operations/{id}", self.base_url);
        let position = (reason == Reason::Behind).then_some(operation.events.into());
        self.after = Some(position.unwrap_or_default());
        Ok(Next::Piece(Page::snapshot(position, &Snapshot::of_one(reason, &operation, &url))))
    }

    /// What is open now; what happens from now on follows.
    async fn snapshot_of_all(&mut self, reason: Reason) -> Result<Next, StoreError> {
        let limit = self.app.0.http.page_size_max;
        let open = self.app.0.engine.store.open_operations(self.scope.clone(), limit).await?;
        let url = |id| format!("{}/v1/operations/{id}", self.base_url);
        let urls: Vec<_> = open.operations.iter().map(|operation| url(operation.id)).collect();
        let views = open.operations.iter().zip(&urls).map(|(operation, url)| OperationView::new(operation, url));
        let data = OpenView { operations: views.collect(), more: open.more };
        self.after = Some(open.sequence);
        Ok(Next::Piece(Page::snapshot(self.after, &Snapshot::of_all(reason, open.sequence, data))))
    }
}
