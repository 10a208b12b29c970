//! What the sweeper asks for and writes down.

use super::SqliteStore;
use super::owners::forget;
use super::tables::{TABLES, content_bytes, from_row, load_content, select_operations, time};
use crate::operation::Operation;
use crate::rules::{doubled, half_jittered};
use crate::store::{Sent, StoreError};
use jiff::Timestamp;
use rusqlite::{Row, params};
use shared::message::{Content, OperationId};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Before its events are deleted: how far the log of all operations is no longer whole.
const FORGET: &str = "update events_forgotten set sequence =
    max(sequence, (select coalesce(max(sequence), 0) from events where id = ?1))";
const BACKLOG: &str = "select kind, count(*) from operations where status < 2 group by kind";

impl SqliteStore {
    pub(in crate::store) async fn to_send(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Operation, Content)>, StoreError> {
        let sql = select_operations!("where status < 2 and next_send_at <= ?1 order by next_send_at limit ?2");
        self.database
            .read(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows = statement.query_map(params![now.as_millisecond(), limit], from_row)?;
                let mut found = Vec::new();
                for row in rows {
                    let operation = row?;
                    if let Some(request) = load_content(connection, "requests", operation.id)? {
                        found.push((operation, request));
                    }
                }
                Ok(found)
            })
            .await
    }

    pub(in crate::store) async fn sent(&self, sent: Vec<Sent>) -> Result<(), StoreError> {
        // What a provider has said since, of how long to wait, stands.
        let sql = "update operations set sends = ?2,
                next_send_at = iif(progress_sequence > 0 and updated_at >= ?6, next_send_at, ?3)
            where id = ?1 and status < 2 and step = ?4 and attempt = ?5";
        self.database
            .write(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                for Sent { request, sends, sent_at, next_send_at } in &sent {
                    let (next, sent_at) = (next_send_at.as_millisecond(), sent_at.as_millisecond());
                    statement.execute(params![request.id.0, sends, next, request.step, request.attempt, sent_at])?;
                }
                Ok(())
            })
            .await
    }

    pub(in crate::store) async fn to_cancel(
        &self,
        now: Timestamp,
        limit: usize,
        (resend, longest): (Duration, Duration),
    ) -> Result<Vec<Operation>, StoreError> {
        let due = select_operations!(
            "where status < 2 and cancel_requested = 1 and next_cancel_at <= ?1 order by next_cancel_at limit ?2"
        );
        let parameters = (now.as_millisecond(), limit);
        let found: Vec<Operation> = self
            .database
            .read(move |connection| connection.prepare_cached(due)?.query_map(parameters, from_row)?.collect())
            .await?;
        if found.is_empty() {
            return Ok(found);
        }
        let next = |operation: &Operation| {
            let pause = half_jittered(doubled(resend, longest, operation.cancels + 1));
            (operation.id.0, crate::operation::after(now, pause).as_millisecond())
        };
        let next: Vec<_> = found.iter().map(next).collect();
        self.database
            .write(move |connection| {
                let sql = "update operations set cancels = cancels + 1, next_cancel_at = ?2 where id = ?1";
                let mut statement = connection.prepare_cached(sql)?;
                next.iter().try_for_each(|row| statement.execute(*row).map(drop))
            })
            .await?;
        Ok(found)
    }

    pub(in crate::store) async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<OperationId>, StoreError> {
        let sql = "select id from operations where status < 2 and deadline <= ?1 order by deadline limit ?2";
        self.database
            .read(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows =
                    statement.query_map(params![now.as_millisecond(), limit], |row| row.get(0).map(OperationId))?;
                rows.collect()
            })
            .await
    }

    pub(in crate::store) async fn took_lately(
        &self,
        kind: String,
        limit: usize,
    ) -> Result<Vec<(Timestamp, Timestamp)>, StoreError> {
        let sql = "select created_at, ended_at from operations
            where kind = ?1 and status = 2 and attempts_before = 0 and ended_at is not null order by id desc limit ?2";
        self.database
            .read(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let times = |row: &Row<'_>| Ok((time(row.get("created_at")?)?, time(row.get("ended_at")?)?));
                let mut found =
                    statement.query_map(params![kind, limit], times)?.collect::<rusqlite::Result<Vec<_>>>()?;
                found.reverse();
                Ok(found)
            })
            .await
    }

    pub(in crate::store) async fn backlog(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        self.database
            .read(|connection| {
                let mut statement = connection.prepare_cached(BACKLOG)?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect()
            })
            .await
    }

    pub(in crate::store) async fn open_of_kind(
        &self,
        kind: String,
        limit: usize,
    ) -> Result<Vec<OperationId>, StoreError> {
        let sql = "select id from operations where kind = ?1 and status < 2 order by id limit ?2";
        self.database
            .read(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows = statement.query_map(params![kind, limit], |row| row.get("id").map(OperationId))?;
                rows.collect()
            })
            .await
    }

    pub(in crate::store) async fn purge(&self, now: Timestamp, limit: usize, keep: u64) -> Result<usize, StoreError> {
        let sql = "select id from operations where status >= 2 and expires_at <= ?1 order by expires_at limit ?2";
        self.database
            .write(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows = statement.query_map(params![now.as_millisecond(), limit], |row| row.get::<_, Uuid>(0))?;
                let ids = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                for id in &ids {
                    connection.prepare_cached(FORGET)?.execute([id])?;
                    let bytes = |table| content_bytes(connection, table, OperationId(*id));
                    let bytes = bytes("requests")? + bytes("results")? + bytes("webhooks")?;
                    forget(connection, OperationId(*id), bytes, keep)?;
                    for table in TABLES {
                        connection.prepare_cached(&format!("delete from {table} where id = ?1"))?.execute([id])?;
                    }
                }
                Ok(ids.len())
            })
            .await
    }
}
