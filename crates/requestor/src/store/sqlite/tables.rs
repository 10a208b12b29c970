//! The tables, and how an operation looks in them.

use crate::operation::{Entry, Operation, State};
use crate::store::Scope;
use crate::store::types::status_number;
use jiff::Timestamp;
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use rusqlite_migration::{M, Migrations};
use shared::message::{Content, OperationId, Progress};
use shared::problem::Problem;

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

// A request is that of the step under way: the result of the step before has taken its place. So it is there when a
// step that failed is attempted again.
const CANCELS_STEPS_EVENTS: &str = "
alter table operations add column asks text not null default '';
update operations set asks = kind;
alter table operations add column steps text;
alter table operations add column position integer not null default 1;
alter table operations add column attempts_before integer not null default 0;
alter table operations add column ended_at integer;
alter table operations add column cancel_requested integer not null default 0;
alter table operations add column cancels integer not null default 0;
alter table operations add column next_cancel_at integer;
alter table operations add column events integer not null default 0;
create index operations_to_cancel on operations (next_cancel_at) where status < 2 and cancel_requested = 1;
create table events (
    id blob not null,
    number integer not null,
    at integer not null,
    type text not null,
    data text not null,
    primary key (id, number)
) strict, without rowid;
";

// What was accepted before there were callers belongs to the one that everybody is without a key.
const OWNERS: &str = "
alter table operations add column owner text not null default 'anonymous';
create index operations_by_owner on operations (owner, id);
";

// A key is unique for its owner, and goes with its operation. What is used of the quotas is counted in the commit that
// uses it. Ids of forgotten operations are numbered, so that the oldest can be told without a date.
const KEYS_QUOTAS_FORGOTTEN: &str = "
alter table operations add column idempotency_key text;
alter table operations add column fingerprint blob;
create unique index operations_by_key on operations (owner, idempotency_key) where idempotency_key is not null;
create table used (owner text primary key, open integer not null, bytes integer not null) strict, without rowid;
insert into used select owner, sum(status < 2), sum(1024
    + coalesce((select length(body) from requests where requests.id = operations.id), 0)
    + coalesce((select length(body) from results where results.id = operations.id), 0))
    from operations group by owner;
create table forgotten (number integer primary key, id blob not null unique, owner text not null) strict;
";

// Events of all operations in the order in which they were committed, by which a caller follows all of its operations.
// Only the writer's thread gives numbers, and one that is rolled back is given again, so there is no gap. Numbers of
// forgotten events are never given again; `events_forgotten` has the last of them.
const EVENT_SEQUENCE: &str = "
create table log (
    sequence integer primary key autoincrement,
    id blob not null,
    number integer not null,
    owner text not null,
    at integer not null,
    type text not null,
    data text not null
) strict;
insert into log (id, number, owner, at, type, data)
    select e.id, e.number, o.owner, e.at, e.type, e.data from events e join operations o on o.id = e.id
    order by e.id, e.number;
drop table events;
alter table log rename to events;
create unique index events_by_operation on events (id, number);
create index events_by_owner on events (owner, sequence);
create table events_forgotten (sequence integer not null) strict;
insert into events_forgotten values (0);
create index operations_open on operations (owner, id) where status < 2;
";
// Finds those of a kind that are open, in order, without looking at all that have ended.
const OPEN_BY_KIND: &str = "create index operations_open_by_kind on operations (kind, id) where status < 2;";

// A delivery is numbered by the version of its operation that it tells of. The index leads from host to host, so that
// a host with many deliveries that wait does not hold up the others'.
const WEBHOOKS: &str = "
alter table operations add column callback text;
create table webhooks (
    id blob not null,
    number integer not null,
    owner text not null,
    url text not null,
    host text not null,
    type text not null,
    body blob not null,
    state text not null,
    attempts integer not null,
    next_at integer,
    primary key (id, number)
) strict;
create index webhooks_due on webhooks (host, next_at) where next_at is not null;
create table webhook_attempts (
    id blob not null,
    number integer not null,
    attempt integer not null,
    at integer not null,
    milliseconds integer not null,
    status integer,
    error text,
    primary key (id, number, attempt)
) strict, without rowid;
";

// Each stream of all operations begins with those that are open, among many that are not.
const OPEN_OF_ALL: &str = "create index operations_open_of_all on operations (id) where status < 2;";

