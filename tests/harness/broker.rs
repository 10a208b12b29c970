use super::{PATIENCE, environment, free_port};
use anyhow::{Context, bail, ensure};
use lapin::{Connection, ConnectionProperties};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use testcontainers::core::{CmdWaitFor, ExecCommand, IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;
use url::Url;

/// The image of a broker in a container, unless `BROKER_IMAGE` names another.
const IMAGE: &str = "rabbitmq:4-management";
/// Where Debian's package has the server; the wrappers in /usr/sbin would change the user.
const SERVER_FOLDER: &str = "/usr/lib/rabbitmq/bin";
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// A running RabbitMQ. One that was started here ends with this value, and with this process however it ends.
#[derive(Debug)]
pub struct Broker {
    url: Url,
    management: Url,
    http: reqwest::Client,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// `TEST_AMQP_URL` or `AMQP_URL`.
    Given,
    Container {
        container: Box<ContainerAsync<GenericImage>>,
        _watchdog: Watchdog,
    },
    Node(Box<Node>),
}

/// A virtual host of its own for each test: the names of exchanges and queues are fixed.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// `amqp://…/name`.
    pub url: String,
    /// Its name.
    pub name: String,
    management: Url,
    http: reqwest::Client,
}

impl Broker {
    /// The broker that all tests of this process share.
    ///
    /// # Panics
    /// When none can be had: tests are never skipped.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Broker> = OnceCell::const_new();
        SHARED.get_or_init(|| async { Self::obtain().await.unwrap() }).await
    }

    /// The broker that the environment names, else one of our own.
    ///
    /// # Errors
    /// Why none can be had.
    pub async fn obtain() -> anyhow::Result<Self> {
        match environment("TEST_AMQP_URL").or_else(|| environment("AMQP_URL")) {
            Some(url) => Self::given(&url),
            None => Self::start().await,
        }
    }

    /// A broker of our own: in a container if a Docker engine answers, else a private node, for which Debian's
    /// package is installed if need be. `BROKER=docker` or `BROKER=node` decides otherwise.
    ///
    /// # Errors
    /// Why none can be had.
    pub async fn start() -> anyhow::Result<Self> {
        match environment("BROKER").as_deref() {
            Some("docker") => Self::container().await,
            Some("node") => Self::node().await,
            Some(other) => bail!("BROKER is docker or node, not {other}"),
            None if docker_answers() => Self::container().await,
            None => Self::node().await,
        }
    }

    fn given(url: &str) -> anyhow::Result<Self> {
        let url = Url::parse(url).with_context(|| format!("TEST_AMQP_URL or AMQP_URL: {url:?}"))?;
        let management = match environment("TEST_MANAGEMENT_URL") {
            Some(url) => Url::parse(&url)?,
            None => Url::parse(&format!("http://{}:15672", url.host_str().unwrap_or("127.0.0.1")))?,
        };
        say(&format!("using the one at {}", without_password(&url)));
        Self::new(url, management, Source::Given)
    }

    async fn container() -> anyhow::Result<Self> {
        let image = environment("BROKER_IMAGE").unwrap_or_else(|| IMAGE.into());
        let (name, tag) = image.rsplit_once(':').unwrap_or((&image, "latest"));
        say(&format!("starting {image} in a container"));
        let (amqp, management) = (free_port(), free_port());
        // Fixed ports, since a container that is stopped and started again would get new ones.
        let container = GenericImage::new(name, tag)
            .with_wait_for(WaitFor::message_on_either_std("Server startup complete"))
            .with_mapped_port(amqp, 5672.tcp())
            .with_mapped_port(management, 15672.tcp())
            .with_startup_timeout(PATIENCE)
            .start()
            .await
            .with_context(|| format!("cannot start {image}"))?;
        let watchdog = Watchdog::new(&format!("docker rm -fv {}", container.id()))?;
        let (url, management) = urls(amqp, management)?;
        let broker =
            Self::new(url, management, Source::Container { container: Box::new(container), _watchdog: watchdog })?;
        broker.ready().await?;
        Ok(broker)
    }

    async fn node() -> anyhow::Result<Self> {
        // One at a time: another test may be installing it just now.
        static INSTALLING: Mutex<()> = Mutex::const_new(());
        let installing = INSTALLING.lock().await;
        if !Path::new(SERVER).exists() {
            tokio::task::spawn_blocking(install).await??;
        }
        drop(installing);
        say("starting a private rabbitmq-server node");
        let node = Node::start()?;
        let (url, management) = urls(node.amqp, node.management)?;
        let broker = Self::new(url, management, Source::Node(Box::new(node)))?;
        broker.ready().await?;
        Ok(broker)
    }

    fn new(url: Url, management: Url, source: Source) -> anyhow::Result<Self> {
        Ok(Self { url, management, http: super::http_client(), source })
    }

    /// Its URL, with the default virtual host.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Whether it was given, so that others may use it as well.
    #[must_use]
    pub fn is_given(&self) -> bool {
        matches!(self.source, Source::Given)
    }

    /// Its address, for a relay.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.url.host_str().unwrap_or("127.0.0.1"), self.url.port().unwrap_or(5672))
    }

    /// A new virtual host.
    ///
    /// # Panics
    /// When the management interface does not make one.
    pub async fn virtual_host(&self) -> VirtualHost {
        let name = format!("test-{}", uuid::Uuid::now_v7().simple());
        let user = self.url.username().to_owned();
        let (mut url, mut management) = (self.url.clone(), self.management.clone());
        url.set_path(&name);
        if management.username().is_empty() {
            management.set_username(&user).unwrap();
            management.set_password(self.url.password()).unwrap();
        }
        let host = VirtualHost { url: url.into(), name, management, http: self.http.clone() };
        host.call("PUT", &format!("vhosts/{}", host.name), "{}").await;
        let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
        host.call("PUT", &format!("permissions/{}/{user}", host.name), everything).await;
        host
    }

    /// Kills the broker without notice and starts it again, with the queues it had on disk.
    ///
    /// # Panics
    /// When it does not come back, or is not ours.
    pub async fn kill_and_restart(&mut self) {
        match &mut self.source {
            Source::Given => panic!("a broker that was given is not ours to kill"),
            Source::Container { container, .. } => {
                container.stop_with_timeout(Some(0)).await.unwrap();
                container.start().await.unwrap();
            }
            Source::Node(node) => {
                node.kill();
                node.run().unwrap();
            }
        }
        self.ready().await.unwrap();
    }

    /// Raises a memory alarm, or ends it: during an alarm the broker reads nothing from connections that publish.
    ///
    /// # Panics
    /// When it does not obey, or is not ours.
    pub async fn memory_alarm(&self, on: bool) {
        let watermark = if on { "0.0000001" } else { "0.6" };
        let arguments = ["-q", "set_vm_memory_high_watermark", watermark];
        match &self.source {
            Source::Given => panic!("a broker that was given is not ours to disturb"),
            Source::Container { container, .. } => {
                let command = ExecCommand::new([&["rabbitmqctl"], &arguments[..]].concat());
                container.exec(command.with_cmd_ready_condition(CmdWaitFor::exit_code(0))).await.unwrap();
            }
            Source::Node(node) => {
                let (program, environment) = (format!("{SERVER_FOLDER}/rabbitmqctl"), node.environment());
                let mut command = Command::new(program);
                command.envs(environment).args(arguments);
                let status = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
                assert!(status.success());
            }
        }
    }

    /// Waits until it takes connections and its management interface answers.
    async fn ready(&self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let connected = async {
                let connecting = Connection::connect(self.url(), ConnectionProperties::default());
                let connection = tokio::time::timeout(Duration::from_secs(5), connecting).await??;
                let answer = self.http.get(self.management.join("api/overview")?).send().await?;
                connection.close(200, "ready".into()).await?;
                ensure!(answer.status() == 401 || answer.status() == 200, "{}", answer.status());
                anyhow::Ok(())
            };
            match connected.await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error.context("the broker does not get ready")),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl VirtualHost {
    /// Removes it with all that is in it.
    ///
    /// # Panics
    /// When the management interface does not.
    pub async fn delete(self) {
        self.call("DELETE", &format!("vhosts/{}", self.name), "").await;
    }

    /// What the broker says of one of its queues.
    ///
    /// # Panics
    /// When it is not there.
    pub async fn queue(&self, name: &str) -> serde_json::Value {
        let body = self.call("GET", &format!("queues/{}/{name}", self.name), "").await;
        serde_json::from_str(&body).unwrap()
    }

    /// The names of all its queues.
    ///
    /// # Panics
    /// When the management interface does not answer.
    pub async fn queues(&self) -> Vec<String> {
        let body = self.call("GET", &format!("queues/{}?disable_stats=true", self.name), "").await;
        let queues: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
        queues.iter().map(|queue| queue["name"].as_str().unwrap().to_owned()).collect()
    }

    /// A connection of the test's own.
    ///
    /// # Panics
    /// When there is none.
    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> String {
        let url = self.management.join(&format!("api/{path}")).unwrap();
        let request = self.http.request(method.parse().unwrap(), url).header("content-type", "application/json");
        let response = request.body(body.to_owned()).send().await.unwrap();
        assert!(response.status().is_success(), "{method} {path}: {}", response.status());
        response.text().await.unwrap()
    }
}

