//! The tables, and how an operation is read from them.

use crate::operation::{Operation, State};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use shared::message::{OperationId, Progress};
use shared::problem::Problem;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// What makes the tables, in the order in which they came to be. Never change one: there are databases made with it. While
/// one runs, instances of the version before go on, and what they have prepared as `select *` fails from a new column of
/// that table on until they are replaced: a table beside it is better.
pub(super) const MIGRATIONS: [&str; 1] = [CREATE];

// The same as SQLite's, for the same reasons; times are milliseconds since 1970, JSON is text as it was written.
// `events_counter` has the number of the last event and `events_forgotten` that of the last one that is gone. Who counts
// holds the row until its commit, so that events are numbered in the order of commits and without a gap. The rows that
// every batch updates have room left in their pages for that.
const CREATE: &str = "
create table operations (
    id uuid primary key,
    owner text not null,
    kind text not null,
    created_at bigint not null,
    priority smallint,
    traceparent text,
    steps text,
    callback text,
    idempotency_key text,
    fingerprint bytea,
    status smallint not null,
    updated_at bigint not null,
    deadline bigint not null,
    ended_at bigint,
    expires_at bigint,
    asks text not null,
    step bigint not null,
    position bigint not null,
    attempt bigint not null,
    attempts_before bigint not null,
    version bigint not null,
    progress_attempt bigint,
    progress_sequence bigint,
    percent double precision,
    message text,
    error text,
    late_outcome text,
    last_problem text,
    sends bigint not null,
    next_send_at bigint not null,
    cancel_requested boolean not null,
    cancels bigint not null,
    next_cancel_at bigint,
    events bigint not null
);
create index operations_to_send on operations (next_send_at) where status < 2;
create index operations_by_deadline on operations (deadline) where status < 2;
create index operations_by_expiry on operations (expires_at) where status >= 2;
create index operations_to_cancel on operations (next_cancel_at) where status < 2 and cancel_requested;
create index operations_by_kind on operations (kind, id);
create index operations_by_owner on operations (owner, id);
create index operations_open on operations (owner, id) where status < 2;
create index operations_open_of_all on operations (id) where status < 2;
create index operations_open_by_kind on operations (kind, id) where status < 2;
create unique index operations_by_key on operations (owner, idempotency_key) where idempotency_key is not null;

create table requests (id uuid primary key, content_type text not null, body bytea not null);
create table results (id uuid primary key, content_type text not null, body bytea not null);

create table events (
    sequence bigint primary key,
    id uuid not null,
    number bigint not null,
    owner text not null,
    at bigint not null,
    type text not null,
    data text not null
);
create unique index events_by_operation on events (id, number);
create index events_by_owner on events (owner, sequence);
create table events_counter (last bigint not null) with (fillfactor = 10);
insert into events_counter values (0);
create table events_forgotten (sequence bigint not null) with (fillfactor = 10);
insert into events_forgotten values (0);

create table used (owner text primary key, open bigint not null, bytes bigint not null) with (fillfactor = 50);
create table forgotten (number bigint generated always as identity primary key, id uuid not null unique, owner text not null);

create table webhooks (
    id uuid not null,
    number bigint not null,
    owner text not null,
    url text not null,
    host text not null,
    type text not null,
    body bytea not null,
    state text not null,
    attempts bigint not null,
    next_at bigint,
    primary key (id, number)
);
create index webhooks_due on webhooks (host, next_at) where next_at is not null;
create table webhook_attempts (
    id uuid not null,
    number bigint not null,
    attempt bigint not null,
    at bigint not null,
    milliseconds bigint not null,
    status integer,
    error text,
    primary key (id, number, attempt)
);

create table announced_kinds (
    kind text primary key,
    request_schema text,
    result_schema text,
    version text not null,
    instance text not null,
    announced_at bigint not null
);
create table announced_providers (
    kind text not null,
    instance text not null,
    provider_group text not null,
    version text not null,
    effect text,
    concurrency bigint not null,
    first_seen_at bigint not null,
    last_seen_at bigint not null,
    gone_at bigint not null,
    differs boolean not null,
    primary key (kind, instance)
);