/// All tables that have rows of an operation.
pub(super) const TABLES: [&str; 6] = ["operations", "requests", "results", "events", "webhooks", "webhook_attempts"];

const INSERT: &str = "insert into operations (id, owner, kind, created_at, priority, traceparent, steps, callback, status, updated_at,
        deadline, ended_at, expires_at, asks, step, position, attempt, attempts_before, version, progress_attempt,
        progress_sequence, percent, message, error, late_outcome, last_problem, sends, next_send_at, cancel_requested,
        cancels, next_cancel_at, events)
    values (:id, :owner, :kind, :created_at, :priority, :traceparent, :steps, :callback, :status, :updated_at,
        :deadline, :ended_at, :expires_at, :asks, :step, :position, :attempt, :attempts_before, :version, :progress_attempt,
        :progress_sequence, :percent, :message, :error, :late_outcome, :last_problem, :sends, :next_send_at, :cancel_requested,
        :cancels, :next_cancel_at, :events)";

const UPDATE: &str = "update operations set status = :status, updated_at = :updated_at, deadline = :deadline,
    ended_at = :ended_at, expires_at = :expires_at, asks = :asks, step = :step, position = :position, attempt = :attempt,
    attempts_before = :attempts_before, version = :version, progress_attempt = :progress_attempt,
    progress_sequence = :progress_sequence, percent = :percent, message = :message, error = :error,
    late_outcome = :late_outcome, last_problem = :last_problem, sends = :sends, next_send_at = :next_send_at,
    cancel_requested = :cancel_requested, cancels = :cancels, next_cancel_at = :next_cancel_at, events = :events
    where id = :id";

/// What makes the tables, in the order in which they came to be. Never change one: there are stores made with it.
pub(super) fn migrations() -> Migrations<'static> {
    let texts = [
        CREATE,
        CANCELS_STEPS_EVENTS,
        OWNERS,
        KEYS_QUOTAS_FORGOTTEN,
        EVENT_SEQUENCE,
        WEBHOOKS,
        super::announced::CREATE,
        OPEN_BY_KIND,
        OPEN_OF_ALL,
    ];
    Migrations::new(texts.map(M::up).to_vec())
}

/// The operation, if there is one in `scope`. What is out of scope takes the same path as what is not there.
pub(super) fn load(connection: &Connection, scope: &Scope, id: OperationId) -> rusqlite::Result<Option<Operation>> {
    connection
        .prepare_cached("select * from operations where id = ?1 and (?2 is null or owner = ?2)")?
        .query_row(params![id.0, scope.owner()], from_row)
        .optional()
}

pub(super) fn load_content(connection: &Connection, table: &str, id: OperationId) -> rusqlite::Result<Option<Content>> {
    connection
        .prepare_cached(&format!("select content_type, body from {table} where id = ?1"))?
        .query_row([id.0], |row| Ok(Content { content_type: row.get(0)?, body: row.get::<_, Vec<u8>>(1)?.into() }))
        .optional()
}

pub(super) fn save_content(
    connection: &Connection,
    table: &str,
    id: OperationId,
    content: &Content,
) -> rusqlite::Result<()> {
    connection.prepare_cached(&format!("insert or replace into {table} values (?1, ?2, ?3)"))?.execute(params![
        id.0,
        content.content_type,
        &content.body[..]
    ])?;
    Ok(())
}

/// How large the body in `table` is; SQLite does not read it for that.
pub(super) fn content_bytes(connection: &Connection, table: &str, id: OperationId) -> rusqlite::Result<i64> {
    let sql = format!("select coalesce(sum(length(body)), 0) from {table} where id = ?1");
    connection.prepare_cached(&sql)?.query_row([id.0], |row| row.get(0))
}

pub(super) fn save_entry(connection: &Connection, operation: &Operation, entry: &Entry) -> rusqlite::Result<()> {
    let sql = "insert into events (id, number, owner, at, type, data) values (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.prepare_cached(sql)?.execute(params![
        operation.id.0,
        entry.number,
        operation.owner,
        entry.at.as_millisecond(),
        entry.event_type,
        entry.data.to_string()
    ])?;
    Ok(())
}

