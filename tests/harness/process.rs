use super::{eventually, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// A service as a process of its own, killed when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

/// What a service is started with.
#[derive(Clone, Debug)]
pub struct Service {
    name: &'static str,
    variables: Vec<(String, String)>,
    config: Option<PathBuf>,
    small_disk: Option<PathBuf>,
    port: u16,
    log: PathBuf,
}

impl Service {
    /// The requestor, with its store and its log in `folder`.
    #[must_use]
    pub fn requestor(broker: &str, folder: &Path) -> Self {
        let port = free_port();
        Self::new("requestor", port, folder)
            .with("REQUESTOR_HTTP__LISTEN", &format!("127.0.0.1:{port}"))
            .with("REQUESTOR_BROKER__URL", broker)
            .with("REQUESTOR_STORE__URL", &format!("sqlite://{}/requestor.db", folder.display()))
    }

    /// The provider, with its ledger and its log in `folder`.
    #[must_use]
    pub fn provider(broker: &str, folder: &Path) -> Self {
        let port = free_port();
        Self::new("provider", port, folder)
            .with("PROVIDER_HTTP__LISTEN", &format!("127.0.0.1:{port}"))
            .with("PROVIDER_BROKER__URL", broker)
            .with("PROVIDER_LEDGER__URL", &format!("sqlite://{}/provider.db", folder.display()))
            .with("PROVIDER_OBJECTS__URL", &super::pair::objects(folder))
    }

    fn new(name: &'static str, port: u16, folder: &Path) -> Self {
        Self {
            name,
            variables: Vec::new(),
            config: None,
            small_disk: None,
            port,
            log: folder.join(format!("{name}.log")),
        }
    }

    /// The same with one more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The same with those variables of this process that begin with `prefix`, unless it has them already.
    #[must_use]
    pub fn with_own(mut self, prefix: &str) -> Self {
        let own = shared::config::environment_for_child(|name| name.starts_with(prefix));
        let own =
            own.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        // The last of several counts.
        self.variables.splice(0..0, own);
        self
    }

    /// The same with a configuration file.
    #[must_use]
    pub fn with_config(mut self, file: PathBuf) -> Self {
        self.config = Some(file);
        self
    }

    /// The same with a file system of its own of a few megabytes at `folder`, which nobody else sees and which ends
    /// with the process. Needs no root where Linux lets everyone have a user namespace.
    #[must_use]
    pub fn on_small_disk(mut self, folder: &Path) -> Self {
        self.small_disk = Some(folder.to_path_buf());
        self
    }

    /// Where it listens for HTTP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same on another port.
    #[must_use]
    pub fn on_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Starts it, and returns without waiting until it listens.
    ///
    /// # Panics
    /// When there is no such binary.
    #[must_use]
    pub fn spawn(&self) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = match &self.small_disk {
            Some(folder) => command_on_small_disk(self.name, &self.variables, folder),
            None => command(self.name, &self.variables),
        };
        if let Some(file) = &self.config {
            command.arg("--config").arg(file);
        }
        let child = command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Process { child }
    }

    /// Starts it, and waits until it listens.
    pub async fn start(&self) -> Process {
        let process = self.spawn();
        self.listening().await;
        process
    }

    /// Waits until it listens.
    pub async fn listening(&self) {
        let tls = self.variables.iter().any(|(name, _)| name.ends_with("_HTTP__TLS__CERTIFICATE"));
        eventually(&format!("{} listens", self.name), async || {
            let healthy = shared::http::check(([127, 0, 0, 1], self.port).into(), tls).await;
            healthy.map_err(|error| format!("{error:#}; log: {}", self.log()))
        })
        .await;
    }

    /// The file that it logs to.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Process {
    /// Starts a program that is none of our services.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap() }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it `signal`, such as SIGSTOP; nothing if it has ended.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn signal(&mut self, signal: Signal) {
        if self.child.try_wait().unwrap().is_none() {
            kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
        }
    }

    /// `path` as the process sees it, which may have file systems of its own.
    #[must_use]
    pub fn sees(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        Path::new("/proc").join(self.child.id().to_string()).join("root").join(relative)
    }

    /// The most memory that it has had so far, in bytes.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Its exit status, once it has ended.
    ///
    /// # Panics
    /// When the system does not tell.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGTERM unless it has ended already, and its exit status.
    ///
    /// # Panics
    /// When it does not end within 45 s.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        tokio::time::timeout(Duration::from_secs(45), self.ended()).await.expect("SIGTERM ends it")
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When the system does not tell.
    pub async fn ended(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of our commands with nothing in its environment but `variables`.
#[must_use]
pub fn command(name: &str, variables: &[(String, String)]) -> Command {
    let mut command = Command::new(binaries().join(name));
    command.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

/// The command, which begins by mounting a small file system that it alone sees.
fn command_on_small_disk(name: &str, variables: &[(String, String)], folder: &Path) -> Command {
    std::fs::create_dir_all(folder).unwrap();
    let mut command = Command::new("/usr/bin/unshare");
    command.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c", "mount -t tmpfs -o size=4m tmpfs \"$0\" && exec \"$@\""]);
    command.arg(folder).arg(binaries().join(name));
    command
}

/// The folder with the binaries. They are built first: `cargo test` alone does not bring them up to date.
pub(super) fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let cargo = super::environment("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        // What cargo tells the program that it runs would make it build half of the dependencies again.
        for (name, _) in std::env::vars_os() {
            let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
            if name.to_str().is_some_and(|name| told.iter().any(|told| name.starts_with(told))) {
                build.env_remove(name);
            }
        }
        build.args(["build", "--quiet", "--workspace", "--bins"]).stdin(Stdio::null());
        // Beside this program, or one above it for a test: target/debug/deps/it-….
        let program = std::env::current_exe().unwrap();
        let folder = program.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).unwrap().to_path_buf();
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cannot build the services");
        folder
    })
}
