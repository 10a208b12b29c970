use super::postgres::{self, Database};
use shared::config::SecretUrl;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a requestor of a test keeps its operations, or a provider its ledger: in a file, or with `TEST_STORE=postgres` in
/// a database.
#[derive(Debug)]
pub enum StoreOfTest {
    /// An SQLite file.
    File(PathBuf),
    /// A PostgreSQL database.
    Database(Database),
}

/// A lock that is held by another program.
#[derive(Debug)]
pub enum Locked {
    /// On a file.
    File(rusqlite::Connection),
    /// In a database.
    Database(PgConnection),
}

impl Locked {
    /// Gives it back.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn release(self) {
        match self {
            Self::File(other) => other.execute_batch("rollback").unwrap(),
            Self::Database(other) => other.close().await.unwrap(),
        }
    }
}

impl StoreOfTest {
    /// A new one for the requestor or the provider; if it is a file, in `folder`.
    pub async fn prepare(folder: &Path, service: &str) -> Self {
        match postgres::for_store().await {
            Some(database) => Self::Database(database),
            None => Self::in_file(folder, service),
        }
    }

    /// The file of the requestor or the provider in `folder`.
    #[must_use]
    pub fn in_file(folder: &Path, service: &str) -> Self {
        Self::File(folder.join(format!("{service}.db")))
    }

    /// For `store.url` or `ledger.url`.
    #[must_use]
    pub fn url(&self) -> SecretUrl {
        match self {
            Self::File(file) => SecretUrl::new(format!("sqlite://{}", file.display())),
            Self::Database(database) => database.url.clone(),
        }
    }

    /// The one row of numbers that `sql` selects.
    ///
    /// # Panics
    /// When it does not.
    pub async fn numbers<const N: usize>(&self, sql: &str) -> [i64; N] {
        match self {
            Self::File(file) => {
                let store = rusqlite::Connection::open(file).unwrap();
                let read = |row: &rusqlite::Row<'_>| Ok(std::array::from_fn(|column| row.get(column).unwrap()));
                store.query_row(sql, [], read).unwrap()
            }
            Self::Database(database) => {
                let mut store = PgConnection::connect(database.url.expose()).await.unwrap();
                let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut store).await.unwrap();
                std::array::from_fn(|column| row.get(column))
            }
        }
    }

    /// Has it locked by another program, so that nothing can be written.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn lock(&self) -> Locked {
        match self {
            Self::File(file) => {
                let other = rusqlite::Connection::open(file).unwrap();
                other.execute_batch("begin immediate").unwrap();
                Locked::File(other)
            }
            Self::Database(database) => {
                let mut other = PgConnection::connect(database.url.expose()).await.unwrap();
                let lock = "begin; lock table operations in exclusive mode";
                sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
                Locked::Database(other)
            }
        }
    }

    /// Changes what is there, and returns how many rows.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn execute(&self, sql: &str) -> u64 {
        match self {
            Self::File(file) => {
                let store = rusqlite::Connection::open(file).unwrap();
                store.busy_timeout(Duration::from_secs(10)).unwrap();
                store.execute(sql, []).unwrap() as u64
            }
            Self::Database(database) => {
                let mut store = PgConnection::connect(database.url.expose()).await.unwrap();
                sqlx::query(AssertSqlSafe(sql)).execute(&mut store).await.unwrap().rows_affected()
            }
        }
    }
}
