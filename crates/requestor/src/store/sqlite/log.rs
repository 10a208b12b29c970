//! What followers of the event log read.

use super::SqliteStore;
use super::tables::{from_row, load, select_operations, time};
use crate::store::{LogOfAll, LoggedEvent, Lost, OpenOperations, OperationLog, Scope, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};
use shared::message::OperationId;

// From the events to their operations, never the other way round: a page must not cost more than its rows.
const OF_OPERATION: &str = "select e.*, o.kind from events e cross join operations o on o.id = e.id
    where e.id = ?1 and e.number > ?2 order by e.number limit ?3";
const OF_SCOPE: &str = "select e.*, o.kind from events e cross join operations o on o.id = e.id
    where {scope} and e.sequence > ?2 order by e.sequence limit ?3";
const BEYOND: &str = "select 1 from events where owner = ?1 and sequence > ?2 limit 1 offset ?3";
const OPEN: &str = select_operations!("e where {scope} and status < 2 order by id desc limit ?2");

impl SqliteStore {
    pub(in crate::store) async fn operation_log(
        &self,
        scope: Scope,
        id: OperationId,
        after: u64,
        limit: usize,
    ) -> Result<Option<OperationLog>, StoreError> {
        self.database
            .read(move |connection| {
                // One transaction, so that the page is of the same moment as what is said of the operation.
                let transaction = connection.unchecked_transaction()?;
                let Some(operation) = load(&transaction, &scope, id)? else { return Ok(None) };
                let mut statement = transaction.prepare_cached(OF_OPERATION)?;
                let rows = statement.query_map(params![id.0, number(after), limit], event_from_row)?;
                let (last, ended) = (operation.events.into(), operation.has_ended());
                Ok(Some(OperationLog { last, ended, events: rows.collect::<Result<_, _>>()? }))
            })
            .await
    }

    pub(in crate::store) async fn log_of_all(
        &self,
        scope: Scope,
        after: u64,
        (limit, behind_max): (usize, Option<usize>),
    ) -> Result<LogOfAll, StoreError> {
        self.database
            .read(move |connection| {
                let transaction = connection.unchecked_transaction()?;
                let known = last_sequence(&transaction)?;
                let mut statement = transaction.prepare_cached(&scoped(OF_SCOPE, &scope))?;
                let rows = statement.query_map(params![scope.owner(), number(after), limit], event_from_row)?;
                let events = rows.collect::<Result<Vec<_>, _>>()?;
                let behind = || match (behind_max, scope.owner()) {
                    // Most often there are not so many at all.
                    (Some(max), _) if known.saturating_sub(after) <= max as u64 => Ok(false),
                    (Some(max), Some(owner)) => {
                        transaction.prepare_cached(BEYOND)?.exists(params![owner, number(after), max])
                    }
                    (Some(_), None) => Ok(true),
                    (None, _) => Ok(false),
                };
                let lost = if after > known {
                    Some(Lost::Unknown)
                } else if after < forgotten(&transaction)? {
                    Some(Lost::Gone)
                } else {
                    behind()?.then_some(Lost::Behind)
                };
                Ok(LogOfAll { lost, events })
            })
            .await
    }

    pub(in crate::store) async fn open_operations(
        &self,
        scope: Scope,
        limit: usize,
    ) -> Result<OpenOperations, StoreError> {
        self.database
            .read(move |connection| {
                let transaction = connection.unchecked_transaction()?;
                let sequence = last_sequence(&transaction)?;
                let mut statement = transaction.prepare_cached(&scoped(OPEN, &scope))?;
                let rows = statement.query_map(params![scope.owner(), limit + 1], from_row)?;
                let mut operations = rows.collect::<Result<Vec<_>, _>>()?;
                let more = operations.len() > limit;
                operations.truncate(limit);
                Ok(OpenOperations { sequence, operations, more })
            })
            .await
    }
}

/// Two statements, since one that serves both scopes would use no index for either.
fn scoped(sql: &str, scope: &Scope) -> String {
    sql.replace("{scope}", if scope.owner().is_some() { "e.owner = ?1" } else { "?1 is null" })
}

/// As a table can have it: a caller may name a number that no event will ever have.
fn number(given: u64) -> i64 {
    given.try_into().unwrap_or(i64::MAX)
}

fn last_sequence(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "select seq from sqlite_sequence where name = 'events'";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?.unwrap_or_default())
}

fn forgotten(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("select sequence from events_forgotten")?.query_row([], |row| row.get(0))
}

fn event_from_row(row: &Row<'_>) -> rusqlite::Result<LoggedEvent> {
    Ok(LoggedEvent {
        sequence: row.get("sequence")?,
        id: OperationId(row.get("id")?),
        kind: row.get("kind")?,
        number: row.get("number")?,
        at: time(row.get("at")?)?,
        event_type: row.get("type")?,
        data: row.get("data")?,
    })
}
