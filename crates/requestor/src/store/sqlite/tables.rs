//! The tables, and how an operation looks in them.

use crate::operation::{Entry, Operation, State};
use crate::store::types::status_number;
use crate::store::{IdempotencyKey, Scope};
use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, Type};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params, params_from_iter};
use rusqlite_migration::{M, Migrations};
use serde::de::DeserializeOwned;
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

/// A query of operations, whose rows [`from_row`] reads.
macro_rules! select_operations {
    ($rest:literal) => {
        concat!(
            "select step, id, owner, kind, asks, steps, position, status, progress_attempt, progress_sequence, percent,
                message, error, created_at, updated_at, deadline, ended_at, expires_at, attempt, attempts_before, version,
                priority, traceparent, callback, cancel_requested, cancels, next_cancel_at, late_outcome, last_problem,
                sends, next_send_at, events from operations ",
            $rest
        )
    };
}
pub(super) use select_operations;

const INSERT: &str = "insert into operations (id, status, updated_at, deadline, ended_at, expires_at, asks, step, position,
        attempt, attempts_before, version, progress_attempt, progress_sequence, percent, message, error, late_outcome,
        last_problem, sends, next_send_at, cancel_requested, cancels, next_cancel_at, events,
        owner, kind, created_at, priority, traceparent, steps, callback, idempotency_key, fingerprint)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24,
        ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32, ?33, ?34)";

const UPDATE: &str =
    "update operations set status = ?2, updated_at = ?3, deadline = ?4, ended_at = ?5, expires_at = ?6,
    asks = ?7, step = ?8, position = ?9, attempt = ?10, attempts_before = ?11, version = ?12, progress_attempt = ?13,
    progress_sequence = ?14, percent = ?15, message = ?16, error = ?17, late_outcome = ?18, last_problem = ?19,
    sends = ?20, next_send_at = ?21, cancel_requested = ?22, cancels = ?23, next_cancel_at = ?24, events = ?25
    where id = ?1";

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
        .prepare_cached(select_operations!("where id = ?1 and (?2 is null or owner = ?2)"))?
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

/// Writes a new operation, with its idempotency key.
pub(super) fn insert(
    connection: &Connection,
    operation: &Operation,
    key: Option<&IdempotencyKey>,
) -> rusqlite::Result<()> {
    let steps = Some(&operation.steps).filter(|steps| !steps.is_empty()).map(json).transpose()?;
    let callback = operation.callback.as_ref().map(json).transpose()?;
    let fixed = params![
        operation.owner,
        operation.kind,
        operation.created_at.as_millisecond(),
        operation.priority,
        operation.traceparent,
        steps,
        callback,
        key.map(|key| &key.key),
        key.map(|key| &key.fingerprint),
    ];
    save(connection, INSERT, operation, fixed)
}

/// Writes what may have changed of an operation.
pub(super) fn update(connection: &Connection, operation: &Operation) -> rusqlite::Result<()> {
    save(connection, UPDATE, operation, &[])
}

fn save(connection: &Connection, sql: &str, operation: &Operation, fixed: &[&dyn ToSql]) -> rusqlite::Result<()> {
    let progress = match &operation.state {
        State::Running(progress) => Some(progress),
        State::NotStarted | State::Succeeded | State::Failed(_) | State::Canceled(_) => None,
    };
    let error = operation.error().map(json).transpose()?;
    let late_outcome = operation.late_outcome.as_ref().map(json).transpose()?;
    let last_problem = operation.last_problem.as_ref().map(json).transpose()?;
    let changing = params![
        operation.id.0,
        status_number(operation),
        operation.updated_at.as_millisecond(),
        operation.deadline.as_millisecond(),
        operation.ended_at.map(Timestamp::as_millisecond),
        operation.expires_at.map(Timestamp::as_millisecond),
        operation.asks,
        operation.step,
        operation.position,
        operation.attempt,
        operation.attempts_before,
        operation.version,
        progress.map(|p| p.attempt),
        progress.map(|p| p.sequence),
        progress.and_then(|p| p.percent),
        progress.and_then(|p| p.message.as_deref()),
        error,
        late_outcome,
        last_problem,
        operation.sends,
        operation.next_send_at.as_millisecond(),
        operation.cancel_requested,
        operation.cancels,
        operation.next_cancel_at.map(Timestamp::as_millisecond),
        operation.events,
    ];
    let parameters = params_from_iter(changing.iter().chain(fixed));
    connection.prepare_cached(sql)?.execute(parameters).map(drop)
}

