//! A node of Debian's `rabbitmq-server`, and how to get it.

use super::{Watchdog, say};
use crate::free_port;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::sync::Mutex;

/// Where Debian's package has the server; the wrappers in /usr/sbin would change the user.
const SERVER_FOLDER: &str = "/usr/lib/rabbitmq/bin";
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// Installs the server unless it is there. One at a time: another test may be installing it just now.
///
/// # Errors
/// Why it cannot be installed.
pub(super) async fn install_if_missing() -> anyhow::Result<()> {
    static INSTALLING: Mutex<()> = Mutex::const_new(());
    let _installing = INSTALLING.lock().await;
    if Path::new(SERVER).exists() { Ok(()) } else { tokio::task::spawn_blocking(install).await? }
}

/// Installs Debian's package without starting the system's own broker, which it otherwise would.
fn install() -> anyhow::Result<()> {
    say("there is neither a Docker engine nor rabbitmq-server: installing Debian's package (once)");
    let script = "set -e
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then printf '#!/bin/sh\\nexit 101\\n' > $policy; chmod +x $policy; trap \"rm -f $policy\" EXIT; fi
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get -o DPkg::Lock::Timeout=300 install -yqq --no-install-recommends rabbitmq-server iproute2";
    let root = nix::unistd::geteuid().is_root();
    let mut command = if root { Command::new("sh") } else { Command::new("sudo") };
    let arguments = if root { vec!["-c", script] } else { vec!["sh", "-c", script] };
    let said = match command.args(arguments).output() {
        Ok(output) if output.status.success() && Path::new(SERVER).exists() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    bail!("cannot install rabbitmq-server: install it, start Docker, or set AMQP_URL\n{said}")
}

/// A private `rabbitmq-server`: own name, ports and folder, so that it disturbs no other and needs no root.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) amqp: u16,
    pub(super) management: u16,
    distribution: u16,
    epmd: u16,
    folder: TempDir,
    process: Option<(Child, Watchdog)>,
}

impl Node {
    pub(super) fn start(settings: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("rabbitmq-").tempdir()?;
        let [amqp, management, distribution, epmd] = [(); 4].map(|()| free_port());
        let configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{amqp}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
             disk_free_limit.absolute = 50MB\nlog.file.level = warning\n{settings}\n"
        );
        std::fs::write(folder.path().join("rabbitmq.conf"), configuration)?;
        std::fs::write(folder.path().join("enabled_plugins"), "[rabbitmq_management].\n")?;
        std::fs::write(folder.path().join("env.conf"), "")?;
        std::fs::create_dir(folder.path().join("home"))?;
        let mut node = Self { amqp, management, distribution, epmd, folder, process: None };
        node.run()?;
        Ok(node)
    }

    /// A command of `rabbitmqctl` to this node.
    pub(super) fn rabbitmqctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(format!("{SERVER_FOLDER}/rabbitmqctl"));
        command.envs(self.environment()).args(arguments);
        command
    }

    /// What the server and its tools need to know of this node.
    fn environment(&self) -> [(&'static str, OsString); 9] {
        let path = |name: &str| self.folder.path().join(name).into_os_string();
        [
            ("HOME", path("home")),
            ("ERL_EPMD_PORT", self.epmd.to_string().into()),
            ("RABBITMQ_NODENAME", format!("arr{}@localhost", self.amqp).into()),
            ("RABBITMQ_DIST_PORT", self.distribution.to_string().into()),
            ("RABBITMQ_MNESIA_BASE", path("mnesia")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_CONF_ENV_FILE", path("env.conf")),
        ]
    }

    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.folder.path().join("output.log"))?;
        let child = Command::new(SERVER)
            .envs(self.environment())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {SERVER}"))?;
        let (group, epmd, folder) = (child.id(), end_epmd(self.epmd), self.folder.path().display());
        let clean = format!("kill -s KILL -- -{group}; rm -rf {folder}; {epmd}");
        self.process = Some((child, Watchdog::new(&clean)?));
        Ok(())
    }

    /// kill -9 for the node and all its helpers.
    pub(super) fn kill(&mut self) {
        if let Some((mut child, watchdog)) = self.process.take() {
            let group = nix::unistd::Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX));
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = child.wait();
            watchdog.call_off();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let _ = Command::new("sh").args(["-c", &end_epmd(self.epmd)]).status();
    }
}

/// The node's own name server lives on, and refuses to end until it has noticed that the node is gone.
fn end_epmd(port: u16) -> String {
    format!("for _ in $(seq 50); do epmd -port {port} -kill 2>&1 | grep -q 'not allowed' || break; sleep 0.1; done")
}
