//! The rows of a batch, each table's in one statement.

use super::batch::Work;
use super::tables::{self, plain};
use crate::operation::{Entry, Operation};
use shared::message::{Content, OperationId};
use sqlx::PgConnection;
use std::collections::BTreeMap;
use uuid::Uuid;

const LOAD: &str = "select * from operations where id = any($1) order by id for update";
// After the rows are locked: a statement that waits for them would see the sizes from before.
const REQUEST_BYTES: &str = "select id, octet_length(body)::bigint from requests where id = any($1)";
pub(super) const SAVE_REQUESTS: &str = "insert into requests select * from unnest($1::uuid[], $2::text[], $3::bytea[])
    on conflict (id) do update set content_type = excluded.content_type, body = excluded.body";
pub(super) const SAVE_RESULTS: &str = "insert into results select * from unnest($1::uuid[], $2::text[], $3::bytea[])
    on conflict (id) do update set content_type = excluded.content_type, body = excluded.body";
const SAVE_ENTRIES: &str = "with counter as (update events_counter set last = last + $1 returning last - $1 as base),
    written as (insert into events (sequence, id, number, owner, at, type, data)
        select base + place, n.id, n.number, n.owner, n.at, n.type, n.data
        from counter, unnest($2::uuid[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[])
            with ordinality as n (id, number, owner, at, type, data, place))
    select pg_current_xact_id()::text";

/// An operation as it is after the events so far.
pub(super) struct Loaded {
    pub(super) operation: Operation,
    /// The size of its request, where a step's result may take its place.
    pub(super) request_bytes: i64,
    pub(super) changed: bool,
}

/// The operations that something is to be applied to. Nobody else changes them before the commit.
pub(super) async fn load(connection: &mut PgConnection, work: &[Work]) -> sqlx::Result<BTreeMap<OperationId, Loaded>> {
    let id = |work: &Work| if let Work::Apply { id, .. } = work { Some(id.0) } else { None };
    let ids: Vec<Uuid> = work.iter().filter_map(id).collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query(LOAD).bind(ids).fetch_all(&mut *connection).await?;
    let loaded = |row| {
        let operation = tables::operation(row)?;
        Ok((operation.id, Loaded { operation, request_bytes: 0, changed: false }))
    };
    let mut loaded: BTreeMap<_, _> = rows.iter().map(loaded).collect::<sqlx::Result<_>>()?;
    let pipelines = loaded.values().filter(|it| !it.operation.steps.is_empty());
    let pipelines: Vec<Uuid> = pipelines.map(|it| it.operation.id.0).collect();
    if !pipelines.is_empty() {
        let sizes = sqlx::query_as(REQUEST_BYTES).bind(pipelines).fetch_all(connection).await?;
        for (id, bytes) in sizes {
            loaded.entry(OperationId(id)).and_modify(|it| it.request_bytes = bytes);
        }
    }
    Ok(loaded)
}

pub(super) async fn save_contents(
    connection: &mut PgConnection,
    sql: &'static str,
    contents: BTreeMap<OperationId, Content>,
) -> sqlx::Result<()> {
    if contents.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = contents.keys().map(|id| id.0).collect();
    let types: Vec<_> = contents.values().map(|content| plain(&content.content_type)).collect();
    let bodies: Vec<_> = contents.values().map(|content| &content.body[..]).collect();
    sqlx::query(sql).bind(ids).bind(types).bind(bodies).execute(connection).await.map(drop)
}

/// Numbers the entries. From here to the commit no other instance does.
pub(super) async fn save_entries(
    connection: &mut PgConnection,
    entries: &[(OperationId, String, Entry)],
) -> sqlx::Result<Option<String>> {
    if entries.is_empty() {
        return Ok(None);
    }
    sqlx::query_scalar(SAVE_ENTRIES)
        .bind(entries.len() as i64)
        .bind(entries.iter().map(|(id, ..)| id.0).collect::<Vec<_>>())
        .bind(entries.iter().map(|(.., entry)| entry.number.into()).collect::<Vec<i64>>())
        .bind(entries.iter().map(|(_, owner, _)| owner.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(.., entry)| entry.at.as_millisecond()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(.., entry)| entry.event_type.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(.., entry)| entry.data.to_string()).collect::<Vec<_>>())
        .fetch_one(connection)
        .await
        .map(Some)
}