/// A private `rabbitmq-server`: own name, ports and folder, so that it disturbs no other and needs no root.
#[derive(Debug)]
struct Node {
    amqp: u16,
    management: u16,
    distribution: u16,
    epmd: u16,
    folder: TempDir,
    process: Option<(Child, Watchdog)>,
}

impl Node {
    fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("rabbitmq-").tempdir()?;
        let [amqp, management, distribution, epmd] = [(); 4].map(|()| free_port());
        let configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{amqp}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
             disk_free_limit.absolute = 50MB\nlog.file.level = warning\n"
        );
        std::fs::write(folder.path().join("rabbitmq.conf"), configuration)?;
        std::fs::write(folder.path().join("enabled_plugins"), "[rabbitmq_management].\n")?;
        std::fs::write(folder.path().join("env.conf"), "")?;
        std::fs::create_dir(folder.path().join("home"))?;
        let mut node = Self { amqp, management, distribution, epmd, folder, process: None };
        node.run()?;
        Ok(node)
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

    fn run(&mut self) -> anyhow::Result<()> {
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
    fn kill(&mut self) {
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

/// A shell that cleans up when this process is gone, even by kill -9: then its standard input ends.
#[derive(Debug)]
struct Watchdog(Child);

impl Watchdog {
    fn new(clean: &str) -> anyhow::Result<Self> {
        let script = format!("read line; [ \"$line\" = off ] || {{ {clean}; }}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self(shell.spawn().context("cannot start sh")?))
    }

    fn call_off(mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _ = input.write_all(b"off\n");
        }
        let _ = self.0.wait();
    }
}

fn docker_answers() -> bool {
    let docker = Command::new("docker").arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status();
    docker.is_ok_and(|status| status.success())
}

/// Installs Debian's package without starting the system's own broker, which it otherwise would.
fn install() -> anyhow::Result<()> {
    say("there is neither a Docker engine nor rabbitmq-server: installing Debian's package (once)");
    let script = "set -e
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then printf '#!/bin/sh\\nexit 101\\n' > $policy; chmod +x $policy; trap \"rm -f $policy\" EXIT; fi
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get -o DPkg::Lock::Timeout=300 install -yqq --no-install-recommends rabbitmq-server";
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

fn urls(amqp: u16, management: u16) -> anyhow::Result<(Url, Url)> {
    Ok((
        Url::parse(&format!("amqp://guest:guest@127.0.0.1:{amqp}"))?,
        Url::parse(&format!("http://guest:guest@127.0.0.1:{management}"))?,
    ))
}

fn without_password(url: &Url) -> Url {
    let mut shown = url.clone();
    let _ = shown.set_password(None);
    shown
}

/// One line about the broker, for people.
#[expect(clippy::print_stderr, reason = "for the person who runs the tests or the demo")]
fn say(what: &str) {
    eprintln!("broker: {what}");
}
