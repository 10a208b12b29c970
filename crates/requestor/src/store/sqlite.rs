use super::{Applied, Filter, STATUSES, Sent, StoreError};
use crate::operation::{Change, Event, Operation, State};
use crate::rules::RulesByKind;
use jiff::Timestamp;
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, named_params, params};
use rusqlite_migration::{M, Migrations};
use shared::database::Sqlite;
use shared::message::{Content, OperationId, Progress};
use shared::problem::Problem;
use std::sync::Arc;
use uuid::Uuid;

// Times are milliseconds since 1970. Bodies have tables of their own, so that reading a status does not touch them.
const CREATE: &str = "
create table operations (
    id blob primary key,
    kind text not null,
    status integer not null,
    created_at integer not null,
    updated_at integer not null,
    deadline integer not null,
    expires_at integer,
    attempt integer not null,
    step integer not null,
    version integer not null,
    priority integer,
    traceparent text,
    progress_attempt integer,
    progress_sequence integer,
    percent real,
    message text,
    error text,
    late_outcome text,
    last_problem text,
    sends integer not null,
    next_send_at integer not null
) strict, without rowid;
create index operations_to_send on operations (next_send_at) where status < 2;
create index operations_by_deadline on operations (deadline) where status < 2;
create index operations_by_expiry on operations (expires_at) where status >= 2;
create index operations_by_kind on operations (kind, id);
create table requests (id blob primary key, content_type text not null, body blob not null) strict;
create table results (id blob primary key, content_type text not null, body blob not null) strict;
";

/// The requestor's operations in an SQLite file.
#[derive(Clone, Debug)]
pub struct Store {
    database: Sqlite,
    rules: Arc<RulesByKind>,
}

impl Store {
    /// Opens the store, and creates it if it is not there.
    ///
    /// # Errors
    /// See [`Sqlite::open`].
    pub fn open(url: &str, rules: RulesByKind) -> anyhow::Result<Self> {
        let database = Sqlite::open(url, &Migrations::new(vec![M::up(CREATE)]))?;
        Ok(Self { database, rules: Arc::new(rules) })
    }

    /// Stores a new operation with its request. When this returns, it is durable.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is stored.
    pub async fn create(&self, operation: Operation, request: Content) -> Result<(), StoreError> {
        self.database
            .write(move |connection| {
                save(connection, &operation, true)?;
                save_content(connection, "insert into requests values (?1, ?2, ?3)", operation.id, &request)
            })
            .await
    }

    /// The operation, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, id: OperationId) -> Result<Option<Operation>, StoreError> {
        self.database.read(move |connection| load(connection, id)).await
    }

    /// The result, if the operation has succeeded.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn result(&self, id: OperationId) -> Result<Option<Content>, StoreError> {
        self.database.read(move |connection| load_content(connection, "results", id)).await
    }

    /// Operations, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, filter: Filter) -> Result<Vec<Operation>, StoreError> {
        self.database
            .read(move |connection| {
                let status = filter.status.and_then(|name| STATUSES.iter().position(|status| *status == name));
                let before = filter.before.map(|id| id.0);
                let (mut sql, mut parameters) = ("select * from operations where true".to_owned(), Vec::new());
                let conditions: [(&str, Option<&dyn ToSql>); 3] = [
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

    /// Applies `event`. When this returns, the change is durable. None if there is no such operation.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    pub async fn apply(&self, id: OperationId, event: Event, now: Timestamp) -> Result<Option<Applied>, StoreError> {
        let rules = Arc::clone(&self.rules);
        self.database
            .write(move |connection| {
                let Some(mut operation) = load(connection, id)? else { return Ok(None) };
                let change = operation.apply(event, now, rules.draw(&operation.kind));
                if change != Change::None {
                    save(connection, &operation, false)?;
                }
                if let Change::Ended(Some(result)) = &change {
                    save_content(connection, "insert or replace into results values (?1, ?2, ?3)", id, result)?;
                }
                Ok(Some(Applied { operation, change }))
            })
            .await
    }

    /// Open operations whose request should be sent by `now`, longest due first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn to_send(&self, now: Timestamp, limit: usize) -> Result<Vec<(Operation, Content)>, StoreError> {
        let sql = "select * from operations where status < 2 and next_send_at <= ?1 order by next_send_at limit ?2";
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

    /// Notes what was sent. Nothing depends on it: a request that is sent once more does no harm.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sent(&self, sent: Vec<Sent>) -> Result<(), StoreError> {
        // A provider may have spoken in the meantime; what it put off stays put off.
        let sql = "update operations set sends = ?2, next_send_at = max(?3, iif(status = 1, next_send_at, 0))
            where id = ?1 and status < 2 and attempt = ?4";
        self.database
            .write(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                for sent in sent {
                    let at = sent.next_send_at.as_millisecond();
                    statement.execute(params![sent.id.0, sent.sends, at, sent.attempt])?;
                }
                Ok(())
            })
            .await
    }

    /// Open operations whose deadline has passed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<OperationId>, StoreError> {
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

    /// Forgets ended operations whose retention is over; at most `limit`, so that no submit waits long behind it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn purge(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let sql = "select id from operations where status >= 2 and expires_at <= ?1 order by expires_at limit ?2";
        self.database
            .write(move |connection| {
                let mut statement = connection.prepare_cached(sql)?;
                let rows = statement.query_map(params![now.as_millisecond(), limit], |row| row.get::<_, Uuid>(0))?;
                let ids = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                for id in &ids {
                    for table in ["operations", "requests", "results"] {
                        connection.prepare_cached(&format!("delete from {table} where id = ?1"))?.execute([id])?;
                    }
                }
                Ok(ids.len())
            })
            .await
    }

    /// Returns when the file can no longer be trusted; the process must not go on.
    pub async fn failed(&self) {
        self.database.failed().await;
    }
}

