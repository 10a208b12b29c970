/// Three nodes as one broker.
pub mod cluster;
mod node;

use super::watchdog::Watchdog;
use super::{PATIENCE, environment, free_port};
use anyhow::{Context, bail, ensure};
use lapin::{Connection, ConnectionProperties};
use node::Node;
use std::process::{Command, Stdio};
use std::time::Duration;
use testcontainers::core::{CmdWaitFor, ExecCommand, IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;

/// The image of a broker in a container, unless `BROKER_IMAGE` names another.
const IMAGE: &str = "rabbitmq:4-management";

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
        Self::start_with("").await
    }

    /// The same with lines of `rabbitmq.conf` of the test's own.
    ///
    /// # Errors
    /// Why none can be had.
    pub async fn start_with(settings: &str) -> anyhow::Result<Self> {
        if in_container()? { Self::container(settings).await } else { Self::node(settings).await }
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

    async fn container(settings: &str) -> anyhow::Result<Self> {
        let image = environment("BROKER_IMAGE").unwrap_or_else(|| IMAGE.into());
        let (name, tag) = image.rsplit_once(':').unwrap_or((&image, "latest"));
        say(&format!("starting {image} in a container"));
        let (amqp, management) = (free_port(), free_port());
        // Fixed ports, since a container that is stopped and started again would get new ones.
        let container = GenericImage::new(name, tag)
            .with_wait_for(WaitFor::message_on_either_std("Server startup complete"))
            .with_mapped_port(amqp, 5672.tcp())
            .with_mapped_port(management, 15672.tcp())
            .with_copy_to("/etc/rabbitmq/conf.d/20-test.conf", settings.as_bytes().to_vec())
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

    async fn node(settings: &str) -> anyhow::Result<Self> {
        node::install_if_missing().await?;
        say("starting a private rabbitmq-server node");
        let node = Node::start(settings)?;
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
        // A busy broker may take too long for its own patience, and then goes on where it was.
        super::eventually("there is a virtual host", async || {
            let made = host.try_call("PUT", &format!("vhosts/{}", host.name), "{}").await;
            made.map_err(|error| format!("{error:#}"))
        })
        .await;
        let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
        host.call("PUT", &format!("permissions/{}/{user}", host.name), everything).await;
        host
    }

    /// Waits until the broker has on disk which quorum queues it has. It writes that with a delay of seconds, and one that
    /// was declared just before a kill comes back without its log and never has a leader again, with nothing in what the
    /// management interface lists to tell it by (seen on 3.10; `docs/chaos.md`).
    ///
    /// # Panics
    /// When it does not obey, or is not ours.
    pub async fn remembers_its_queues(&self) {
        self.rabbitmqctl(&["-q", "eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]).await;
    }

    /// Kills the broker without notice and starts it again, with the queues it had on disk. Those of the virtual host
    /// that came back without their process are deleted, as an operator must ([`VirtualHost::delete_dead_queues`]).
    ///
    /// # Panics
    /// When it does not come back, or is not ours.
    pub async fn kill_and_restart(&mut self, host: &VirtualHost) {
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
        for queue in host.delete_dead_queues().await {
            tracing::warn!(queue, "came back without its process, and was deleted");
        }
    }

    /// Raises a memory alarm, or ends it: during an alarm the broker reads nothing from connections that publish.
    ///
    /// # Panics
    /// When it does not obey, or is not ours.
    pub async fn memory_alarm(&self, on: bool) {
        let watermark = if on { "0.0000001" } else { "0.6" };
        self.rabbitmqctl(&["-q", "set_vm_memory_high_watermark", watermark]).await;
    }

    /// Ends the process of a quorum queue and leaves the queue in the tables, as a kill of a 3.10 node sometimes does.
    ///
    /// # Panics
    /// When the broker does not obey, or is not ours.
    pub async fn end_process_of(&self, host: &VirtualHost, queue: &str) {
        let stop = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"{queue}\">>)), \
             ok = ra:stop_server(quorum_queues, amqqueue:get_pid(Q)).",
            host.name
        );
        self.rabbitmqctl(&["-q", "eval", &stop]).await;
    }

    async fn rabbitmqctl(&self, arguments: &[&str]) {
        match &self.source {
            Source::Given => panic!("a broker that was given is not ours to disturb"),
            Source::Container { container, .. } => {
                let command = ExecCommand::new([&["rabbitmqctl"], arguments].concat());
                container.exec(command.with_cmd_ready_condition(CmdWaitFor::exit_code(0))).await.unwrap();
            }
            Source::Node(node) => {
                let mut command = node.rabbitmqctl(arguments);
                let status = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
                assert!(status.success());
            }
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// When the management interface does not tell.
    pub async fn version(&self) -> anyhow::Result<String> {
        let overview = self.http.get(self.management.join("api/overview")?).send().await?;
        let overview: serde_json::Value = serde_json::from_slice(&overview.bytes().await?)?;
        Ok(overview["rabbitmq_version"].as_str().context("no rabbitmq_version")?.to_owned())
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
        // A busy broker, or one whose nodes were just taken away, may take too long for its own patience.
        super::eventually("the virtual host is gone", async || {
            let deleted = self.try_call("DELETE", &format!("vhosts/{}", self.name), "").await;
            deleted
                .map(drop)
                .or_else(|error| if error.to_string().contains("404") { Ok(()) } else { Err(error.to_string()) })
        })
        .await;
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

    /// Does what an operator must on RabbitMQ 3.10 after a node was killed: a quorum queue may be in its tables and have
    /// no process on any node, and nobody can use the queue until it is deleted. The names of those that were.
    ///
    /// # Panics
    /// When the management interface does not answer, or does not delete one.
    pub async fn delete_dead_queues(&self) -> Vec<String> {
        let body = self.call("GET", &format!("queues/{}?disable_stats=true", self.name), "").await;
        let queues: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
        let dead = queues.iter().filter(|queue| queue["online"] == serde_json::json!([]));
        let names: Vec<String> = dead.map(|queue| queue["name"].as_str().unwrap().to_owned()).collect();
        for name in &names {
            self.call("DELETE", &format!("queues/{}/{name}", self.name), "").await;
        }
        names
    }

    /// Makes a user of the broker who may do everything in this virtual host; the URL that it connects with.
    ///
    /// # Panics
    /// When the management interface does not.
    pub async fn add_user(&self, name: &str) -> String {
        self.call("PUT", &format!("users/{name}"), r#"{"password":"secret","tags":""}"#).await;
        let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
        self.call("PUT", &format!("permissions/{}/{name}", self.name), everything).await;
        let mut url = Url::parse(&self.url).unwrap();
        url.set_username(name).unwrap();
        url.set_password(Some("secret")).unwrap();
        url.into()
    }

    /// Removes a user.
    ///
    /// # Panics
    /// When the management interface does not.
    pub async fn delete_user(&self, name: &str) {
        self.call("DELETE", &format!("users/{name}"), "").await;
    }

    /// A connection of the test's own.
    ///
    /// # Panics
    /// When there is none.
    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap()
    }

    /// A call of the management interface's `/api/{path}`: what it answers.
    ///
    /// # Panics
    /// When it refuses.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> String {
        self.try_call(method, path, body).await.unwrap()
    }

    /// Asks the management interface, which may be away.
    async fn ask(&self, path: &str) -> Result<serde_json::Value, String> {
        let body = self.try_call("GET", path, "").await.map_err(|error| format!("{error:#}"))?;
        serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
    }

    async fn try_call(&self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let url = self.management.join(&format!("api/{path}"))?;
        let request = self.http.request(method.parse()?, url).header("content-type", "application/json");
        let response = request.body(body.to_owned()).send().await?;
        let status = response.status();
        ensure!(status.is_success(), "{method} {path}: {status}");
        Ok(response.text().await?)
    }
}

/// Whether a broker of our own, or a database, is a container, by `BROKER` or by what there is.
pub(super) fn in_container() -> anyhow::Result<bool> {
    match environment("BROKER").as_deref() {
        Some("docker") => Ok(true),
        Some("node") => Ok(false),
        Some(other) => bail!("BROKER is docker or node, not {other}"),
        None => Ok(docker_answers()),
    }
}

fn docker_answers() -> bool {
    let docker = Command::new("docker").arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status();
    docker.is_ok_and(|status| status.success())
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
