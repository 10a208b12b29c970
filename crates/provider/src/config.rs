use anyhow::Context;
use serde::{Deserialize, Serialize};
use shared::amqp::BrokerConfig;
use shared::config::{SecretUrl, duration, list};
use shared::http::ServerLimits;
use shared::telemetry::LogConfig;
use shared::{database, topology};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// `config/provider.toml`: every key, its default and its reason.
pub const DEFAULTS: &str = include_str!("../../../config/provider.toml");

/// Deliveries that RabbitMQ lets a consumer of a quorum queue hold at most.
const PREFETCH_MAX: usize = 2000;

/// The provider's configuration. What each key means is written in [`DEFAULTS`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct Config {
    pub group: String,
    #[serde(deserialize_with = "list")]
    pub kinds: Vec<String>,
    pub concurrency: usize,
    #[serde(with = "duration")]
    pub drain: Duration,
    pub replies: RepliesConfig,
    pub progress: ProgressConfig,
    pub http: HttpConfig,
    pub broker: BrokerConfig,
    pub ledger: LedgerConfig,
    pub orders: OrdersConfig,
    pub log: LogConfig,
}

/// The section `[replies]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct RepliesConfig {
    pub foreign: bool,
}

/// The section `[progress]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct ProgressConfig {
    #[serde(with = "duration")]
    pub interval: Duration,
    #[serde(with = "duration")]
    pub heartbeat: Duration,
}

/// The section `[http]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct HttpConfig {
    pub listen: SocketAddr,
    pub limits: ServerLimits,
}

/// The section `[ledger]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct LedgerConfig {
    pub url: SecretUrl,
    #[serde(with = "duration")]
    pub retention: Duration,
}

/// The section `[orders]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct OrdersConfig {
    pub inventory: Vec<Article>,
}

/// One article that the inventory starts with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct Article {
    pub sku: String,
    pub price_cents: u32,
    pub stock: u32,
}

impl Config {
    /// The defaults, then `file`, then the environment.
    ///
    /// # Errors
    /// In one line, which key is wrong and why.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let config: Self = shared::config::load(DEFAULTS, "PROVIDER", file)?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(topology::is_group(&self.group), "group {:?}: use a-z, 0-9 and hyphens", self.group);
        anyhow::ensure!(!self.kinds.is_empty(), "kinds: name at least one, or \"all\"");
        anyhow::ensure!(self.concurrency <= PREFETCH_MAX, "concurrency: RabbitMQ allows {PREFETCH_MAX} at most");
        anyhow::ensure!(!self.progress.interval.is_zero(), "progress.interval must be more than 0");
        anyhow::ensure!(!self.progress.heartbeat.is_zero(), "progress.heartbeat must be more than 0");
        database::validate_url(self.ledger.url.expose()).context("ledger.url")?;
        self.broker.validate()
    }

    /// How many requests of a kind are worked on at once.
    #[must_use]
    pub fn effective_concurrency(&self) -> usize {
        match self.concurrency {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let config: Config = shared::config::load(DEFAULTS, "PROVIDER_UNIT_TEST", None).unwrap();
        config.validate().unwrap();
        assert!(config.effective_concurrency() > 0);
    }
}