pub(super) fn save(connection: &Connection, operation: &Operation, new: bool) -> rusqlite::Result<()> {
    let progress = match &operation.state {
        State::Running(progress) => Some(progress),
        State::NotStarted | State::Succeeded | State::Failed(_) | State::Canceled(_) => None,
    };
    let error = operation.error().map(json).transpose()?;
    let late_outcome = operation.late_outcome.as_ref().map(json).transpose()?;
    let last_problem = operation.last_problem.as_ref().map(json).transpose()?;
    let steps = Some(&operation.steps).filter(|steps| !steps.is_empty()).map(json).transpose()?;
    let callback = operation.callback.as_ref().map(json).transpose()?;
    let mut statement = connection.prepare_cached(if new { INSERT } else { UPDATE })?;
    let changing = named_params! {
        ":id": operation.id.0, ":status": status_number(operation), ":updated_at": operation.updated_at.as_millisecond(),
        ":deadline": operation.deadline.as_millisecond(), ":ended_at": operation.ended_at.map(Timestamp::as_millisecond),
        ":expires_at": operation.expires_at.map(Timestamp::as_millisecond), ":asks": operation.asks,
        ":step": operation.step, ":position": operation.position, ":attempt": operation.attempt,
        ":attempts_before": operation.attempts_before, ":version": operation.version,
        ":progress_attempt": progress.map(|p| p.attempt), ":progress_sequence": progress.map(|p| p.sequence),
        ":percent": progress.and_then(|p| p.percent), ":message": progress.and_then(|p| p.message.as_deref()),
        ":error": error, ":late_outcome": late_outcome, ":last_problem": last_problem, ":sends": operation.sends,
        ":next_send_at": operation.next_send_at.as_millisecond(), ":cancel_requested": operation.cancel_requested,
        ":cancels": operation.cancels, ":next_cancel_at": operation.next_cancel_at.map(Timestamp::as_millisecond),
        ":events": operation.events,
    };
    let fixed = named_params! {
        ":owner": operation.owner, ":kind": operation.kind, ":created_at": operation.created_at.as_millisecond(),
        ":priority": operation.priority, ":traceparent": operation.traceparent, ":steps": steps, ":callback": callback,
    };
    let parameters = if new { [changing, fixed].concat() } else { changing.to_vec() };
    statement.execute(&parameters[..])?;
    Ok(())
}

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Operation> {
    let late_outcome: Option<String> = row.get("late_outcome")?;
    let last_problem: Option<String> = row.get("last_problem")?;
    let steps: Option<String> = row.get("steps")?;
    let callback: Option<String> = row.get("callback")?;
    Ok(Operation {
        id: OperationId(row.get("id")?),
        owner: row.get("owner")?,
        kind: row.get("kind")?,
        asks: row.get("asks")?,
        steps: steps.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        position: row.get("position")?,
        state: state_from_row(row)?,
        created_at: time(row.get("created_at")?)?,
        updated_at: time(row.get("updated_at")?)?,
        deadline: time(row.get("deadline")?)?,
        ended_at: row.get::<_, Option<i64>>("ended_at")?.map(time).transpose()?,
        expires_at: row.get::<_, Option<i64>>("expires_at")?.map(time).transpose()?,
        step: row.get("step")?,
        attempt: row.get("attempt")?,
        attempts_before: row.get("attempts_before")?,
        version: row.get("version")?,
        priority: row.get("priority")?,
        traceparent: row.get("traceparent")?,
        callback: callback.and_then(|text| serde_json::from_str(&text).ok()),
        cancel_requested: row.get("cancel_requested")?,
        cancels: row.get("cancels")?,
        next_cancel_at: row.get::<_, Option<i64>>("next_cancel_at")?.map(time).transpose()?,
        late_outcome: late_outcome.and_then(|text| serde_json::from_str(&text).ok()),
        last_problem: last_problem.map(|text| Problem::from_body(text.as_bytes())),
        sends: row.get("sends")?,
        next_send_at: time(row.get("next_send_at")?)?,
        events: row.get("events")?,
    })
}

fn state_from_row(row: &Row<'_>) -> rusqlite::Result<State> {
    let problem = || row.get::<_, String>("error").map(|error| Problem::from_body(error.as_bytes()));
    Ok(match row.get::<_, u8>("status")? {
        0 => State::NotStarted,
        1 => State::Running(Progress {
            step: row.get("step")?,
            attempt: row.get("progress_attempt")?,
            sequence: row.get("progress_sequence")?,
            percent: row.get("percent")?,
            message: row.get("message")?,
            // What it put off is in next_send_at.
            lease: None,
        }),
        2 => State::Succeeded,
        3 => State::Failed(problem()?),
        _ => State::Canceled(problem()?),
    })
}

