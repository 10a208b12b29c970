use super::broker::{Broker, VirtualHost};
use super::caller::Caller;
use super::store::StoreOfTest;
use anyhow::Context;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use provider::Provider;
use shared::config::SecretUrl;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Both services in this process, with ports, stores and a virtual host of their own.
#[derive(Debug)]
pub struct Pair {
    /// The virtual host.
    pub host: VirtualHost,
    /// Where both keep their files.
    pub folder: TempDir,
    /// What the requestor keeps its operations in.
    pub store: StoreOfTest,
    /// What the provider has its ledger in.
    pub ledger: StoreOfTest,
    /// The requestor's configuration.
    pub requestor_config: requestor::config::Config,
    /// The provider's configuration.
    pub provider_config: provider::Config,
    requestor: Option<Service>,
    provider: Option<Service>,
    caller: Caller,
}

/// A service that runs in this process.
#[derive(Debug)]
pub struct Service {
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Deref for Pair {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl Pair {
    /// Starts both with the default configuration.
    pub async fn start() -> Self {
        let mut pair = Self::prepare().await;
        pair.start_requestor();
        pair.start_provider();
        pair.ready().await;
        pair
    }

    /// Makes everything and starts nothing.
    pub async fn prepare() -> Self {
        Self::prepare_on(Broker::shared().await.virtual_host().await).await
    }

    /// Makes everything in `host` and starts nothing.
    ///
    /// # Panics
    /// When the default configuration is not valid.
    pub async fn prepare_on(host: VirtualHost) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = StoreOfTest::prepare(folder.path(), "requestor").await;
        let ledger = StoreOfTest::prepare(folder.path(), "provider").await;
        let port = super::free_port();
        let mut requestor_config = requestor::config::Config::load(None).unwrap();
        requestor_config.http.listen.set_port(port);
        requestor_config.broker.url = SecretUrl::new(&host.url);
        requestor_config.store.url = store.url();
        let mut provider_config = provider::Config::load(None).unwrap();
        provider_config.http.listen.set_port(0);
        provider_config.broker.url = SecretUrl::new(&host.url);
        provider_config.ledger.url = ledger.url();
        provider_config.objects.url = objects(folder.path());
        // Panics that a test asks for and brokers that it takes away would only look like failures.
        provider_config.log.filter = "off".into();
        let caller = Caller::new(format!("http://127.0.0.1:{port}"));
        Self { host, folder, store, ledger, requestor_config, provider_config, requestor: None, provider: None, caller }
    }

    /// Starts the requestor.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start_requestor(&mut self) {
        let (config, shutdown) = (self.requestor_config.clone(), CancellationToken::new());
        let listener = shared::http::bind(config.http.listen).unwrap();
        self.requestor = Some(Service::start(shutdown.clone(), requestor::run(config, listener, shutdown)));
    }

    /// Starts the provider with the handlers that come with it.
    ///
    /// # Panics
    /// When the configuration names others.
    pub fn start_provider(&mut self) {
        let provider = Provider::built_in(self.provider_config.clone()).unwrap();
        self.start_provider_with(provider);
    }

    /// Starts a provider of the test's own.
    pub fn start_provider_with(&mut self, provider: Provider) {
        let shutdown = CancellationToken::new();
        self.provider = Some(Service::start(shutdown.clone(), provider.run(shutdown)));
    }

    /// Stops the provider as SIGTERM does.
    ///
    /// # Panics
    /// When it fails.
    pub async fn stop_provider(&mut self) {
        if let Some(provider) = self.provider.take() {
            provider.stop().await.context("provider").unwrap();
        }
    }

    /// Stops the requestor as SIGTERM does.
    ///
    /// # Panics
    /// When it fails.
    pub async fn stop_requestor(&mut self) {
        if let Some(requestor) = self.requestor.take() {
            requestor.stop().await.context("requestor").unwrap();
        }
    }