/// Reads columns one after the other, since to look for each by its name takes longer than the query.
struct Columns<'a, 'b> {
    row: &'a Row<'b>,
    next: usize,
}

impl Columns<'_, '_> {
    fn next<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.next += 1;
        self.row.get(self.next - 1)
    }

    fn next_time(&mut self) -> rusqlite::Result<Option<Timestamp>> {
        self.next::<Option<i64>>()?.map(time).transpose()
    }

    fn next_json<T: DeserializeOwned>(&mut self) -> rusqlite::Result<Option<T>> {
        self.next += 1;
        let text = self.row.get_ref(self.next - 1)?.as_str_or_null()?;
        Ok(text.and_then(|text| serde_json::from_str(text).ok()))
    }
}

/// A row of [`select_operations`], in whose order its columns are read here.
pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Operation> {
    let mut columns = Columns { row, next: 0 };
    let step = columns.next()?;
    Ok(Operation {
        step,
        id: OperationId(columns.next()?),
        owner: columns.next()?,
        kind: columns.next()?,
        asks: columns.next()?,
        steps: columns.next_json()?.unwrap_or_default(),
        position: columns.next()?,
        state: next_state(&mut columns, step)?,
        created_at: time(columns.next()?)?,
        updated_at: time(columns.next()?)?,
        deadline: time(columns.next()?)?,
        ended_at: columns.next_time()?,
        expires_at: columns.next_time()?,
        attempt: columns.next()?,
        attempts_before: columns.next()?,
        version: columns.next()?,
        priority: columns.next()?,
        traceparent: columns.next()?,
        callback: columns.next_json()?,
        cancel_requested: columns.next()?,
        cancels: columns.next()?,
        next_cancel_at: columns.next_time()?,
        late_outcome: columns.next_json()?,
        last_problem: columns.next::<Option<String>>()?.map(|text| Problem::from_body(text.as_bytes())),
        sends: columns.next()?,
        next_send_at: time(columns.next()?)?,
        events: columns.next()?,
    })
}

/// Six columns: the status, and what belongs to one or another.
fn next_state(columns: &mut Columns<'_, '_>, step: u32) -> rusqlite::Result<State> {
    let status: u8 = columns.next()?;
    let (attempt, sequence) = (columns.next::<Option<u32>>()?, columns.next::<Option<i64>>()?);
    let (percent, message) = (columns.next()?, columns.next()?);
    let error: Option<String> = columns.next()?;
    let problem = || Problem::from_body(error.as_deref().unwrap_or_default().as_bytes());
    Ok(match (status, attempt, sequence) {
        (0, ..) => State::NotStarted,
        // What it put off is in next_send_at.
        (1, Some(attempt), Some(sequence)) => {
            State::Running(Progress { step, attempt, sequence, percent, message, lease: None })
        }
        (2, ..) => State::Succeeded,
        (3, ..) => State::Failed(problem()),
        (4, ..) => State::Canceled(problem()),
        _ => return Err(column_error(std::io::Error::other(format!("{status} is no status")))),
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
        update(&connection, &operation).unwrap();
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
        insert(&connection, &operation, None).unwrap();
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
        update(&connection, &operation).unwrap();
        assert_eq!(load(&connection, &Scope::All, operation.id).unwrap(), Some(operation));
    }
}
