//! Where operations are kept. The only place with SQL.

mod postgres;
mod sqlite;
mod types;

pub use types::*;

use crate::kinds::announced::{Known, Provider};
use crate::operation::{Event, Operation};
use crate::rules::RulesByKind;
use crate::webhook::{Attempt, Delivery, DeliveryId, State};
use jiff::Timestamp;
use postgres::PostgresStore;
use shared::database::is_postgres;
use shared::message::{Content, OperationId};
use sqlite::SqliteStore;
use std::collections::BTreeMap;
use std::time::Duration;

pub use shared::database::DatabaseError as StoreError;

/// The requestor's operations: in an SQLite file for one instance, or in a PostgreSQL database for any number.
#[derive(Clone, Debug)]
pub enum Store {
    /// `sqlite://`.
    Sqlite(SqliteStore),
    /// `postgres://`.
    Postgres(PostgresStore),
}

impl Store {
    /// Opens the store, and creates what is not there. After each commit `committed` is told what may have changed.
    /// `connections_max` is for PostgreSQL.
    ///
    /// # Errors
    /// What is wrong with the URL, the database, its settings or its tables.
    pub async fn open(
        url: &str,
        connections_max: u32,
        rules: RulesByKind,
        committed: impl Fn(Vec<Changed>) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        if is_postgres(url) {
            Ok(Self::Postgres(PostgresStore::open(url, connections_max, rules, committed).await?))
        } else {
            Ok(Self::Sqlite(SqliteStore::open(url, rules, committed)?))
        }
    }

    /// Applies `event` to whosever operation it is; see [`Self::apply_in`].
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    pub async fn apply(&self, id: OperationId, event: Event, now: Timestamp) -> Result<Option<Applied>, StoreError> {
        self.apply_in(Scope::All, id, event, now).await
    }

    /// Of deliveries that are due, those that this instance may attempt: no other may before `until`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn claim_webhooks(
        &self,
        ids: Vec<DeliveryId>,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<DeliveryId>, StoreError> {
        match self {
            // There is no other instance.
            Self::Sqlite(_) => Ok(ids),
            Self::Postgres(store) => store.claim_webhooks(ids, now, until).await,
        }
    }

