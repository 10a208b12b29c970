//! What this provider group has done, and what it has promised not to do: a repeated request is answered from here
//! without running its effect again.
//!
//! `entry` is the whole protocol of an entry; `sqlite` and `postgres` store what it says, in one file for one process or in
//! one database for many.

mod entry;
mod postgres;
mod sqlite;
#[cfg(test)]
mod tests;

pub(crate) use entry::Answer;
pub use postgres::PostgresTransaction;
pub use sqlite::Transaction;

use crate::config::LedgerConfig;
use crate::handler::{Failure, Forms, Handler};
use anyhow::{Context, ensure};
use entry::Asked;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rusqlite::Connection;
use shared::database::{self, DatabaseError};
use shared::message::{Content, Outcome, Request};
use shared::problem::Problem;
use sqlx::PgConnection;
use std::collections::BTreeMap;
use std::time::Duration;

/// What an entry is about.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) identity: String,
    pub(crate) kind: String,
    /// The request's, from which on the retention counts. A foreign request without one counts from now.
    pub(crate) deadline: Timestamp,
}

impl Subject {
    /// What a request is about; none if it has no name by which a repeat could be recognised.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let deadline = request.deadline.unwrap_or_else(Timestamp::now);
        // PostgreSQL has no text with a zero in it.
        let identity = request.identity().filter(|identity| !identity.contains('\0'))?;
        Some(Self { identity, kind: request.kind.clone(), deadline })
    }
}

/// How a transactional request was carried out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Executed {
    /// Now, for the first time.
    Now(Outcome),
    /// Not: there was something in the ledger already.
    Before(Answer),
    /// Not, and it may work later.
    NotNow(Failure),
}

/// What came of the wish to carry out a request with an external effect.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// It may be carried out.
    Now(Claim),
    /// There was something in the ledger already.
    Before(Answer),
    /// Another process has the claim, for this long unless it renews it.
    Held(Duration),
}

/// The right of one execution to have the effect of a request.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    ledger: Ledger,
    subject: Subject,
    epoch: i64,
}

/// Makes the tables of handlers, in the ledger's database.
#[derive(Default)]
pub(crate) struct Prepare {
    pub(crate) sqlite: Vec<PrepareSqlite>,
    pub(crate) postgres: Vec<PreparePostgres>,
}

impl Prepare {
    pub(crate) fn is_empty(&self) -> bool {
        self.sqlite.is_empty() && self.postgres.is_empty()
    }
}

impl std::fmt::Debug for Prepare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} steps, {} on PostgreSQL", self.sqlite.len(), self.postgres.len())
    }
}

pub(crate) type PrepareSqlite = Box<dyn Fn(&Connection) -> rusqlite::Result<()> + Send>;
pub(crate) type PreparePostgres =
    Box<dyn for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<()>> + Send>;

/// The ledger, together with the tables of the handlers.
#[derive(Clone, Debug)]
pub(crate) enum Ledger {
    Sqlite(sqlite::Ledger),
    /// What is asked of it is on the heap: it would make every future that asks large.
    Postgres(postgres::Ledger),
}

impl Ledger {
    /// Opens the ledger, creates it if it is not there, and lets `prepare` make the handlers' tables.
    pub(crate) async fn open(
        config: &LedgerConfig,
        handlers: &BTreeMap<String, Handler>,
        prepare: Prepare,
    ) -> anyhow::Result<Self> {
        let url = config.url.expose();
        let on_postgres = database::is_postgres(url);
        let fits = |handler: &Handler| match handler {
            Handler::Transactional(forms) if on_postgres => forms.postgres.is_some(),
            Handler::Transactional(forms) => forms.sqlite.is_some(),
            _ => true,
        };
        if let Some((kind, _)) = handlers.iter().find(|(_, handler)| !fits(handler)) {
            let (is, form) = match on_postgres {
                true => ("PostgreSQL", "handle_transactional_on_postgres"),
                false => ("SQLite", "handle_transactional"),
            };
            anyhow::bail!(
                "ledger.url is of {is}, and the handler of {kind:?} has no form for it: register it by {form}"
            );
        }
        if on_postgres {
            ensure!(config.connections_max > 0, "ledger.connections_max must be at least 1");
            let ledger = postgres::Ledger::open(url, config.connections_max, prepare.postgres).await;
            return Ok(Self::Postgres(ledger.context("ledger.url")?));
        }
        Ok(Self::Sqlite(sqlite::Ledger::open(url, prepare.sqlite).await?))
    }