    /// Stops both and checks that nothing is left in any queue but copies of requests that have ended.
    pub async fn finish(mut self) {
        self.stop_provider().await;
        super::eventually("the queues are empty", async || {
            self.take_copies().await.map_err(|error| error.to_string())?;
            empty(&self.host, false).await
        })
        .await;
        self.stop_requestor().await;
        nothing_left(&self.host).await;
        self.host.delete().await;
    }
}

impl Pair {
    /// Takes requests and cancels away that were sent once more than it took, as their provider would if it were there.
    ///
    /// # Errors
    /// When a broker that was just taken away does not serve its queues yet.
    async fn take_copies(&self) -> lapin::Result<()> {
        let connection = self.host.connect().await;
        let channel = connection.create_channel().await?;
        let copies = |name: &String| name.starts_with("arr.request.") || name == "arr.control.default";
        for queue in self.host.queues().await.into_iter().filter(copies) {
            while let Some(message) = channel.basic_get(queue.as_str().into(), Default::default()).await? {
                let id = message.delivery.properties.correlation_id().clone().unwrap_or_default();
                let path = format!("/v1/operations/{id}?redirect=false");
                let operation = self.get_json(&path).await;
                if !matches!(operation["status"].as_str(), Some("Succeeded" | "Failed" | "Canceled")) {
                    break;
                }
                message.delivery.acker.ack(Default::default()).await?;
            }
        }
        connection.close(200, "done".into()).await
    }
}

impl Service {
    /// Starts it; it ends with `shutdown`.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the test waits for it in stop")]
    pub fn start(shutdown: CancellationToken, run: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Self {
        Self { shutdown, task: tokio::spawn(run) }
    }

    /// Stops it as SIGTERM does.
    ///
    /// # Errors
    /// That it failed, or does not stop.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.task).await.context("does not stop")??
    }
}

/// Waits until no message is ready: both have taken what was on its way to them.
pub async fn drained(host: &VirtualHost) {
    super::eventually("the queues are empty", async || empty(host, false).await).await;
}

/// Checks that nothing is left in any of our queues, after everything was stopped.
pub async fn nothing_left(host: &VirtualHost) {
    super::eventually("the queues are empty and nobody consumes", async || empty(host, true).await).await;
}

/// Whether all our queues are empty. Unacknowledged messages become ready when their consumer is gone, so only
/// `unattended` queues tell it all.
///
/// # Errors
/// Which are not.
///
/// # Panics
/// When the broker does not tell.
pub async fn empty(host: &VirtualHost, unattended: bool) -> Result<(), String> {
    // The nodes of a cluster come back one after another.
    let connecting = Connection::connect(&host.url, ConnectionProperties::default());
    let connection = connecting.await.map_err(|error| error.to_string())?;
    let channel = connection.create_channel().await.unwrap();
    let mut left = Vec::new();
    // An instance's own queue goes with its connection, and only that may look at it.
    let of_instance = |name: &str| {
        let own = ["arr.control.", "arr.announce.", "arr.changed."];
        let rest = own.iter().find_map(|prefix| name.strip_prefix(prefix));
        rest.is_some_and(|rest| rest.contains('.'))
    };
    for name in host.queues().await.into_iter().filter(|name| name.starts_with("arr.") && !of_instance(name)) {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await.unwrap();
        let (messages, consumers) = (queue.message_count(), queue.consumer_count());
        if messages > 0 || (unattended && consumers > 0) {
            left.push(format!("{name}: {messages} messages, {consumers} consumers"));
        }
    }
    connection.close(200, "done".into()).await.unwrap();
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

/// The URL of an object store in `folder`.
#[must_use]
pub fn objects(folder: &Path) -> String {
    format!("file://{}/objects", folder.display())
}

/// The URL of an SQLite file in `folder`.
#[must_use]
pub fn sqlite(folder: &Path, name: &str) -> SecretUrl {
    SecretUrl::new(format!("sqlite://{}/{name}.db", folder.display()))
}