    /// Whether other instances may use it as well.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Returns when what was begun has ended, also what nobody waits for any more, and another process may open the store.
    /// Nothing may be asked of it after that.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
            Self::Postgres(store) => store.close().await,
        }
    }

    /// Returns when the store can no longer be trusted; the process must not go on.
    pub async fn failed(&self) {
        match self {
            Self::Sqlite(store) => store.failed().await,
            Self::Postgres(_) => std::future::pending().await,
        }
    }

    /// The operation, if there is one in `scope`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, scope: Scope, id: OperationId) -> Result<Option<Operation>, StoreError> {
        match self {
            Self::Sqlite(store) => store.get(scope, id).await,
            Self::Postgres(store) => store.get(scope, id).await,
        }
    }

    /// The result, if the operation is in `scope` and has succeeded.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn result(&self, scope: Scope, id: OperationId) -> Result<Option<Content>, StoreError> {
        match self {
            Self::Sqlite(store) => store.result(scope, id).await,
            Self::Postgres(store) => store.result(scope, id).await,
        }
    }

    /// Operations in `scope`, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, scope: Scope, filter: Filter) -> Result<Vec<Operation>, StoreError> {
        match self {
            Self::Sqlite(store) => store.list(scope, filter).await,
            Self::Postgres(store) => store.list(scope, filter).await,
        }
    }

    /// Stores a new operation with its request, unless its idempotency key was there before or its owner has no room.
    /// When this returns, it is durable.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is stored.
    pub async fn create(&self, new: NewOperation) -> Result<Created, StoreError> {
        match self {
            Self::Sqlite(store) => store.create(new).await,
            // On the heap, so that SQLite does not carry it.
            Self::Postgres(store) => Box::pin(store.create(new)).await,
        }
    }

    /// Applies `event`. When this returns, the change is durable. None if there is no such operation in `scope`.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    pub async fn apply_in(
        &self,
        scope: Scope,
        id: OperationId,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<Applied>, StoreError> {
        match self {
            Self::Sqlite(store) => store.apply_in(scope, id, event, now).await,
            // On the heap, so that SQLite does not carry it.
            Self::Postgres(store) => Box::pin(store.apply_in(scope, id, event, now)).await,
        }
    }

    /// Whether an operation in `scope` was there, but is forgotten by now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn was_forgotten(&self, scope: Scope, id: OperationId) -> Result<bool, StoreError> {
        match self {
            Self::Sqlite(store) => store.was_forgotten(scope, id).await,
            Self::Postgres(store) => store.was_forgotten(scope, id).await,
        }
    }

    /// Open operations whose request should be sent by `now`, longest due first. No other instance is given them for a
    /// while.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn to_send(&self, now: Timestamp, limit: usize) -> Result<Vec<(Operation, Content)>, StoreError> {
        match self {
            Self::Sqlite(store) => store.to_send(now, limit).await,
            Self::Postgres(store) => store.to_send(now, limit).await,
        }
    }

    /// Notes what was sent. Nothing depends on it: a request that is sent once more does no harm.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sent(&self, sent: Vec<Sent>) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.sent(sent).await,
            Self::Postgres(store) => store.sent(sent).await,
        }
    }

    /// Open operations whose wish to be canceled should be sent again by `now`. The next time, after a pause that
    /// doubles from the first of `pauses` to the second, half of it drawn, is written down with it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn to_cancel(
        &self,
        now: Timestamp,
        limit: usize,
        pauses: (Duration, Duration),
    ) -> Result<Vec<Operation>, StoreError> {
        match self {
            Self::Sqlite(store) => store.to_cancel(now, limit, pauses).await,
            Self::Postgres(store) => store.to_cancel(now, limit, pauses).await,
        }
    }

    /// Open operations whose deadline has passed. No other instance is given them for a while.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<OperationId>, StoreError> {
        match self {
            Self::Sqlite(store) => store.overdue(now, limit).await,
            Self::Postgres(store) => store.overdue(now, limit).await,
        }
    }

    /// When the last operations of a kind that have succeeded were accepted and when they ended, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn took_lately(&self, kind: String, limit: usize) -> Result<Vec<(Timestamp, Timestamp)>, StoreError> {
        match self {
            Self::Sqlite(store) => store.took_lately(kind, limit).await,
            Self::Postgres(store) => store.took_lately(kind, limit).await,
        }
    }

    /// The open operations of a kind, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_of_kind(&self, kind: String, limit: usize) -> Result<Vec<OperationId>, StoreError> {
        match self {
            Self::Sqlite(store) => store.open_of_kind(kind, limit).await,
            Self::Postgres(store) => store.open_of_kind(kind, limit).await,
        }
    }

    /// How many operations of each kind are open; kinds that have none are not there. Reads an index of these alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn backlog(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        match self {
            Self::Sqlite(store) => store.backlog().await,
            Self::Postgres(store) => store.backlog().await,
        }
    }

    /// Forgets ended operations whose retention is over; at most `limit`, so that no submit waits long behind it. Of
    /// the last `keep` it is still known that they were there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn purge(&self, now: Timestamp, limit: usize, keep: u64) -> Result<usize, StoreError> {
        match self {
            Self::Sqlite(store) => store.purge(now, limit, keep).await,
            Self::Postgres(store) => store.purge(now, limit, keep).await,
        }
    }

    /// Events of an operation with a number above `after`, in order. None if there is no such operation in `scope`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn operation_log(
        &self,
        scope: Scope,
        id: OperationId,
        after: u64,
        limit: usize,
    ) -> Result<Option<OperationLog>, StoreError> {
        match self {
            Self::Sqlite(store) => store.operation_log(scope, id, after, limit).await,
            Self::Postgres(store) => store.operation_log(scope, id, after, limit).await,
        }
    }

    /// Events of all operations in `scope` with a sequence number above `after`, in order; at most as many as the first of
    /// `limits`. Whether there are more than the second is looked at only if that is given.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn log_of_all(
        &self,
        scope: Scope,
        after: u64,
        limits: (usize, Option<usize>),
    ) -> Result<LogOfAll, StoreError> {
        match self {
            Self::Sqlite(store) => store.log_of_all(scope, after, limits).await,
            Self::Postgres(store) => store.log_of_all(scope, after, limits).await,
        }
    }

    /// The open operations in `scope`, at most `limit`, and how far the log was then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_operations(&self, scope: Scope, limit: usize) -> Result<OpenOperations, StoreError> {
        match self {
            Self::Sqlite(store) => store.open_operations(scope, limit).await,
            Self::Postgres(store) => store.open_operations(scope, limit).await,
        }
    }

    /// Deliveries that should be attempted by `now`, longest due first; at most `per_host` of one host.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn webhooks_due(
        &self,
        now: Timestamp,
        limit: usize,
        per_host: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        match self {
            Self::Sqlite(store) => store.webhooks_due(now, limit, per_host).await,
            Self::Postgres(store) => store.webhooks_due(now, limit, per_host).await,
        }
    }

    /// Notes what came of an attempt.
    ///
    /// # Errors
    /// [`StoreError`]; then the delivery is still due.
    pub(crate) async fn webhook_attempted(
        &self,
        id: DeliveryId,
        attempt: Attempt,
        state: State,
        next_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.webhook_attempted(id, attempt, state, next_at).await,
            Self::Postgres(store) => store.webhook_attempted(id, attempt, state, next_at).await,
        }
    }

    /// The deliveries of an operation, newest first, and the attempts of each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn webhooks(&self, id: OperationId) -> Result<Vec<(Delivery, Vec<Attempt>)>, StoreError> {
        match self {
            Self::Sqlite(store) => store.webhooks(id).await,
            Self::Postgres(store) => store.webhooks(id).await,
        }
    }

    /// Writes down what was announced, and forgets kinds that are none of `kinds` and providers that have been gone
    /// since `before`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn announce(
        &self,
        rows: Vec<AnnouncedRow>,
        kinds: Vec<String>,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.announce(rows, kinds, before).await,
            Self::Postgres(store) => store.announce(rows, kinds, before).await,
        }
    }

    /// All that was announced.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn announced(&self) -> Result<Vec<(String, Known, BTreeMap<String, Provider>)>, StoreError> {
        match self {
            Self::Sqlite(store) => store.announced().await,
            Self::Postgres(store) => store.announced().await,
        }
    }
}
