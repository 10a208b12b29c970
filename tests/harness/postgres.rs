use super::watchdog::Watchdog;
use super::{PATIENCE, environment, free_port};
use anyhow::{Context, ensure};
use shared::config::SecretUrl;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;

/// Where Debian's package has the server, one folder a version.
const FOLDER: &str = "/usr/lib/postgresql";
/// Durable as the product needs it, but for the disk's own sync: no test cuts the power of this machine.
const SETTINGS: [&str; 4] = ["fsync=off", "max_connections=400", "deadlock_timeout=200ms", "shared_buffers=64MB"];

/// A running PostgreSQL server. One that was started here ends with this value, and with this process however it ends.
#[derive(Debug)]
pub struct Postgres {
    url: Url,
    _source: Source,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held, so that it lives as long as the server is used")]
enum Source {
    /// `TEST_POSTGRES_URL`.
    Given,
    Container(Box<ContainerAsync<GenericImage>>, Watchdog),
    Private(TempDir, Watchdog),
}

/// A database of one test, deleted when this value is dropped.
#[derive(Debug)]
pub struct Database {
    /// `postgres://…/name`.
    pub url: SecretUrl,
    name: String,
    server: Url,
}

/// A database for a requestor's store if `TEST_STORE=postgres` asks for one; otherwise it is an SQLite file.
pub async fn for_store() -> Option<Database> {
    if on_postgres() { Some(Postgres::shared().await.database().await) } else { None }
}

/// Whether requestors of the tests keep their operations in PostgreSQL.
///
/// # Panics
/// When `TEST_STORE` is neither.
#[must_use]
pub fn on_postgres() -> bool {
    match environment("TEST_STORE").as_deref() {
        None | Some("sqlite") => false,
        Some("postgres") => true,
        Some(other) => panic!("TEST_STORE is sqlite or postgres, not {other}"),
    }
}

impl Postgres {
    /// The server that all tests of this process share.
    ///
    /// # Panics
    /// When none can be had: tests are never skipped.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(|| async { Self::obtain().await.unwrap() }).await
    }

    /// The server that `TEST_POSTGRES_URL` names, else one of our own: in a container if a Docker engine answers, else
    /// Debian's package, which is installed if need be. `BROKER=docker` or `BROKER=node` decides otherwise, as for the
    /// broker.
    ///
    /// # Errors
    /// Why none can be had.
    pub async fn obtain() -> anyhow::Result<Self> {
        let server = match environment("TEST_POSTGRES_URL") {
            Some(url) => Self { url: Url::parse(&url).context("TEST_POSTGRES_URL")?, _source: Source::Given },
            None if super::broker::in_container()? => Self::container().await?,
            None => tokio::task::spawn_blocking(Self::private).await??,
        };
        server.ready().await?;
        Ok(server)
    }

    async fn container() -> anyhow::Result<Self> {
        let port = free_port();
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        let container = GenericImage::new("postgres", "17")
            .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
            .with_mapped_port(port, 5432.tcp())
            .with_env_var("POSTGRES_PASSWORD", "test")
            .with_cmd(["postgres"].into_iter().chain(settings))
            .with_startup_timeout(PATIENCE)
            .start()
            .await
            .context("cannot start postgres:17")?;
        let watchdog = Watchdog::new(&format!("docker rm -fv {}", container.id()))?;
        let url = Url::parse(&format!("postgres://postgres:test@127.0.0.1:{port}/postgres"))?;
        Ok(Self { url, _source: Source::Container(Box::new(container), watchdog) })
    }

