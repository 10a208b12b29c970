//! The ledger in an SQLite file, which one process at a time has open.

use super::entry::{Answer, Asked, Decision, Entry, State, decide};
use super::{Executed, PrepareSqlite, Subject, panicked};
use crate::handler::{Failure, TransactionalFn};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use rusqlite_migration::{M, Migrations};
use shared::database::{DatabaseError, Sqlite};
use shared::message::{Content, Outcome};
use shared::problem::{CONTENT_TYPE, Problem};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

const CREATE: &str = "
create table ledger (
    identity text primary key,
    kind text not null,
    succeeded integer not null,
    content_type text not null,
    body blob not null,
    recorded_at integer not null
) strict;
create index ledger_by_time on ledger (recorded_at);
";

/// States, attempts and epochs. Times are in milliseconds since 1970. An outcome of before says nothing of its
/// attempt and deadline: the first, and the longest that a requestor allowed.
const ADD_STATES: &str = "
alter table ledger rename to outcomes;
create table ledger (
    identity text primary key,
    kind text not null,
    state text not null check (state in ('CLAIMED', 'INTENT', 'DONE', 'TOMBSTONE')),
    attempt integer not null,
    epoch integer not null,
    intended integer not null,
    lease_until integer,
    deadline integer not null,
    succeeded integer,
    content_type text,
    body blob,
    check ((state = 'DONE') = (body is not null))
) strict;
insert into ledger
    select identity, kind, 'DONE', 1, 1, 0, null, recorded_at + 86400000, succeeded, content_type, body from outcomes;
drop table outcomes;
create index ledger_by_deadline on ledger (deadline);
";

/// Entries that are forgotten at a time, so that no request waits long behind it.
const PURGE_BATCH: usize = 256;

/// The open transaction in which a handler has its effect.
#[derive(Debug)]
pub struct Transaction<'a> {
    connection: &'a Connection,
    identity: &'a str,
}

