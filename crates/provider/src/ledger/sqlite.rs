use crate::handler::{Failure, TransactionalFn};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
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

/// How a request was carried out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Executed {
    /// Now, for the first time.
    Now(Outcome),
    /// Before: this is what came of it then.
    Before(Outcome),
    /// Not at all, and it may work later.
    NotNow(Problem),
}

/// The ledger in an SQLite file, together with the tables of the handlers.
#[derive(Clone, Debug)]
pub(crate) struct Ledger(Sqlite);

impl Ledger {
    /// Opens the ledger, creates it if it is not there, and lets `prepare` make the handlers' tables.
    pub(crate) async fn open(
        url: &str,
        prepare: Vec<impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static>,
    ) -> anyhow::Result<Self> {
        let database = Sqlite::open(url, &Migrations::new(vec![M::up(CREATE)]))?;
        database.write(move |connection| prepare.into_iter().try_for_each(|prepare| prepare(connection))).await?;
        Ok(Self(database))
    }

    /// Runs a transactional handler's `function` and records its outcome in one commit, unless there is an outcome already.
    pub(crate) async fn execute(
        &self,
        identity: String,
        kind: String,
        content: Content,
        function: Arc<TransactionalFn>,
    ) -> Result<Executed, DatabaseError> {
        self.0
            .write(move |connection| {
                if let Some(outcome) = find(connection, &identity)? {
                    return Ok(Executed::Before(outcome));
                }
                let outcome = match run(connection, &identity, &content, &*function)? {
                    Ok(content) => Outcome::Succeeded(content),
                    Err(Failure::Permanent(problem)) => Outcome::Failed(problem),
                    Err(Failure::Transient(problem)) => return Ok(Executed::NotNow(problem)),
                };
                record(connection, &identity, &kind, &outcome)?;
                Ok(Executed::Now(outcome))
            })
            .await
    }

    /// Forgets what was recorded more than `retention` ago.
    pub(crate) async fn purge(&self, now: Timestamp, retention: Duration) -> Result<(), DatabaseError> {
        let before = now.checked_sub(retention).unwrap_or(Timestamp::MIN).as_millisecond();
        let sql = "delete from ledger where identity in
            (select identity from ledger where recorded_at < ?1 order by recorded_at limit ?2)";
        loop {
            let deleted = self.0.write(move |c| c.prepare_cached(sql)?.execute(params![before, PURGE_BATCH])).await?;
            if deleted < PURGE_BATCH {
                return Ok(());
            }
        }
    }

    /// Returns when the file can no longer be trusted; the process must not go on.
    pub(crate) async fn failed(&self) {
        self.0.failed().await;
    }
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

/// The outcome of a handler that panicked. What it said is in the log, not for callers.
pub(crate) fn panicked() -> Problem {
    Problem::new("handler-panicked", 500, "The provider failed", "the handler panicked; see the provider's log")
}

fn find(connection: &Connection, identity: &str) -> rusqlite::Result<Option<Outcome>> {
    connection
        .prepare_cached("select succeeded, content_type, body from ledger where identity = ?1")?
        .query_row([identity], |row| {
            let (content_type, body): (String, Vec<u8>) = (row.get(1)?, row.get(2)?);
            Ok(match row.get(0)? {
                true => Outcome::Succeeded(Content { content_type, body: body.into() }),
                false => Outcome::Failed(Problem::from_body(&body)),
            })
        })
        .optional()
}

fn record(connection: &Connection, identity: &str, kind: &str, outcome: &Outcome) -> rusqlite::Result<()> {
    let (succeeded, content_type, body) = match outcome {
        Outcome::Succeeded(content) => (true, content.content_type.as_str(), content.body.clone()),
        Outcome::Failed(problem) => (false, CONTENT_TYPE, problem.to_json().into()),
    };
    let now = Timestamp::now().as_millisecond();
    connection.prepare_cached("insert into ledger values (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        identity,
        kind,
        succeeded,
        content_type,
        &body[..],
        now
    ])?;
    Ok(())
}
