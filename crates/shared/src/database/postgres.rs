use super::DatabaseError;
use anyhow::{Context, ensure};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool, Postgres as Server};
use std::str::FromStr;
use std::time::Duration;

/// How long a connection, a lock or a whole piece of work is waited for before the caller is told to come back.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const WORK_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that was idle for longer is tried before it is used: the server may have gone meanwhile.
const TRIED_AFTER: Duration = Duration::from_secs(1);
/// How long another instance may take to bring the tables up to date.
const MIGRATION_TIMEOUT: &str = "set local lock_timeout = '5min'; set local statement_timeout = 0";
/// The lock under which tables are brought up to date; any number that others do not use.
const MIGRATION_LOCK: i64 = 0x6172_725f_7461_626c;
const VERSIONS: &str = "create table if not exists schema_versions (part text primary key, version integer not null)";

/// A PostgreSQL database, which any number of processes may use at once.
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Opens `postgres://user:password@host:port/name` with at most `connections_max` connections, and brings the tables
    /// of `part` up to date: "store" and "ledger" may be in one database. Each of `migrations` runs once, in one
    /// transaction and under a lock, so that many instances may start at once.
    ///
    /// # Errors
    /// What is wrong with the URL, the server, its settings or its tables; never with the URL's password in it.
    pub async fn open(
        url: &str,
        connections_max: u32,
        part: &'static str,
        migrations: &[&'static str],
    ) -> anyhow::Result<Self> {
        let options = options(url)?.application_name(part);
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(BUSY_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, about| {
                Box::pin(async move {
                    if about.idle_for > TRIED_AFTER {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_with(options)
            .await
            .with_context(|| format!("cannot connect to the PostgreSQL server at {place}"))?;
        check(&pool).await?;
        migrate(&pool, part, migrations)
            .await
            .with_context(|| format!("cannot bring the tables of {part} up to date"))?;
        Ok(Self { pool })
    }

    /// Its connections.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// What `work` comes to, unless it takes too long: a server behind a dead network says nothing at all.
    ///
    /// # Errors
    /// [`DatabaseError`]. If `work` was a commit, it may have happened all the same.
    pub async fn run<T>(&self, work: impl Future<Output = sqlx::Result<T>>) -> Result<T, DatabaseError> {
        let done = tokio::time::timeout(WORK_TIMEOUT, work).await;
        done.map_err(|_| DatabaseError::Busy)?.map_err(DatabaseError::from)
    }

    /// Begins a transaction that reads and writes.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn begin(&self) -> sqlx::Result<sqlx::Transaction<'static, Server>> {
        self.pool.begin().await
    }
}

pub(super) fn options(url: &str) -> anyhow::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url).ok().context("write postgres://user:password@host:5432/name")?;
    ensure!(
        options.get_database().is_some(),
        "the URL names no database; write postgres://user:password@host:5432/name"
    );
    // An instance that stops in the midst of a transaction must not hold up the others for long.
    let settings = [
        ("lock_timeout", "5s"),
        ("statement_timeout", "15s"),
        ("idle_in_transaction_session_timeout", "5s"),
        ("tcp_user_timeout", "10s"),
    ];
    Ok(options.options(settings).disable_statement_logging())
}

/// A commit that is not on disk when it returns would break every promise.
async fn check(pool: &PgPool) -> anyhow::Result<()> {
    let synchronous: String = sqlx::query_scalar("show synchronous_commit").fetch_one(pool).await?;
    ensure!(
        synchronous != "off",
        "this PostgreSQL database has synchronous_commit = off, so commits can be lost; set it on"
    );
    Ok(())
}

async fn migrate(pool: &PgPool, part: &str, migrations: &[&'static str]) -> anyhow::Result<()> {
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql(MIGRATION_TIMEOUT).execute(&mut *transaction).await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *transaction).await?;
    sqlx::raw_sql(VERSIONS).execute(&mut *transaction).await?;
    let done = version(&mut transaction, part).await?;
    ensure!(
        done <= migrations.len(),
        "they are of version {done}, and this program knows only {}: start a newer one",
        migrations.len()
    );
    for migration in &migrations[done..] {
        sqlx::raw_sql(*migration).execute(&mut *transaction).await?;
    }
    let note =
        "insert into schema_versions values ($1, $2) on conflict (part) do update set version = excluded.version";
    sqlx::query(note).bind(part).bind(i32::try_from(migrations.len())?).execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

async fn version(connection: &mut PgConnection, part: &str) -> anyhow::Result<usize> {
    let found: Option<i32> = sqlx::query_scalar("select version from schema_versions where part = $1")
        .bind(part)
        .fetch_optional(connection)
        .await?;
    Ok(found.unwrap_or_default().try_into()?)
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                Self::Busy
            }
            sqlx::Error::Database(said) => match said.code().as_deref() {
                Some("53100") => Self::Full,
                Some(code) if passes(code) => Self::Busy,
                _ => Self::Failed(error.to_string()),
            },
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Whether it may work later (PostgreSQL's appendix A): connection lost (08), serialization or deadlock (40), out of
/// connections or memory (53), lock not to be had (55P03), stopping or starting, or cut off by a timeout (57), too long
/// idle in a transaction (25P03), read-only as a standby is (25006).
fn passes(code: &str) -> bool {
    ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)) || ["55P03", "25P03", "25006"].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::validate_url;

    #[test]
    fn a_url_must_name_a_database_and_what_is_said_of_it_has_no_password() {
        for url in ["postgres://me:secret@db:5432/store", "postgresql://db/store?sslmode=require"] {
            validate_url(url).unwrap();
        }
        for url in ["postgres://me:secret@db:5432", "postgres://me:secret@db:port/store", "mysql://me:secret@db/store"]
        {
            let said = format!("{:#}", validate_url(url).unwrap_err());
            assert!(said.contains("postgres://user:password@host:5432/name") && !said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn what_may_pass_is_told_from_what_does_not() {
        for code in ["08006", "40001", "40P01", "53300", "55P03", "57P01", "57014", "25006"] {
            assert!(passes(code), "{code}");
        }
        for code in ["23505", "42P01", "22003", "XX001"] {
            assert!(!passes(code), "{code}");
        }
    }
}
