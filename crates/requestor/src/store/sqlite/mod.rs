//! Operations in an SQLite file, which belongs to one process.

mod announced;
mod due;
mod log;
mod owners;
mod tables;
mod webhooks;

use super::{Applied, Changed, Filter, STATUSES, Scope, StoreError};
use crate::operation::{Change, Entry, Event, Operation, to_millisecond};
use crate::rules::RulesByKind;
use crate::webhook::Delivery;
use jiff::Timestamp;
use owners::use_more;
use rusqlite::{Connection, ToSql};
use shared::database::Sqlite;
use shared::message::{Content, OperationId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tables::{
    content_bytes, from_row, load, load_content, migrations, save_content, save_entry, select_operations, update,
};
use webhooks::save_delivery;

/// The requestor's operations in an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    database: Sqlite,
    rules: Arc<RulesByKind>,
    log: Log,
}

/// Writes events down, and remembers which operations the batch under way has changed so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Changed>>>);

impl Log {
    pub(super) fn write(&self, connection: &Connection, operation: &Operation, entry: &Entry) -> rusqlite::Result<()> {
        save_entry(connection, operation, entry)?;
        self.changed().push(Changed { id: operation.id, owner: operation.owner.as_str().into() });
        Ok(())
    }

    fn changed(&self) -> MutexGuard<'_, Vec<Changed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqliteStore {
    /// Opens the store, and creates it if it is not there. After each commit `committed` is told what may have changed.
    ///
    /// # Errors
    /// See [`Sqlite::open`].
    pub(in crate::store) fn open(
        url: &str,
        rules: RulesByKind,
        committed: impl Fn(Vec<Changed>) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let log = Log::default();
        let batch = log.clone();
        let committed = move || committed(std::mem::take(&mut *batch.changed()));
        let database = Sqlite::open_with(url, &migrations(), committed)?;
        Ok(Self { database, rules: Arc::new(rules), log })
    }

    pub(in crate::store) async fn get(&self, scope: Scope, id: OperationId) -> Result<Option<Operation>, StoreError> {
        self.database.read(move |connection| load(connection, &scope, id)).await
    }

    pub(in crate::store) async fn result(&self, scope: Scope, id: OperationId) -> Result<Option<Content>, StoreError> {
        self.database
            .read(move |connection| match load(connection, &scope, id)? {
                Some(_) => load_content(connection, "results", id),
                None => Ok(None),
            })
            .await
    }

    pub(in crate::store) async fn list(&self, scope: Scope, filter: Filter) -> Result<Vec<Operation>, StoreError> {
        self.database
            .read(move |connection| {
                let status = filter.status.and_then(|name| STATUSES.iter().position(|status| *status == name));
                let before = filter.before.map(|id| id.0);
                let (mut sql, mut parameters) = (select_operations!("where true").to_owned(), Vec::new());
                let owner = scope.owner();
                let conditions: [(&str, Option<&dyn ToSql>); 4] = [
                    (" and owner = ?", owner.as_ref().map(|owner| owner as _)),
                    (" and kind = ?", filter.kind.as_ref().map(|kind| kind as _)),
                    (" and status = ?", status.as_ref().map(|status| status as _)),
                    (" and id < ?", before.as_ref().map(|id| id as _)),
                ];
                for (condition, value) in conditions {
                    if let Some(value) = value {
                        sql.push_str(condition);
                        parameters.push(value);
                    }
                }
                sql.push_str(" order by id desc limit ?");
                parameters.push(&filter.limit);
                connection.prepare_cached(&sql)?.query_map(&parameters[..], from_row)?.collect()
            })
            .await
    }

    pub(in crate::store) async fn apply_in(
        &self,
        scope: Scope,
        id: OperationId,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<Applied>, StoreError> {
        // So that what a webhook tells is what will be read.
        let now = to_millisecond(now);
        let (rules, log) = (Arc::clone(&self.rules), self.log());
        self.database
            .write(move |connection| {
                let Some(mut operation) = load(connection, &scope, id)? else { return Ok(None) };
                let (rules, open) = (rules.draw(&operation.asks), !operation.has_ended());
                let change = operation.apply(event.clone(), now, &rules);
                let entry = operation.record(&change, now, rules.events_max);
                if change != Change::None {
                    update(connection, &operation)?;
                }
                if let Some(entry) = entry {
                    log.write(connection, &operation, &entry)?;
                }
                let mut bytes = 0;
                match &change {
                    Change::Ended(Some(result)) => {
                        bytes = result.body.len() as i64;
                        save_content(connection, "results", id, result)?;
                    }
                    Change::StepSucceeded { result, .. } => {
                        bytes = result.body.len() as i64 - content_bytes(connection, "requests", id)?;
                        save_content(connection, "requests", id, result)?;
                    }
                    _ => {}
                }
                let delivery = match &change {
                    Change::Ended(result) => Delivery::of(&operation, result.as_ref()),
                    _ => None,
                };
                let webhook_bytes = delivery.map(|it| save_delivery(connection, &it, now)).transpose()?;
                let opened = i64::from(!operation.has_ended()) - i64::from(open);
                use_more(connection, &operation.owner, opened, bytes + webhook_bytes.unwrap_or_default())?;
                Ok(Some(Applied { operation, change }))
            })
            .await
    }

    pub(super) fn log(&self) -> Log {
        self.log.clone()
    }

    pub(in crate::store) async fn close(&self) {
        self.database.close().await;
    }

    pub(in crate::store) async fn failed(&self) {
        self.database.failed().await;
    }
}