pub(super) fn status_number(operation: &Operation) -> usize {
    match operation.state {
        State::NotStarted => 0,
        State::Running(_) => 1,
        State::Succeeded => 2,
        State::Failed(_) => 3,
    }
}

fn load(connection: &Connection, id: OperationId) -> rusqlite::Result<Option<Operation>> {
    connection.prepare_cached("select * from operations where id = ?1")?.query_row([id.0], from_row).optional()
}

fn load_content(connection: &Connection, table: &str, id: OperationId) -> rusqlite::Result<Option<Content>> {
    connection
        .prepare_cached(&format!("select content_type, body from {table} where id = ?1"))?
        .query_row([id.0], |row| Ok(Content { content_type: row.get(0)?, body: row.get::<_, Vec<u8>>(1)?.into() }))
        .optional()
}

fn save_content(connection: &Connection, sql: &str, id: OperationId, content: &Content) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(params![id.0, content.content_type, &content.body[..]])?;
    Ok(())
}

const INSERT: &str = "insert into operations values (:id, :kind, :status, :created_at, :updated_at, :deadline,
    :expires_at, :attempt, :step, :version, :priority, :traceparent, :progress_attempt, :progress_sequence, :percent,
    :message, :error, :late_outcome, :last_problem, :sends, :next_send_at)";

const UPDATE: &str = "update operations set status = :status, updated_at = :updated_at, expires_at = :expires_at,
    attempt = :attempt, step = :step, version = :version, progress_attempt = :progress_attempt,
    progress_sequence = :progress_sequence, percent = :percent, message = :message, error = :error,
    late_outcome = :late_outcome, last_problem = :last_problem, sends = :sends, next_send_at = :next_send_at where id = :id";

fn save(connection: &Connection, operation: &Operation, new: bool) -> rusqlite::Result<()> {
    let progress = match &operation.state {
        State::Running(progress) => Some(progress),
        State::NotStarted | State::Succeeded | State::Failed(_) => None,
    };
    let error = match &operation.state {
        State::Failed(problem) => Some(json(problem)?),
        State::NotStarted | State::Running(_) | State::Succeeded => None,
    };
    let late_outcome = operation.late_outcome.as_ref().map(json).transpose()?;
    let last_problem = operation.last_problem.as_ref().map(json).transpose()?;
    let mut statement = connection.prepare_cached(if new { INSERT } else { UPDATE })?;
    let changing = named_params! {
        ":id": operation.id.0, ":status": status_number(operation), ":updated_at": operation.updated_at.as_millisecond(),
        ":expires_at": operation.expires_at.map(Timestamp::as_millisecond), ":attempt": operation.attempt,
        ":step": operation.step, ":version": operation.version, ":progress_attempt": progress.map(|p| p.attempt),
        ":progress_sequence": progress.map(|p| p.sequence), ":percent": progress.and_then(|p| p.percent),
        ":message": progress.and_then(|p| p.message.as_deref()), ":error": error, ":late_outcome": late_outcome, ":last_problem": last_problem,
        ":sends": operation.sends, ":next_send_at": operation.next_send_at.as_millisecond(),
    };
    let fixed = named_params! {
        ":kind": operation.kind, ":created_at": operation.created_at.as_millisecond(),
        ":deadline": operation.deadline.as_millisecond(), ":priority": operation.priority,
        ":traceparent": operation.traceparent,
    };
    let parameters = if new { [changing, fixed].concat() } else { changing.to_vec() };
    statement.execute(&parameters[..])?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Operation> {
    let state = match row.get::<_, u8>("status")? {
        0 => State::NotStarted,
        1 => State::Running(Progress {
            step: row.get("step")?,
            lease: None,
            attempt: row.get("progress_attempt")?,
            sequence: row.get("progress_sequence")?,
            percent: row.get("percent")?,
            message: row.get("message")?,
        }),
        2 => State::Succeeded,
        _ => State::Failed(Problem::from_body(row.get::<_, String>("error")?.as_bytes())),
    };
    let late_outcome: Option<String> = row.get("late_outcome")?;
    let last_problem: Option<String> = row.get("last_problem")?;
    Ok(Operation {
        id: OperationId(row.get("id")?),
        kind: row.get("kind")?,
        state,
        created_at: time(row.get("created_at")?)?,
        updated_at: time(row.get("updated_at")?)?,
        deadline: time(row.get("deadline")?)?,
        expires_at: row.get::<_, Option<i64>>("expires_at")?.map(time).transpose()?,
        attempt: row.get("attempt")?,
        step: row.get("step")?,
        version: row.get("version")?,
        priority: row.get("priority")?,
        traceparent: row.get("traceparent")?,
        late_outcome: late_outcome.and_then(|text| serde_json::from_str(&text).ok()),
        last_problem: last_problem.map(|text| Problem::from_body(text.as_bytes())),
        sends: row.get("sends")?,
        next_send_at: time(row.get("next_send_at")?)?,
    })
}

fn time(milliseconds: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(milliseconds)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Integer, FromSqlError::other(error).into()))
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
