//! A cluster of three nodes that can be killed, paused and cut off from each other.

use super::{Broker, IMAGE, VirtualHost, Watchdog, node, say};
use crate::{environment, eventually, free_port};
use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use rand::RngExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;
use url::Url;

/// The nodes are numbered from 1.
const NODES: [usize; 3] = [1, 2, 3];
/// How long the nodes may take to start and to join: 20 s on an idle machine.
const START: Duration = Duration::from_secs(120);

/// Three nodes that are one broker, in containers or in network namespaces, as [`Broker::start`] decides. It ends with
/// this value, and with this process however it ends.
#[derive(Debug)]
pub struct Cluster {
    script: Script,
    hosts: Vec<String>,
    management: Vec<Url>,
    watchdog: Option<Watchdog>,
}

/// What a node suffers.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// kill -9 for the node and all its helpers.
    Kill,
    /// It stands still, with its connections open.
    Pause,
    /// Nothing passes between it and the other nodes.
    Cut,
}

/// The shell script that makes the nodes, and what it needs to know.
#[derive(Clone, Debug)]
struct Script {
    folder: std::sync::Arc<TempDir>,
    variables: Vec<(&'static str, String)>,
    as_root: bool,
}

impl Cluster {
    /// Starts three nodes and joins them.
    ///
    /// # Errors
    /// Why there is no cluster.
    pub async fn start() -> anyhow::Result<Self> {
        let started = Instant::now();
        let cluster = if super::in_container()? { Self::containers()? } else { Self::namespaces().await? };
        cluster.script.run("create", None, &[]).await?;
        try_join_all(NODES.map(|node| cluster.boot(node))).await?;
        let first = cluster.script.run("name", Some(1), &[]).await?;
        for node in [2, 3] {
            for command in [&["stop_app"][..], &["join_cluster", &first], &["start_app"]] {
                cluster.script.run("rabbitmqctl", Some(node), command).await?;
            }
        }
        say(&format!("three nodes are a cluster after {:.0?}", started.elapsed()));
        Ok(cluster)
    }

    fn containers() -> anyhow::Result<Self> {
        let image = environment("BROKER_IMAGE").unwrap_or_else(|| IMAGE.into());
        say(&format!("starting a cluster of three {image}"));
        let name = format!("arr-{}", uuid::Uuid::now_v7().simple());
        let ports: Vec<_> = NODES.iter().flat_map(|_| [free_port(), free_port()]).collect();
        let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" ");
        let variables = vec![("CLUSTER", name), ("IMAGE", image), ("PORTS", list)];
        // From 4.3 on there is no strategy for partitions: everything is up to the quorum.
        let script = Script::new(include_str!("containers.sh"), "net_ticktime = 12\n", variables, false)?;
        let (amqp, management) = (ports.iter().step_by(2), ports.iter().skip(1).step_by(2));
        let hosts = amqp.map(|port| format!("127.0.0.1:{port}")).collect();
        Self::new(script, hosts, management.map(|port| format!("127.0.0.1:{port}")))
    }

    async fn namespaces() -> anyhow::Result<Self> {
        node::install_if_missing().await?;
        say("starting a cluster of three rabbitmq-server nodes in network namespaces");
        let number = std::iter::repeat_with(|| rand::rng().random_range(1..255)).find(is_free).context("endless")?;
        let network = format!("10.78.{number}");
        let variables = vec![("CLUSTER", format!("arr{number}")), ("NETWORK", network.clone())];
        let settings = "net_ticktime = 12\ncluster_partition_handling = pause_minority\nloopback_users = none\n\
                        disk_free_limit.absolute = 50MB\nlog.file.level = warning\n";
        let script = Script::new(include_str!("namespaces.sh"), settings, variables, true)?;
        let hosts = NODES.map(|node| format!("{network}.{node}:5672")).to_vec();
        Self::new(script, hosts, NODES.iter().map(|node| format!("{network}.{node}:15672")))
    }

    fn new(script: Script, hosts: Vec<String>, management: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let management = management.map(|host| Url::parse(&format!("http://guest:guest@{host}")));
        let management = management.collect::<Result<_, _>>()?;
        let watchdog = Some(Watchdog::new(&script.removal())?);
        Ok(Self { script, hosts, management, watchdog })
    }