    /// A private server in a folder of its own. It refuses to be root, so root runs it as `nobody`.
    fn private() -> anyhow::Result<Self> {
        let programs = match programs() {
            Some(found) => found,
            None => install()?,
        };
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        let (data, port) = (folder.path().join("data"), free_port());
        if nix::unistd::geteuid().is_root() {
            let nobody = nobody()?;
            std::os::unix::fs::chown(folder.path(), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw()))?;
        }
        let said = as_other(&programs.join("initdb"))?
            .args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .output()?;
        ensure!(said.status.success(), "initdb: {}", String::from_utf8_lossy(&said.stderr));
        let log = std::fs::File::create(folder.path().join("output.log"))?;
        let mut server = as_other(&programs.join("postgres"))?;
        server.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""]);
        server.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let server = server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        // Its children end when it does; it is the watchdog's to end, also at an orderly end.
        let (group, path) = (server.id(), folder.path().display());
        let watchdog =
            Watchdog::new(&format!("kill -s INT {group}; sleep 1; kill -s KILL -- -{group}; rm -rf {path}"))?;
        let url = Url::parse(&format!("postgres://postgres@127.0.0.1:{port}/postgres"))?;
        Ok(Self { url, _source: Source::Private(folder, watchdog) })
    }

    /// Waits until it takes connections; a container's server restarts once before it is ready.
    async fn ready(&self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match PgConnection::connect(self.url.as_str()).await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) if Instant::now() > until => return Err(error).context("PostgreSQL does not get ready"),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    }

    /// A new database.
    ///
    /// # Panics
    /// When the server does not make one.
    pub async fn database(&self) -> Database {
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(self.url.as_str()).await.unwrap();
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await.unwrap();
        let _ = connection.close().await;
        let mut url = self.url.clone();
        url.set_path(&name);
        Database { url: SecretUrl::new(url), name, server: self.url.clone() }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = AssertSqlSafe(format!("drop database if exists {} with (force)", self.name));
        let server = self.server.to_string();
        // A thread of its own, since this may be one that must not wait.
        let dropped = std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&server).await?;
                sqlx::raw_sql(drop).execute(&mut connection).await?;
                Ok(connection.close().await?)
            })
        });
        // The server goes with the tests, unless it was given; then a database that is left does no harm.
        let _ = dropped.join();
    }
}

/// The programs of the newest version that is installed.
fn programs() -> Option<PathBuf> {
    let installed = std::fs::read_dir(FOLDER).ok()?.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    installed.filter(|programs| programs.join("initdb").exists()).max()
}

/// Installs Debian's package, without a cluster of the system's own that would be started.
fn install() -> anyhow::Result<PathBuf> {
    say("there is neither a Docker engine nor PostgreSQL: installing Debian's package (once)");
    let script = "set -e
        export DEBIAN_FRONTEND=noninteractive
        mkdir -p /etc/postgresql-common
        grep -qs create_main_cluster /etc/postgresql-common/createcluster.conf ||
            echo 'create_main_cluster = false' >> /etc/postgresql-common/createcluster.conf
        apt-get update -qq
        apt-get -o DPkg::Lock::Timeout=300 install -yqq --no-install-recommends postgresql";
    let root = nix::unistd::geteuid().is_root();
    let mut command = Command::new(if root { "sh" } else { "sudo" });
    let said = command.args(if root { vec!["-c", script] } else { vec!["sh", "-c", script] }).output()?;
    let advice = "cannot install postgresql: install it, start Docker, or set TEST_POSTGRES_URL";
    programs().with_context(|| format!("{advice}\n{}", String::from_utf8_lossy(&said.stderr)))
}

/// Runs `program` as this user, or as `nobody` if this is root.
fn as_other(program: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program);
    command.current_dir("/").env_clear();
    if nix::unistd::geteuid().is_root() {
        let nobody = nobody()?;
        command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
    }
    Ok(command)
}

fn nobody() -> anyhow::Result<nix::unistd::User> {
    nix::unistd::User::from_name("nobody")?.context("there is no user nobody")
}

/// One line about the server, for people.
#[expect(clippy::print_stderr, reason = "for the person who runs the tests")]
fn say(what: &str) {
    eprintln!("database: {what}");
}