    /// Runs a transactional handler's `function` and records its outcome in one commit, unless there is an outcome
    /// already.
    pub(crate) async fn execute(
        &self,
        subject: Subject,
        attempt: u32,
        content: Content,
        forms: &Forms,
    ) -> Result<Executed, DatabaseError> {
        let missing = || DatabaseError::Failed("the handler has no form for this database".into());
        match self {
            Self::Sqlite(ledger) => {
                let function = forms.sqlite.clone().ok_or_else(missing)?;
                ledger.execute(subject, attempt, content, function).await
            }
            Self::Postgres(ledger) => {
                let function = forms.postgres.as_ref().ok_or_else(missing)?;
                Box::pin(ledger.execute(&subject, attempt, content, &**function)).await
            }
        }
    }

    /// Asks for the right to carry out `attempt` of a request, and holds it for `lease`.
    pub(crate) async fn claim(
        &self,
        subject: Subject,
        attempt: u32,
        lease: Duration,
    ) -> Result<Claimed, DatabaseError> {
        let (answer, held_for) = match self {
            // One process at a time has the file open, so what is held there is held by the dead.
            Self::Sqlite(ledger) => (ledger.claim(&subject, attempt, lease).await?, Duration::ZERO),
            Self::Postgres(ledger) => Box::pin(ledger.claim(&subject, attempt, lease)).await?,
        };
        Ok(match answer {
            Answer::Yes { epoch } => Claimed::Now(Claim { ledger: self.clone(), subject, epoch }),
            Answer::Held => Claimed::Held(held_for),
            answer => Claimed::Before(answer),
        })
    }

    /// Writes a tombstone unless the effect may have happened.
    pub(crate) async fn cancel(&self, subject: Subject, attempt: u32) -> Result<Answer, DatabaseError> {
        self.apply(&subject, Asked::Cancel { attempt }).await
    }

    async fn apply(&self, subject: &Subject, asked: Asked) -> Result<Answer, DatabaseError> {
        match self {
            Self::Sqlite(ledger) => ledger.apply(subject, asked).await,
            Self::Postgres(ledger) => Box::pin(ledger.apply(subject, asked)).await,
        }
    }

    /// Forgets the requests whose deadline passed more than `retention` ago.
    pub(crate) async fn purge(&self, now: Timestamp, retention: Duration) -> Result<(), DatabaseError> {
        let before = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
        match self {
            Self::Sqlite(ledger) => ledger.purge(before).await,
            Self::Postgres(ledger) => Box::pin(ledger.purge(before)).await,
        }
    }

    /// Whether one transaction after the other is written, and those that wait are committed together.
    pub(crate) fn commits_together(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    /// Returns when the file can no longer be trusted; the process must not go on.
    pub(crate) async fn failed(&self) {
        match self {
            Self::Sqlite(ledger) => ledger.failed().await,
            Self::Postgres(_) => std::future::pending().await,
        }
    }
}

impl Claim {
    /// The idempotency key of the effect.
    pub(crate) fn key(&self) -> &str {
        &self.subject.identity
    }

    /// Writes down that the effect may happen from now on; refused if the request was canceled.
    pub(crate) async fn intend(&self) -> Result<Answer, DatabaseError> {
        self.ledger.apply(&self.subject, Asked::Intend { epoch: self.epoch }).await
    }

    /// Records what came of it.
    pub(crate) async fn record(&self, outcome: Outcome) -> Result<Answer, DatabaseError> {
        self.ledger.apply(&self.subject, Asked::Record { epoch: self.epoch, outcome }).await
    }

    /// Gives the right back without an outcome.
    pub(crate) async fn release(&self) -> Result<Answer, DatabaseError> {
        self.ledger.apply(&self.subject, Asked::Release { epoch: self.epoch }).await
    }

    /// Holds the right for `lease` from now.
    pub(crate) async fn renew(&self, lease: Duration) -> Result<(), DatabaseError> {
        let identity = &self.subject.identity;
        match &self.ledger {
            Ledger::Sqlite(ledger) => ledger.renew(identity, self.epoch, lease).await,
            Ledger::Postgres(ledger) => Box::pin(ledger.renew(identity, self.epoch, lease)).await,
        }
    }
}

/// The outcome of a handler that panicked. What it said is in the log, not for callers.
pub(crate) fn panicked() -> Problem {
    Problem::new("handler-panicked", 500, "The provider failed", "the handler panicked; see the provider's log")
}
