//! The ledger in a PostgreSQL database, which all instances of a provider group share. Leases are by the server's clock.

use super::entry::{Answer, Asked, Decision, Entry, State, decide};
use super::{Executed, PreparePostgres, Subject, panicked};
use crate::handler::{Failure, PostgresFn};
use futures_util::FutureExt;
use jiff::Timestamp;
use shared::database::{DatabaseError, Postgres};
use shared::message::{Content, Outcome};
use shared::problem::{CONTENT_TYPE, Problem};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// What makes the table, in the order in which it came to be. Never change one: there are databases made with it.
const MIGRATIONS: [&str; 1] = [CREATE];

/// The same as SQLite's. Each row is written again a few times, so its page has room left for that.
const CREATE: &str = "
create table ledger (
    identity text primary key,
    kind text not null,
    state text not null check (state in ('CLAIMED', 'INTENT', 'DONE', 'TOMBSTONE')),
    attempt bigint not null,
    epoch bigint not null,
    intended boolean not null,
    lease_until timestamptz,
    deadline bigint not null,
    succeeded boolean,
    content_type text,
    body bytea,
    check ((state = 'DONE') = (body is not null))
) with (fillfactor = 80);
create index ledger_by_deadline on ledger (deadline);
";

/// The lock under which handlers make their tables; any number that others do not use.
const PREPARE_LOCK: i64 = 0x6172_725f_6c65_6467;

/// Entries that are forgotten at a time, so that nothing waits long behind it.
const PURGE_BATCH: i64 = 256;

/// The open transaction in which a handler has its effect.
#[derive(Debug)]
pub struct PostgresTransaction {
    transaction: sqlx::Transaction<'static, sqlx::Postgres>,
    identity: String,
}

impl PostgresTransaction {
    /// The ledger's database. What is done here is undone if the handler fails, and may take 15 s at most.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Names the request: the same each time it is repeated, different for every other.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Ledger(Postgres);

/// What is known of a request whose row this transaction has locked.
struct Found {
    entry: Option<Entry>,
    /// What is left of the lease of its claim.
    held_for: Duration,
}

impl Ledger {
    pub(super) async fn open(url: &str, connections_max: u32, prepare: Vec<PreparePostgres>) -> anyhow::Result<Self> {
        let database = Postgres::open(url, connections_max, "ledger", &MIGRATIONS).await?;
        let mut transaction = database.begin().await?;
        // Others may start now, too, and "create table if not exists" fails for one of two who do it at once.
        sqlx::query("select pg_advisory_xact_lock($1)").bind(PREPARE_LOCK).execute(&mut *transaction).await?;
        for prepare in prepare {
            prepare(&mut transaction).await?;
        }
        transaction.commit().await?;
        Ok(Self(database))
    }

    pub(super) async fn execute(
        &self,
        subject: &Subject,
        attempt: u32,
        content: Content,
        function: &PostgresFn,
    ) -> Result<Executed, DatabaseError> {
        let work = async {
            let mut transaction = self.0.begin().await?;
            // The row stays locked to the end, so whoever else has this request waits for what becomes of it.
            let found = find(&mut transaction, subject).await?;
            let claimed = decide(found.entry.as_ref(), Asked::Claim { attempt, held: !found.held_for.is_zero() });
            let Some(entry) = claimed.write else { return Ok(Executed::Before(claimed.answer)) };
            let mut transaction = PostgresTransaction { transaction, identity: subject.identity.clone() };
            let outcome = match run(&mut transaction, content, function).await? {
                Ok(content) => Outcome::Succeeded(content),
                Err(Failure::Permanent(problem)) => Outcome::Failed(problem),
                Err(transient) => return Ok(Executed::NotNow(transient)),
            };
            shared::crash::point("provider.effect");
            let entry = Entry { state: State::Done(outcome.clone()), ..entry };
            store(transaction.connection(), subject, &entry, None).await?;
            transaction.transaction.commit().await?;
            Ok(Executed::Now(outcome))
        };
        self.0.run(work).await
    }

    /// The answer, and what is left of another's lease.
    pub(super) async fn claim(
        &self,
        subject: &Subject,
        attempt: u32,
        lease: Duration,
    ) -> Result<(Answer, Duration), DatabaseError> {
        self.decide(subject, lease, |held| Asked::Claim { attempt, held }).await
    }

    pub(super) async fn apply(&self, subject: &Subject, asked: Asked) -> Result<Answer, DatabaseError> {
        Ok(self.decide(subject, Duration::ZERO, |_| asked.clone()).await?.0)
    }

    async fn decide(
        &self,
        subject: &Subject,
        lease: Duration,
        asked: impl Fn(bool) -> Asked,
    ) -> Result<(Answer, Duration), DatabaseError> {
        let work = async {
            let mut transaction = self.0.begin().await?;
            let found = find(&mut transaction, subject).await?;
            let asked = asked(!found.held_for.is_zero());
            // A claim begins its lease, and one that is given back has none any more.
            let lease = matches!(asked, Asked::Claim { .. } | Asked::Release { .. }).then_some(lease);
            let Decision { write, answer } = decide(found.entry.as_ref(), asked);
            match write {
                Some(entry) => {
                    store(&mut transaction, subject, &entry, lease).await?;
                    transaction.commit().await?;
                }
                None => transaction.rollback().await?,
            }
            Ok((answer, found.held_for))
        };
        self.0.run(work).await
    }

