//! What followers of the event log read. Each page is of one moment: one statement reads it, or what is read last is
//! what makes a follower start anew.

use super::PostgresStore;
use super::tables::{id, number, operation, time};
use crate::store::types::signed;
use crate::store::{LogOfAll, LoggedEvent, Lost, OpenOperations, OperationLog, Scope, StoreError};
use shared::message::OperationId;
use sqlx::Row;
use sqlx::postgres::PgRow;

// One row with no event if there is none; the operation's own columns have other names than the event's.
const OF_OPERATION: &str = "select o.events as last, o.status >= 2 as ended, o.kind, e.*
    from operations o left join lateral (
        select sequence, id, number, at, type, data from events where id = o.id and number > $2 order by number limit $3
    ) e on true where o.id = $1 and ($4::text is null or o.owner = $4) order by e.number";
const OF_ALL: &str = "select e.*, (select kind from operations o where o.id = e.id) as kind
    from events e where sequence > $1 order by sequence limit $2";
const OF_OWNER: &str = "select e.*, (select kind from operations o where o.id = e.id) as kind
    from events e where owner = $3 and sequence > $1 order by sequence limit $2";
const HOW_FAR: &str = "select last, (select sequence from events_forgotten) from events_counter";
const BEYOND: &str = "select exists (select 1 from events where owner = $1 and sequence > $2 limit 1 offset $3)";
const OPEN_OF_ALL: &str = "select c.last, o.* from events_counter c left join lateral (
        select * from operations where status < 2 order by id desc limit $1) o on true order by o.id desc";
const OPEN_OF_OWNER: &str = "select c.last, o.* from events_counter c left join lateral (
        select * from operations where owner = $2 and status < 2 order by id desc limit $1) o on true order by o.id desc";

impl PostgresStore {
    pub(in crate::store) async fn operation_log(
        &self,
        scope: Scope,
        id: OperationId,
        after: u64,
        limit: usize,
    ) -> Result<Option<OperationLog>, StoreError> {
        let page = sqlx::query(OF_OPERATION).bind(id.0).bind(signed(after)).bind(limit as i64).bind(scope.owner());
        let read = |row: &PgRow| Ok((number(row, "last")?, row.try_get("ended")?, event_if_any(row)?));
        let rows = self.rows(page, read).await?;
        let Some(&(last, ended, _)) = rows.first() else { return Ok(None) };
        Ok(Some(OperationLog { last, ended, events: rows.into_iter().filter_map(|(.., event)| event).collect() }))
    }

    pub(in crate::store) async fn log_of_all(
        &self,
        scope: Scope,
        after: u64,
        (limit, behind_max): (usize, Option<usize>),
    ) -> Result<LogOfAll, StoreError> {
        let page = match scope.owner() {
            None => sqlx::query(OF_ALL).bind(signed(after)).bind(limit as i64),
            Some(owner) => sqlx::query(OF_OWNER).bind(signed(after)).bind(limit as i64).bind(owner),
        };
        let events = self.rows(page, event).await?;
        // After the page: what was forgotten in between counts as missing.
        let how_far = sqlx::query_as(HOW_FAR).fetch_one(self.database.pool());
        let (known, forgotten): (i64, i64) = self.database.run(how_far).await?;
        let lost = if signed(after) > known {
            Some(Lost::Unknown)
        } else if signed(after) < forgotten {
            Some(Lost::Gone)
        } else {
            self.is_behind(&scope, signed(after), known, behind_max).await?.then_some(Lost::Behind)
        };
        Ok(LogOfAll { lost, events })
    }

    async fn is_behind(&self, scope: &Scope, after: i64, known: i64, max: Option<usize>) -> Result<bool, StoreError> {
        let Some(max) = max else { return Ok(false) };
        match scope.owner() {
            // Most often there are not so many at all.
            _ if known.saturating_sub(after) <= max as i64 => Ok(false),
            None => Ok(true),
            Some(owner) => {
                let beyond = sqlx::query_scalar(BEYOND).bind(owner).bind(after).bind(max as i64);
                self.database.run(beyond.fetch_one(self.database.pool())).await
            }
        }
    }

    pub(in crate::store) async fn open_operations(
        &self,
        scope: Scope,
        limit: usize,
    ) -> Result<OpenOperations, StoreError> {
        let open = match scope.owner() {
            None => sqlx::query(OPEN_OF_ALL).bind(limit as i64 + 1),
            Some(owner) => sqlx::query(OPEN_OF_OWNER).bind(limit as i64 + 1).bind(owner),
        };
        let read = |row: &PgRow| {
            let there = row.try_get::<Option<uuid::Uuid>, _>("id")?.is_some();
            Ok((number(row, "last")?, if there { Some(operation(row)?) } else { None }))
        };
        let rows = self.rows(open, read).await?;
        let sequence = rows.first().map_or(0, |&(last, _)| last);
        let mut operations: Vec<_> = rows.into_iter().filter_map(|(_, operation)| operation).collect();
        let more = operations.len() > limit;
        operations.truncate(limit);
        Ok(OpenOperations { sequence, operations, more })
    }
}

fn event(row: &PgRow) -> sqlx::Result<LoggedEvent> {
    Ok(LoggedEvent {
        sequence: number(row, "sequence")?,
        id: id(row)?,
        kind: row.try_get("kind")?,
        number: number(row, "number")?,
        at: time(row, "at")?,
        event_type: row.try_get("type")?,
        data: row.try_get("data")?,
    })
}

fn event_if_any(row: &PgRow) -> sqlx::Result<Option<LoggedEvent>> {
    let sequence: Option<i64> = row.try_get("sequence")?;
    sequence.map(|_| event(row)).transpose()
}
