use super::broker::{Broker, VirtualHost};
use super::caller::Caller;
use super::postgres;
use super::process::Service;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Both services as processes, not started yet, with a virtual host and files of their own.
#[derive(Debug)]
pub struct Services {
    /// The virtual host.
    pub host: VirtualHost,
    /// Where both keep their files.
    pub folder: TempDir,
    /// The requestor.
    pub requestor: Service,
    /// The provider, with one core for an analysis, so that it takes seconds on any machine.
    pub provider: Service,
    /// A caller of the requestor.
    pub caller: Caller,
    /// Of the requestor's store, if that is not in `folder`.
    _database: Option<postgres::Database>,
}

impl Services {
    /// Makes everything and starts nothing. `query` is added to the broker's URL, such as `?heartbeat=1`.
    ///
    /// # Panics
    /// When there is no place for files.
    pub async fn prepare(query: &str) -> Self {
        let (host, folder) = (Broker::shared().await.virtual_host().await, tempfile::tempdir().unwrap());
        let url = format!("{}{query}", host.url);
        let (mut requestor, database) = (Service::requestor(&url, folder.path()), postgres::for_store().await);
        if let Some(database) = &database {
            requestor = requestor.with("REQUESTOR_STORE__URL", database.url.expose());
        }
        let provider = Service::provider(&url, folder.path()).with("RAYON_NUM_THREADS", "1");
        let caller = Caller::new(format!("http://127.0.0.1:{}", requestor.port()));
        Self { host, folder, requestor, provider, caller, _database: database }
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
