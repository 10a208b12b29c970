use super::broker::{Broker, VirtualHost};
use super::caller::Caller;
use super::process::Service;
use super::store::StoreOfTest;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Both services as processes, not started yet, with a virtual host and files of their own.
#[derive(Debug)]
pub struct Services {
    /// The virtual host.
    pub host: VirtualHost,
    /// Where both keep their files.
    pub folder: TempDir,
    /// What the requestor keeps its operations in.
    pub store: StoreOfTest,
    /// What the provider has its ledger in.
    pub ledger: StoreOfTest,
    /// The requestor.
    pub requestor: Service,
    /// The provider, with one core for an analysis, so that it takes seconds on any machine.
    pub provider: Service,
    /// A caller of the requestor.
    pub caller: Caller,
}

impl Services {
    /// Makes everything and starts nothing. `query` is added to the broker's URL, such as `?heartbeat=1`.
    ///
    /// # Panics
    /// When there is no place for files.
    pub async fn prepare(query: &str) -> Self {
        let (host, folder) = (Broker::shared().await.virtual_host().await, tempfile::tempdir().unwrap());
        let url = format!("{}{query}", host.url);
        let store = StoreOfTest::prepare(folder.path(), "requestor").await;
        let ledger = StoreOfTest::prepare(folder.path(), "provider").await;
        let requestor = Service::requestor(&url, folder.path()).with("REQUESTOR_STORE__URL", store.url().expose());
        let provider = Service::provider(&url, folder.path())
            .with("PROVIDER_LEDGER__URL", ledger.url().expose())
            .with("RAYON_NUM_THREADS", "1");
        let caller = Caller::new(format!("http://127.0.0.1:{}", requestor.port()));
        Self { host, folder, store, ledger, requestor, provider, caller }
    }

    /// Checks that nothing is left in any queue, after both were stopped.
    pub async fn finish(self) {
        super::pair::nothing_left(&self.host).await;
        self.host.delete().await;
    }
}

/// A request of `risk.analyze` that is a few seconds of work for one core.
#[must_use]
pub fn analysis() -> Value {
    json!({"weights": [1.0], "means": [0.0], "covariance": [[0.0001]], "horizonDays": 100, "paths": 2_000_000, "seed": 1})
}
