use super::DatabaseError;
use super::queue::{Waiting, Writes, queue};
use anyhow::Context;
use rusqlite::{Connection, ErrorCode};
use rusqlite_migration::Migrations;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

pub(super) const SCHEME: &str = "sqlite://";
/// Writes that are committed together at most. Beyond a few hundred the sync to disk no longer dominates.
const BATCH_MAX: usize = 512;
/// A batch of so many lately is a sign of many callers, of whom more are on their way.
const MANY: usize = 128;
/// How long these are waited for: a page that many writes change is then written once, and there are half as many syncs.
const GATHER: Duration = Duration::from_millis(5);
/// How long a lock held by another program is waited for before the caller is told to come back.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections for reading.
const READERS: usize = 4;
/// Prepared statements kept for each connection.
const STATEMENTS: usize = 64;

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt) => Self::Untrusted(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// A write of a batch.
trait Write: Send {
    /// Does it in the transaction of its batch; once more if that was rolled back because of another.
    fn run(&mut self, connection: &Connection) -> Result<(), DatabaseError>;
    /// Tells who waits what became of it, once its batch is committed or not.
    fn end(self: Box<Self>, committed: Result<(), DatabaseError>);
}

struct Job<T, F> {
    job: F,
    outcome: Result<T, DatabaseError>,
    done: oneshot::Sender<Result<T, DatabaseError>>,
}

impl<T: Send, F: FnMut(&Connection) -> rusqlite::Result<T> + Send> Write for Job<T, F> {
    fn run(&mut self, connection: &Connection) -> Result<(), DatabaseError> {
        self.outcome = (self.job)(connection).map_err(DatabaseError::from);
        self.outcome.as_ref().map(drop).map_err(Clone::clone)
    }

    fn end(self: Box<Self>, committed: Result<(), DatabaseError>) {
        drop(self.done.send(committed.and(self.outcome)));
    }
}

/// An SQLite database with one writer, which commits what waits together, and a few readers.
///
/// A write is durable when it returns: WAL with `synchronous=FULL`, one sync for all the writes of a batch.
/// The file belongs to one process at a time.
#[derive(Clone, Debug)]
pub struct Sqlite(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    writes: Writes<Box<dyn Write>>,
    readers: Mutex<Vec<Connection>>,
    reader_slots: Arc<Semaphore>,
    failed: CancellationToken,
    lock: File,
}

impl Sqlite {
    /// Opens `sqlite://path/to/file.db`, creates it if it is not there, and brings its tables up to date.
    ///
    /// # Errors
    /// What is wrong with the URL, the file, its settings or its tables; and when another process has it open.
    pub fn open(url: &str, migrations: &Migrations<'_>) -> anyhow::Result<Self> {
        Self::open_with(url, migrations, || {})
    }

    /// The same; `committed` is called on the writer's thread after each batch, before those who wait for it are told.
    ///
    /// # Errors
    /// See [`Sqlite::open`].
    pub fn open_with(
        url: &str,
        migrations: &Migrations<'_>,
        committed: impl Fn() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let path = path_of(url)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let lock = lock(&path)?;
        let mut writer = connect(&path)?;
        migrations.to_latest(&mut writer).with_context(|| format!("cannot bring {} up to date", path.display()))?;
        let (writes, waiting) = queue();
        // Of its own, since whoever opens may have none; it only waits.
        let runtime = tokio::runtime::Builder::new_current_thread().build().context("a runtime for the writer")?;
        let failed = CancellationToken::new();
        let stopped = failed.clone().drop_guard();
        std::thread::Builder::new().name("sqlite-writer".into()).spawn(move || {
            let _stopped = stopped;
            write_batches(&writer, (&runtime, waiting), committed);
        })?;
        let (readers, reader_slots) = (Mutex::default(), Arc::new(Semaphore::new(READERS)));
        Ok(Self(Arc::new(Inner { path, writes, readers, reader_slots, failed, lock })))
    }

    /// Runs `job` in a transaction and returns when it is durable. If `job` fails, what it did is undone. It may be run
    /// once more, after what it did was undone, because of another write.
    ///
    /// # Errors
    /// [`DatabaseError`]; then nothing of `job` is in the database.
    pub async fn write<T: Send + 'static>(
        &self,
        job: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let (job, result) = queued(job);
        self.0.writes.send(job).await?;
        ended(result).await
    }

    /// The same for what brings more work: it waits behind all other writes, and fails at once where many wait there.
    ///
    /// # Errors
    /// See [`Sqlite::write`]; [`DatabaseError::Busy`] without any delay.
    pub async fn write_new<T: Send + 'static>(
        &self,
        job: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let (job, result) = queued(job);
        self.0.writes.send_new(job)?;
        ended(result).await
    }

    /// Runs `job` on a connection for reading, off the runtime's threads.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let slots = Arc::clone(&self.0.reader_slots);
        let slot = slots.acquire_owned().await.map_err(|_| DatabaseError::Busy)?;
        let inner = Arc::clone(&self.0);
        let read = move || -> Result<T, DatabaseError> {
            // Held until the connection is back, even if nobody waits for the result any more.
            let _slot = slot;
            let idle = inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => connect(&inner.path).map_err(|error| DatabaseError::Failed(format!("{error:#}")))?,
            };
            let result = job(&connection)?;
            inner.readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            Ok(result)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(DatabaseError::Failed(e.to_string())))
    }

    /// Returns when what was begun has ended, also what nobody waits for any more, and another process may open the file.
    /// Nothing may be asked of it after that.
    pub async fn close(&self) {
        let _ = self.0.reader_slots.acquire_many(READERS as u32).await;
        // Behind all others of either sort.
        let _ = self.write(|_| Ok(())).await;
        let (last, ended) = queued(|_| Ok(()));
        self.0.writes.send_last(last).await;
        let _ = ended.await;
        if let Err(error) = self.0.lock.unlock() {
            tracing::warn!(%error, path = %self.0.path.display(), "cannot unlock the database file");
        }
    }

    /// Returns when the writer has stopped because the file can no longer be trusted; the process must not go on.
    pub async fn failed(&self) {
        self.0.failed.cancelled().await;
    }
}