    pub(super) async fn renew(&self, identity: &str, epoch: i64, lease: Duration) -> Result<(), DatabaseError> {
        let sql = "update ledger set lease_until = clock_timestamp() + make_interval(secs => $3)
            where identity = $1 and epoch = $2 and state in ('CLAIMED', 'INTENT')";
        let renew = sqlx::query(sql).bind(identity).bind(epoch).bind(lease.as_secs_f64()).execute(self.0.pool());
        self.0.run(renew).await.map(drop)
    }

    pub(super) async fn purge(&self, before: Timestamp) -> Result<(), DatabaseError> {
        let sql = "delete from ledger where identity in
            (select identity from ledger where deadline < $1 order by deadline limit $2 for update skip locked)";
        loop {
            let purge = sqlx::query(sql).bind(before.as_millisecond()).bind(PURGE_BATCH).execute(self.0.pool());
            if self.0.run(purge).await?.rows_affected() < PURGE_BATCH.unsigned_abs() {
                return Ok(());
            }
        }
    }
}

/// Locks the row of a request, and makes it first if there is none: then nothing is known of it, and the row must be
/// stored or rolled back.
async fn find(connection: &mut PgConnection, subject: &Subject) -> sqlx::Result<Found> {
    let make = "insert into ledger (identity, kind, state, attempt, epoch, intended, deadline)
        values ($1, $2, 'CLAIMED', 0, 0, false, $3) on conflict (identity) do nothing";
    let lock = "select state, attempt, epoch, intended, succeeded, content_type, body,
            coalesce(extract(epoch from lease_until - clock_timestamp()), 0)::float8 as held_for
        from ledger where identity = $1 for update";
    loop {
        let made = sqlx::query(make)
            .bind(&subject.identity)
            .bind(&subject.kind)
            .bind(subject.deadline.as_millisecond())
            .execute(&mut *connection)
            .await?;
        if made.rows_affected() == 1 {
            return Ok(Found { entry: None, held_for: Duration::ZERO });
        }
        // None if it was purged just now.
        if let Some(row) = sqlx::query(lock).bind(&subject.identity).fetch_optional(&mut *connection).await? {
            let held_for = Duration::try_from_secs_f64(row.try_get("held_for")?).unwrap_or_default();
            return Ok(Found { entry: Some(entry(&row)?), held_for });
        }
    }
}

fn entry(row: &PgRow) -> sqlx::Result<Entry> {
    let state = match row.try_get("state")? {
        "CLAIMED" => State::Claimed,
        "INTENT" => State::Intent,
        "TOMBSTONE" => State::Tombstone,
        _ => State::Done(outcome(row)?),
    };
    let attempt = u32::try_from(row.try_get::<i64, _>("attempt")?).unwrap_or(u32::MAX);
    Ok(Entry { state, attempt, epoch: row.try_get("epoch")?, intended: row.try_get("intended")? })
}

fn outcome(row: &PgRow) -> sqlx::Result<Outcome> {
    let (content_type, body): (String, Vec<u8>) = (row.try_get("content_type")?, row.try_get("body")?);
    Ok(match row.try_get("succeeded")? {
        true => Outcome::Succeeded(Content { content_type, body: body.into() }),
        false => Outcome::Failed(Problem::from_body(&body)),
    })
}

/// Stores an entry in the row that is locked. Its lease is from now if one is given, else as it was.
async fn store(
    connection: &mut PgConnection,
    subject: &Subject,
    entry: &Entry,
    lease: Option<Duration>,
) -> sqlx::Result<()> {
    let (state, outcome) = match &entry.state {
        State::Claimed => ("CLAIMED", None),
        State::Intent => ("INTENT", None),
        State::Tombstone => ("TOMBSTONE", None),
        State::Done(outcome) => ("DONE", Some(outcome)),
    };
    let (succeeded, content_type, body) = match outcome {
        None => (None, None, None),
        Some(Outcome::Succeeded(content)) => {
            // A text cannot have a zero in it here, and no content type has one.
            (Some(true), Some(content.content_type.replace('\0', "")), Some(content.body.clone()))
        }
        Some(Outcome::Failed(problem)) => (Some(false), Some(CONTENT_TYPE.to_owned()), Some(problem.to_json().into())),
    };
    let sql =
        "update ledger set state = $2, attempt = $3, epoch = $4, intended = $5, deadline = greatest(deadline, $6),
            succeeded = $7, content_type = $8, body = $9,
            lease_until = coalesce(clock_timestamp() + make_interval(secs => $10), lease_until)
        where identity = $1";
    sqlx::query(sql)
        .bind(&subject.identity)
        .bind(state)
        .bind(i64::from(entry.attempt))
        .bind(entry.epoch)
        .bind(entry.intended)
        .bind(subject.deadline.as_millisecond())
        .bind(succeeded)
        .bind(content_type)
        .bind(body.as_deref())
        .bind(lease.map(|lease| lease.as_secs_f64()))
        .execute(connection)
        .await?;
    Ok(())
}

/// Runs the handler. Whatever it did is undone unless it succeeds; a panic is a permanent failure.
async fn run(
    transaction: &mut PostgresTransaction,
    content: Content,
    function: &PostgresFn,
) -> sqlx::Result<Result<Content, Failure>> {
    sqlx::raw_sql("savepoint effect").execute(transaction.connection()).await?;
    let result = AssertUnwindSafe(function(content, transaction))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(Failure::Permanent(panicked())));
    if result.is_err() {
        sqlx::raw_sql("rollback to savepoint effect").execute(transaction.connection()).await?;
    }
    Ok(result)
}
