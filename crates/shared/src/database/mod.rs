mod postgres;
mod queue;
mod sqlite;

pub use postgres::Postgres;
pub use queue::{Waiting, Writes, queue};
pub use sqlite::Sqlite;

/// Why the database did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// Locked by another program, not reachable now, or more writes wait than it can take: later it may work.
    #[error("the database is busy")]
    Busy,
    /// The disk is full: nothing was written.
    #[error("the disk is full")]
    Full,
    /// The disk or the file failed: after a failed sync nobody knows what the file holds, so the process must end
    /// (<https://www.sqlite.org/howtocorrupt.html>, section 3).
    #[error("the database file can no longer be trusted: {0}")]
    Untrusted(String),
    /// Anything else.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// Checks that `url` is one this build can open.
///
/// # Errors
/// What is wrong with it.
pub fn validate_url(url: &str) -> anyhow::Result<()> {
    if is_postgres(url) {
        postgres::options(url).map(drop)
    } else if url.starts_with(sqlite::SCHEME) {
        sqlite::path_of(url).map(drop)
    } else {
        anyhow::bail!("write sqlite://data/name.db, or postgres://user:password@host:5432/name")
    }
}

/// Whether `url` names a PostgreSQL database.
#[must_use]
pub fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}