type Ended<T> = oneshot::Receiver<Result<T, DatabaseError>>;

fn queued<T: Send + 'static>(
    job: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> (Box<dyn Write>, Ended<T>) {
    let (done, result) = oneshot::channel();
    (Box::new(Job { job, outcome: Err(DatabaseError::Failed("not run".into())), done }), result)
}

async fn ended<T>(result: Ended<T>) -> Result<T, DatabaseError> {
    result.await.unwrap_or_else(|_| Err(DatabaseError::Failed("the writer has stopped".into())))
}

pub(super) fn path_of(url: &str) -> anyhow::Result<PathBuf> {
    match url.strip_prefix(SCHEME) {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => anyhow::bail!("{url} names no file; write sqlite://data/name.db"),
    }
}

/// SQLite's own locks would let two processes in, but what one instance knows of running work the other does not.
fn lock(path: &Path) -> anyhow::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::create(&name).with_context(|| format!("cannot create {}", Path::new(&name).display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("another process uses {}: an SQLite file serves one instance", path.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn connect(path: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let mode: String = connection.query_row("pragma journal_mode = wal", [], |row| row.get(0))?;
    connection.execute_batch("pragma synchronous = full; pragma foreign_keys = on; pragma cache_size = -16000")?;
    let synchronous: i64 = connection.query_row("pragma synchronous", [], |row| row.get(0))?;
    // Read back: a file system without shared memory refuses WAL silently.
    anyhow::ensure!(mode == "wal" && synchronous == 2, "{} cannot be made durable: {mode}", path.display());
    Ok(connection)
}

fn write_batches(
    connection: &Connection,
    (runtime, mut waiting): (&Runtime, Waiting<Box<dyn Write>>),
    committed: impl Fn(),
) {
    let (mut batch, mut lately) = (Vec::with_capacity(BATCH_MAX), 0);
    while runtime.block_on(waiting.receive(&mut batch, BATCH_MAX)) {
        if lately >= MANY && batch.len() < BATCH_MAX {
            std::thread::sleep(GATHER);
            waiting.fill(&mut batch, BATCH_MAX);
        }
        lately = batch.len().max(lately - lately / 16);
        let result = write_together(connection, &mut batch).unwrap_or_else(|| write_each(connection, &mut batch));
        committed();
        for write in batch.drain(..) {
            write.end(result.clone());
        }
        if let Err(error @ DatabaseError::Untrusted(_)) = result {
            tracing::error!(%error, "stopping");
            return;
        }
    }
}

/// None, and nothing is written, if one failed that must be undone alone. That is seldom, so there is no savepoint for
/// each: SQLite copies each page that is changed after one, which costs more than the writes.
fn write_together(connection: &Connection, batch: &mut [Box<dyn Write>]) -> Option<Result<(), DatabaseError>> {
    if let Err(error) = connection.execute_batch("begin immediate") {
        return Some(Err(error.into()));
    }
    for write in batch {
        let before = connection.total_changes();
        let failed = write
            .run(connection)
            .is_err_and(|error| matches!(error, DatabaseError::Untrusted(_)) || connection.total_changes() != before);
        if failed || connection.is_autocommit() {
            roll_back(connection);
            return None;
        }
    }
    Some(commit(connection))
}

/// A savepoint for each.
fn write_each(connection: &Connection, batch: &mut [Box<dyn Write>]) -> Result<(), DatabaseError> {
    connection.execute_batch("begin immediate")?;
    for write in batch {
        // If there is no savepoint or no end of one, nothing of the batch counts: its writes may not have been run again.
        let outcome = in_savepoint(connection, write.as_mut()).map_err(|error| {
            roll_back(connection);
            DatabaseError::from(error)
        })?;
        // A full disk and the like end the whole transaction, with all that was done in it. A job that ran now
        // would be committed on its own, and its caller told that it was not.
        if connection.is_autocommit() {
            return outcome.and(Err(DatabaseError::Failed("the transaction has ended".into())));
        }
        if let Err(error @ DatabaseError::Untrusted(_)) = outcome {
            roll_back(connection);
            return Err(error);
        }
    }
    commit(connection)
}

fn in_savepoint(connection: &Connection, write: &mut dyn Write) -> rusqlite::Result<Result<(), DatabaseError>> {
    connection.execute_batch("savepoint job")?;
    let outcome = write.run(connection);
    if connection.is_autocommit() {
        // The error has ended the whole transaction, so there is nothing to roll back to.
        return Ok(outcome);
    }
    if outcome.is_err() {
        connection.execute_batch("rollback to job")?;
    }
    connection.execute_batch("release job")?;
    Ok(outcome)
}

fn commit(connection: &Connection) -> Result<(), DatabaseError> {
    connection.execute_batch("commit").map_err(|error| {
        roll_back(connection);
        error.into()
    })
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit() {
        let _ = connection.execute_batch("rollback");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future;
    use rusqlite_migration::M;

    fn open(folder: &Path) -> anyhow::Result<Sqlite> {
        let url = format!("sqlite://{}/test.db", folder.display());
        Sqlite::open(&url, &Migrations::new(vec![M::up("create table numbers (n integer primary key)")]))
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("arr-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    /// Holds the writer until all of `writes` wait.
    async fn as_one_batch<T>(database: &Sqlite, writes: impl Future<Output = T>) -> T {
        let (started, running) = oneshot::channel();
        let (release, held) = std::sync::mpsc::channel();
        let mut started = Some(started);
        let hold = database.write(move |_| {
            let _ = started.take().map(|started| started.send(()));
            Ok(held.recv())
        });
        let writes = async {
            running.await.unwrap();
            tokio::join!(writes, async { release.send(()).unwrap() }).0
        };
        tokio::join!(hold, writes).1
    }

    #[tokio::test]
    async fn a_write_that_fails_half_way_is_undone_alone() {
        let folder = scratch("half-way");
        let database = open(&folder).unwrap();
        let insert = |numbers: &'static [i64]| {
            database.write(move |c| {
                numbers.iter().try_for_each(|n| c.execute("insert into numbers values (?)", [n]).map(drop))
            })
        };
        let writes = future::join3(insert(&[1]), insert(&[2, 1]), insert(&[3]));
        let (before, failed, after) = as_one_batch(&database, writes).await;
        assert_eq!((before, after), (Ok(()), Ok(())));
        assert!(matches!(failed, Err(DatabaseError::Failed(_))), "{failed:?}");
        let sum = database.read(|c| c.query_row("select sum(n) from numbers", [], |row| row.get::<_, i64>(0)));
        assert_eq!(sum.await, Ok(4), "1 and 3, and not 2");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_failed_write_takes_nothing_with_it() {
        let folder = scratch("savepoint");
        let database = open(&folder).unwrap();
        let insert = |n: i64| database.write(move |c| c.execute("insert into numbers values (?)", [n]));
        let (a, b, c) = tokio::join!(insert(1), insert(1), insert(2));
        assert!(a.is_ok() && c.is_ok());
        assert!(matches!(b, Err(DatabaseError::Failed(_))));
        let count = database.read(|c| c.query_row("select count(*) from numbers", [], |row| row.get::<_, i64>(0)));
        assert_eq!(count.await, Ok(2));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_takes_nothing_and_is_told_apart() {
        let folder = scratch("full");
        let database = open(&folder).unwrap();
        database
            .write(|c| c.execute_batch("create table blobs (body blob); pragma max_page_count = 20"))
            .await
            .unwrap();
        let insert = || database.write(|c| c.execute("insert into blobs values (zeroblob(1000000))", []));
        let small = || database.write(|c| c.execute("insert into blobs values ('x')", []));
        let (before, full, after) = as_one_batch(&database, future::join3(small(), insert(), small())).await;
        assert_eq!(
            (before, full, after),
            (Err(DatabaseError::Full), Err(DatabaseError::Full), Err(DatabaseError::Full))
        );
        let count = database.read(|c| c.query_row("select count(*) from blobs", [], |row| row.get::<_, i64>(0)));
        assert_eq!(count.await, Ok(0), "what was told to have failed is not there");
        database.write(|c| c.execute_batch("pragma max_page_count = 1000")).await.unwrap();
        assert_eq!(insert().await, Ok(1));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_second_process_is_refused() {
        let folder = scratch("lock");
        let first = open(&folder).unwrap();
        assert!(open(&folder).unwrap_err().to_string().contains("another process"));
        drop(first);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