create table claims (work text primary key, holder uuid not null, until timestamptz not null);
";

pub(super) fn operation(row: &PgRow) -> sqlx::Result<Operation> {
    Ok(Operation {
        id: id(row)?,
        owner: row.try_get("owner")?,
        kind: row.try_get("kind")?,
        asks: row.try_get("asks")?,
        steps: json(row, "steps")?.unwrap_or_default(),
        position: number(row, "position")?,
        state: state(row)?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        deadline: time(row, "deadline")?,
        ended_at: time_if_any(row, "ended_at")?,
        expires_at: time_if_any(row, "expires_at")?,
        step: number(row, "step")?,
        attempt: number(row, "attempt")?,
        attempts_before: number(row, "attempts_before")?,
        version: number(row, "version")?,
        priority: row.try_get::<Option<i16>, _>("priority")?.and_then(|priority| priority.try_into().ok()),
        traceparent: row.try_get("traceparent")?,
        callback: json(row, "callback")?,
        cancel_requested: row.try_get("cancel_requested")?,
        cancels: number(row, "cancels")?,
        next_cancel_at: time_if_any(row, "next_cancel_at")?,
        late_outcome: json(row, "late_outcome")?,
        last_problem: problem(row, "last_problem")?,
        sends: number(row, "sends")?,
        next_send_at: time(row, "next_send_at")?,
        events: number(row, "events")?,
    })
}

fn state(row: &PgRow) -> sqlx::Result<State> {
    let error = || problem(row, "error")?.ok_or_else(|| unreadable("error", "an operation that failed says why"));
    Ok(match row.try_get::<i16, _>("status")? {
        0 => State::NotStarted,
        1 => State::Running(Progress {
            step: number(row, "step")?,
            attempt: number(row, "progress_attempt")?,
            sequence: row.try_get("progress_sequence")?,
            percent: row.try_get("percent")?,
            message: row.try_get("message")?,
            // What it put off is in next_send_at.
            lease: None,
        }),
        2 => State::Succeeded,
        3 => State::Failed(error()?),
        _ => State::Canceled(error()?),
    })
}

pub(super) fn id(row: &PgRow) -> sqlx::Result<OperationId> {
    row.try_get::<Uuid, _>("id").map(OperationId)
}

pub(super) fn number<T: TryFrom<i64>>(row: &PgRow, column: &str) -> sqlx::Result<T> {
    row.try_get::<i64, _>(column)?.try_into().map_err(|_| unreadable(column, "the number is out of range"))
}

pub(super) fn time(row: &PgRow, column: &str) -> sqlx::Result<Timestamp> {
    Timestamp::from_millisecond(row.try_get(column)?).map_err(|error| unreadable(column, error))
}

pub(super) fn time_if_any(row: &PgRow, column: &str) -> sqlx::Result<Option<Timestamp>> {
    let found: Option<i64> = row.try_get(column)?;
    found.map(|at| Timestamp::from_millisecond(at).map_err(|error| unreadable(column, error))).transpose()
}

fn json<T: DeserializeOwned>(row: &PgRow, column: &str) -> sqlx::Result<Option<T>> {
    let text: Option<&str> = row.try_get(column)?;
    Ok(text.and_then(|text| serde_json::from_str(text).ok()))
}

fn problem(row: &PgRow, column: &str) -> sqlx::Result<Option<Problem>> {
    Ok(row.try_get::<Option<&str>, _>(column)?.map(|text| Problem::from_body(text.as_bytes())))
}

/// That a column holds what it cannot.
pub(super) fn unreadable(column: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.into(), source: why.into() }
}

/// `text` as PostgreSQL can have it: a provider may have written the character 0 in what it says for people.
pub(super) fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