pub(super) fn time(milliseconds: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(milliseconds).map_err(column_error)
}

/// That a column holds what it cannot.
pub(super) fn column_error(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Null, FromSqlError::other(error).into())
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{ANONYMOUS, Callback};

    #[test]
    fn operations_of_the_first_version_are_read_as_they_were() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrations().to_version(&mut connection, 1).unwrap();
        let id = OperationId::new();
        let insert =
            "insert into operations (id, kind, status, created_at, updated_at, deadline, attempt, step, version,
            sends, next_send_at) values (?1, 'echo', 0, 1, 2, 3, 1, 1, 1, 0, 4)";
        connection.execute(insert, [id.0]).unwrap();
        migrations().to_latest(&mut connection).unwrap();
        let mut operation = load(&connection, &Scope::All, id).unwrap().unwrap();
        assert_eq!((operation.asks.as_str(), operation.position, operation.events), ("echo", 1, 0));
        assert_eq!(operation.owner, ANONYMOUS);
        let used = connection.query_row("select owner, open, bytes from used", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        assert_eq!(used.unwrap(), (ANONYMOUS.into(), 1, 1024));
        operation.cancel_requested = true;
        operation.state = State::Canceled(Problem::canceled());
        operation.steps = vec!["echo".into()];
        save(&connection, &operation, false).unwrap();
        operation.steps.clear();
        assert_eq!(load(&connection, &Scope::All, id).unwrap(), Some(operation), "the steps never change");
    }

    #[test]
    fn events_of_an_earlier_version_are_numbered_in_the_order_of_their_operation() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrations().to_version(&mut connection, 2).unwrap();
        let id = OperationId::new();
        let operation =
            "insert into operations (id, kind, status, created_at, updated_at, deadline, attempt, step, version,
            sends, next_send_at) values (?1, 'echo', 0, 1, 2, 3, 1, 1, 1, 0, 4)";
        connection.execute(operation, [id.0]).unwrap();
        for (number, at) in [(2, 5), (1, 9)] {
            let event = "insert into events values (?1, ?2, ?3, 'progress', '{}')";
            connection.execute(event, params![id.0, number, at]).unwrap();
        }
        migrations().to_latest(&mut connection).unwrap();
        let numbers = |sql| -> Vec<u32> {
            connection.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(numbers("select number from events where owner = 'anonymous' order by sequence"), [1, 2]);
        // The number of an event that was forgotten or rolled back: the first is never given again, the second is.
        connection.execute_batch("delete from events; savepoint job").unwrap();
        let event = "insert into events (id, number, owner, at, type, data) values (?1, 3, '', 0, '', '')";
        connection.execute(event, [id.0]).unwrap();
        connection.execute_batch("rollback to job; release job").unwrap();
        connection.execute(event, [id.0]).unwrap();
        assert_eq!(numbers("select sequence from events"), [3]);
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrations().to_latest(&mut connection).unwrap();
        let minute = std::time::Duration::from_secs(60);
        let pair = Operation::new("pair", Timestamp::now(), minute, minute).through(&["a".into(), "b".into()]);
        let mut operation = pair.owned_by("me");
        (operation.priority, operation.traceparent) = (Some(3), Some("00-ab-cd-01".into()));
        operation.callback = Some(Callback { url: "https://example.com/".into(), base_url: "http://me".into() });
        save(&connection, &operation, true).unwrap();
        assert_eq!(load(&connection, &Scope::All, operation.id).unwrap().as_ref(), Some(&operation));
        assert_eq!(load(&connection, &Scope::Of("me".into()), operation.id).unwrap().as_ref(), Some(&operation));
        assert_eq!(load(&connection, &Scope::Of("you".into()), operation.id).unwrap(), None);
        operation.asks = "b".into();
        (operation.step, operation.position, operation.attempt, operation.attempts_before) = (3, 2, 5, 4);
        (operation.cancel_requested, operation.cancels, operation.events, operation.version) = (true, 2, 9, 8);
        operation.next_cancel_at = Some(operation.deadline);
        operation.ended_at = Some(operation.created_at);
        operation.last_problem = Some(Problem::canceled());
        operation.state = State::Failed(Problem::deadline_exceeded());
        save(&connection, &operation, false).unwrap();
        assert_eq!(load(&connection, &Scope::All, operation.id).unwrap(), Some(operation));
    }
}