    /// Starts a node, and waits until it is up.
    async fn boot(&self, node: usize) -> anyhow::Result<()> {
        self.script.run("run", Some(node), &[]).await?;
        let until = Instant::now() + START;
        while let Err(error) = self.script.run("rabbitmqctl", Some(node), &["await_startup"]).await {
            ensure!(Instant::now() < until, "node {node} does not start: {error:#}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// A new virtual host that runs on every node. A busy cluster may leave it out on one; it is then started there.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn virtual_host(&self) -> VirtualHost {
        let url = Url::parse(&format!("amqp://guest:guest@{}", self.hosts[0])).unwrap();
        let host = Broker::new(url, self.management[0].clone(), super::Source::Given).unwrap().virtual_host().await;
        eventually("the virtual host runs on all nodes", async || {
            let state = host.ask(&format!("vhosts/{}", host.name)).await?;
            let nodes = state["cluster_state"].as_object().ok_or_else(|| state.to_string())?;
            let idle: Vec<_> = nodes.iter().filter(|(_, state)| *state != "running").map(|(node, _)| node).collect();
            for node in &idle {
                let _ = host.try_call("POST", &format!("vhosts/{}/start/{node}", host.name), "").await;
            }
            if nodes.len() == NODES.len() && idle.is_empty() { Ok(()) } else { Err(state.to_string()) }
        })
        .await;
        host
    }

    /// The URL of `host` with all nodes.
    #[must_use]
    pub fn url(&self, host: &VirtualHost) -> String {
        format!("amqp://guest:guest@{}/{}", self.hosts.join(","), host.name)
    }

    /// The node that leads a quorum queue, once all its members are there.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn leader(&self, host: &VirtualHost, queue: &str) -> usize {
        let leader = eventually(&format!("{queue} has all its members"), async || {
            let state = host.ask(&format!("queues/{}/{queue}", host.name)).await?;
            let online = state["online"].as_array().map_or(0, Vec::len);
            let leader = state["leader"].as_str().filter(|_| online == NODES.len());
            leader.map(str::to_owned).ok_or_else(|| format!("leader {}, online {}", state["leader"], state["online"]))
        })
        .await;
        for node in NODES {
            if self.script.run("name", Some(node), &[]).await.unwrap() == leader {
                return node;
            }
        }
        panic!("no node is called {leader}");
    }

    /// Lets a node suffer.
    ///
    /// # Panics
    /// When it cannot be done.
    pub async fn inflict(&self, fault: Fault, node: usize) {
        let action = match fault {
            Fault::Kill => "kill",
            Fault::Pause => "pause",
            Fault::Cut => "cut",
        };
        self.script.run(action, Some(node), &[]).await.unwrap();
    }

    /// Ends what a node suffers; one that was killed is up again after this.
    ///
    /// # Panics
    /// When it cannot be done.
    pub async fn heal(&self, fault: Fault, node: usize) {
        match fault {
            Fault::Kill => self.boot(node).await.unwrap(),
            Fault::Pause => drop(self.script.run("resume", Some(node), &[]).await.unwrap()),
            Fault::Cut => drop(self.script.run("heal", Some(node), &[]).await.unwrap()),
        }
    }
}

/// Whether no other test of this machine has a cluster of this number now.
fn is_free(number: &i32) -> bool {
    !std::path::Path::new(&format!("/run/netns/arr{number}")).exists()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("sh").args(["-c", &self.script.removal()]).stdout(Stdio::null()).status();
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.call_off();
        }
    }
}

impl Script {
    fn new(
        text: &str,
        settings: &str,
        mut variables: Vec<(&'static str, String)>,
        as_root: bool,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("cluster-").tempdir()?;
        std::fs::write(folder.path().join("cluster.sh"), text)?;
        std::fs::write(folder.path().join("cluster.conf"), settings)?;
        variables.push(("FOLDER", folder.path().display().to_string()));
        Ok(Self { folder: folder.into(), variables, as_root: as_root && !nix::unistd::geteuid().is_root() })
    }

    /// Runs an action, and returns what it says.
    async fn run(&self, action: &str, node: Option<usize>, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("sh");
        let node = node.map(|node| node.to_string());
        let call = [action].into_iter().chain(node.as_deref()).chain(arguments.iter().copied());
        command.args(["-c", &self.line(call)]).stdin(Stdio::null());
        let Output { status, stdout, stderr } = tokio::task::spawn_blocking(move || command.output()).await??;
        if !status.success() {
            bail!("{action}: {}", String::from_utf8_lossy(&stderr).trim());
        }
        String::from_utf8(stdout).map(|said| said.trim().to_owned()).context("not UTF-8")
    }

    /// The call as a line for a shell. None of what it contains has quotes.
    fn line<'a>(&self, call: impl Iterator<Item = &'a str>) -> String {
        let sudo = if self.as_root { "sudo " } else { "" };
        let variables: Vec<_> = self.variables.iter().map(|(name, value)| format!("{name}='{value}'")).collect();
        let arguments: Vec<_> = call.map(|argument| format!("'{argument}'")).collect();
        let script = self.folder.path().join("cluster.sh");
        format!("{sudo}env {} sh {} {}", variables.join(" "), script.display(), arguments.join(" "))
    }

    fn removal(&self) -> String {
        let sudo = if self.as_root { "sudo " } else { "" };
        format!("{}; {sudo}rm -rf {}", self.line(["remove"].into_iter()), self.folder.path().display())
    }
}