impl Transaction<'_> {
    /// The ledger's database. What is done here is undone if the handler fails.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.connection
    }

    /// Names the request: the same each time it is repeated, different for every other.
    #[must_use]
    pub fn identity(&self) -> &str {
        self.identity
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Ledger(Sqlite);

impl Ledger {
    pub(super) async fn open(url: &str, prepare: Vec<PrepareSqlite>) -> anyhow::Result<Self> {
        let database = Sqlite::open(url, &Migrations::new(vec![M::up(CREATE), M::up(ADD_STATES)]))?;
        database.write(move |connection| prepare.iter().try_for_each(|prepare| prepare(connection))).await?;
        Ok(Self(database))
    }

    pub(super) async fn execute(
        &self,
        subject: Subject,
        attempt: u32,
        content: Content,
        function: Arc<TransactionalFn>,
    ) -> Result<Executed, DatabaseError> {
        self.0
            .write(move |connection| {
                let asked = Asked::Claim { attempt, held: false };
                let claimed = decide(find(connection, &subject.identity)?.as_ref(), asked);
                let Some(entry) = claimed.write else { return Ok(Executed::Before(claimed.answer)) };
                let outcome = match run(connection, &subject.identity, &content, &*function)? {
                    Ok(content) => Outcome::Succeeded(content),
                    Err(Failure::Permanent(problem)) => Outcome::Failed(problem),
                    Err(transient) => return Ok(Executed::NotNow(transient)),
                };
                shared::crash::point("provider.effect");
                store(connection, &subject, &Entry { state: State::Done(outcome.clone()), ..entry })?;
                Ok(Executed::Now(outcome))
            })
            .await
    }

    pub(super) async fn claim(
        &self,
        subject: &Subject,
        attempt: u32,
        lease: Duration,
    ) -> Result<Answer, DatabaseError> {
        let subject = subject.clone();
        self.0
            .write(move |connection| {
                let answer = apply(connection, &subject, Asked::Claim { attempt, held: false })?;
                if let Answer::Yes { epoch } = answer {
                    renew(connection, &subject.identity, epoch, lease)?;
                }
                Ok(answer)
            })
            .await
    }

    pub(super) async fn apply(&self, subject: &Subject, asked: Asked) -> Result<Answer, DatabaseError> {
        let subject = subject.clone();
        self.0.write(move |connection| apply(connection, &subject, asked.clone())).await
    }

    pub(super) async fn renew(&self, identity: &str, epoch: i64, lease: Duration) -> Result<(), DatabaseError> {
        let identity = identity.to_owned();
        self.0.write(move |connection| renew(connection, &identity, epoch, lease)).await
    }

    pub(super) async fn purge(&self, before: Timestamp) -> Result<(), DatabaseError> {
        let before = before.as_millisecond();
        let sql = "delete from ledger where identity in
            (select identity from ledger where deadline < ?1 order by deadline limit ?2)";
        loop {
            let deleted = self.0.write(move |c| c.prepare_cached(sql)?.execute(params![before, PURGE_BATCH])).await?;
            if deleted < PURGE_BATCH {
                return Ok(());
            }
        }
    }

    pub(super) async fn failed(&self) {
        self.0.failed().await;
    }
}

fn apply(connection: &Connection, subject: &Subject, asked: Asked) -> rusqlite::Result<Answer> {
    let Decision { write, answer } = decide(find(connection, &subject.identity)?.as_ref(), asked);
    if let Some(entry) = write {
        store(connection, subject, &entry)?;
    }
    Ok(answer)
}

fn renew(connection: &Connection, identity: &str, epoch: i64, lease: Duration) -> rusqlite::Result<()> {
    let until = Timestamp::now().checked_add(lease).unwrap_or(Timestamp::MAX).as_millisecond();
    let sql = "update ledger set lease_until = ?3 where identity = ?1 and epoch = ?2";
    connection.prepare_cached(sql)?.execute(params![identity, epoch, until]).map(drop)
}

/// Runs the handler. Whatever it did is undone unless it succeeds; a panic is a permanent failure.
fn run(
    connection: &Connection,
    identity: &str,
    content: &Content,
    function: &TransactionalFn,
) -> rusqlite::Result<Result<Content, Failure>> {
    connection.prepare_cached("savepoint effect")?.execute([])?;
    let transaction = Transaction { connection, identity };
    let result = catch_unwind(AssertUnwindSafe(|| function(content, &transaction)))
        .unwrap_or_else(|_| Err(Failure::Permanent(panicked())));
    if result.is_err() {
        connection.prepare_cached("rollback to effect")?.execute([])?;
    }
    connection.prepare_cached("release effect")?.execute([])?;
    Ok(result)
}

fn find(connection: &Connection, identity: &str) -> rusqlite::Result<Option<Entry>> {
    let sql = "select state, attempt, epoch, intended, succeeded, content_type, body from ledger where identity = ?1";
    connection.prepare_cached(sql)?.query_row([identity], entry).optional()
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let state = match row.get_ref(0)?.as_str()? {
        "CLAIMED" => State::Claimed,
        "INTENT" => State::Intent,
        "TOMBSTONE" => State::Tombstone,
        _ => State::Done(outcome(row)?),
    };
    Ok(Entry { state, attempt: row.get(1)?, epoch: row.get(2)?, intended: row.get(3)? })
}

fn outcome(row: &Row<'_>) -> rusqlite::Result<Outcome> {
    let (content_type, body): (String, Vec<u8>) = (row.get(5)?, row.get(6)?);
    Ok(match row.get(4)? {
        true => Outcome::Succeeded(Content { content_type, body: body.into() }),
        false => Outcome::Failed(Problem::from_body(&body)),
    })
}

fn store(connection: &Connection, subject: &Subject, entry: &Entry) -> rusqlite::Result<()> {
    let sql =
        "insert into ledger (identity, kind, state, attempt, epoch, intended, deadline, succeeded, content_type, body)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
        on conflict (identity) do update set state = ?3, attempt = ?4, epoch = ?5, intended = ?6,
            deadline = max(deadline, ?7), succeeded = ?8, content_type = ?9, body = ?10";
    let (state, outcome) = match &entry.state {
        State::Claimed => ("CLAIMED", None),
        State::Intent => ("INTENT", None),
        State::Tombstone => ("TOMBSTONE", None),
        State::Done(outcome) => ("DONE", Some(outcome)),
    };
    let (succeeded, content_type, body) = match outcome {
        None => (None, None, None),
        Some(Outcome::Succeeded(content)) => (Some(true), Some(&*content.content_type), Some(content.body.clone())),
        Some(Outcome::Failed(problem)) => (Some(false), Some(CONTENT_TYPE), Some(problem.to_json().into())),
    };
    connection.prepare_cached(sql)?.execute(params![
        subject.identity,
        subject.kind,
        state,
        entry.attempt,
        entry.epoch,
        entry.intended,
        subject.deadline.as_millisecond(),
        succeeded,
        content_type,
        body.as_deref(),
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_the_first_version_are_carried_over() {
        let mut connection = Connection::open_in_memory().unwrap();
        Migrations::new(vec![M::up(CREATE)]).to_latest(&mut connection).unwrap();
        let insert = "insert into ledger values (?1, 'order.place', ?2, 'application/json', ?3, 1000)";
        connection.execute(insert, params!["good", true, b"{}"]).unwrap();
        connection.execute(insert, params!["bad", false, Problem::canceled().to_json()]).unwrap();
        Migrations::new(vec![M::up(CREATE), M::up(ADD_STATES)]).to_latest(&mut connection).unwrap();
        let found = |identity| find(&connection, identity).unwrap().unwrap();
        let entry = |outcome| Entry { state: State::Done(outcome), attempt: 1, epoch: 1, intended: false };
        assert_eq!(found("good"), entry(Outcome::Succeeded(Content::json("{}"))));
        assert_eq!(found("bad"), entry(Outcome::Failed(Problem::canceled())));
        assert!(find(&connection, "other").unwrap().is_none());
    }
}
