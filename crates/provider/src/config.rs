use anyhow::Context;
use serde::{Deserialize, Serialize};
use shared::amqp::BrokerConfig;
use shared::config::{SecretUrl, duration, list};
use shared::http::{ServerLimits, TlsConfig};
use shared::telemetry::LogConfig;
use shared::{database, topology};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `config/provider.toml`: every key, its default and its reason.
pub const DEFAULTS: &str = include_str!("../../../config/provider.toml");

/// Deliveries that RabbitMQ lets a consumer of a quorum queue hold at most.
const PREFETCH_MAX: usize = 2000;

/// How long beside `ack_hold` a delivery may be held, and how late the broker may notice: it looks every minute.
const ACK_MARGIN: Duration = Duration::from_secs(90);
/// The longest that an outcome can be asked for after the deadline of its request: an operation that has failed may be
/// attempted again for a day, and clocks may differ by five minutes each way.
const RETENTION_MIN: Duration = Duration::from_secs(24 * 3600 + 600);

/// Requestors believe an announcement, which holds for three pauses, for ten minutes at most (`announcements.lease_max`
/// there).
const ANNOUNCEMENTS_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(180);

/// The provider's configuration. What each key means is written in [`DEFAULTS`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct Config {
    pub group: String,
    #[serde(deserialize_with = "list")]
    pub kinds: Vec<String>,
    pub concurrency: usize,
    pub ahead_max: usize,
    #[serde(with = "duration")]
    pub drain: Duration,
    #[serde(with = "duration")]
    pub ack_hold: Duration,
    #[serde(with = "duration")]
    pub ack_timeout: Duration,
    #[serde(with = "duration")]
    pub lease: Duration,
    pub replies: RepliesConfig,
    pub calls: CallsConfig,
    pub progress: ProgressConfig,
    pub announcements: AnnouncementsConfig,
    pub http: HttpConfig,
    pub broker: BrokerConfig,
    pub ledger: LedgerConfig,
    pub orders: OrdersConfig,
    pub payments: PaymentsConfig,
    pub video: VideoConfig,
    pub objects: ObjectsConfig,
    #[serde(default)]
    pub commands: BTreeMap<String, CommandConfig>,
    pub log: LogConfig,
}

/// The section `[replies]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct RepliesConfig {
    pub foreign: bool,
}

/// The section `[calls]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct CallsConfig {
    pub prefetch: u16,
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

/// The section `[announcements]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct AnnouncementsConfig {
    #[serde(with = "duration")]
    pub interval: Duration,
}

/// The section `[http]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct HttpConfig {
    pub listen: SocketAddr,
    pub limits: ServerLimits,
    pub tls: TlsConfig,
}

/// The section `[ledger]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct LedgerConfig {
    pub url: SecretUrl,
    pub connections_max: u32,
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

/// The section `[payments]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct PaymentsConfig {
    pub url: String,
    #[serde(with = "duration")]
    pub timeout: Duration,
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

/// The section `[video]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct VideoConfig {
    pub processes_max: usize,
    pub threads: u16,
    pub nice: u8,
    pub memory_bytes_max: u64,
    pub file_bytes_max: u64,
    #[serde(with = "duration")]
    pub timeout: Duration,
}

/// The section `[objects]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct ObjectsConfig {
    pub url: String,
    #[serde(with = "duration")]
    pub retention: Duration,
}

/// A section `[commands."kind"]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct CommandConfig {
    #[serde(deserialize_with = "list")]
    pub command: Vec<String>,
    #[serde(default)]
    pub schema: Option<PathBuf>,
    #[serde(default)]
    pub effect: Effect,
    #[serde(with = "duration", default = "command_timeout")]
    pub timeout: Duration,
    #[serde(default = "line_bytes_max")]
    pub line_bytes_max: usize,
    #[serde(default = "output_bytes_max")]
    pub output_bytes_max: u64,
}

/// What kind of effect a command has.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Running twice harms nothing.
    #[default]
    Pure,
    /// It is elsewhere, and repeated with the same idempotency key until its outcome is recorded.
    External,
}

fn command_timeout() -> Duration {
    Duration::from_mins(10)
}

fn line_bytes_max() -> usize {
    1_048_576
}

fn output_bytes_max() -> u64 {
    16_777_216
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
        anyhow::ensure!(
            self.concurrency.saturating_add(self.ahead_max) <= PREFETCH_MAX,
            "concurrency and ahead_max: RabbitMQ allows {PREFETCH_MAX} deliveries at most"
        );
        anyhow::ensure!(!self.progress.interval.is_zero(), "progress.interval must be more than 0");
        anyhow::ensure!(!self.progress.heartbeat.is_zero(), "progress.heartbeat must be more than 0");
        anyhow::ensure!(
            ANNOUNCEMENTS_INTERVAL.contains(&self.announcements.interval),
            "announcements.interval is {}: from 1s to 3m, or requestors would be flooded, or think that nobody is there",
            humantime::format_duration(self.announcements.interval)
        );
        anyhow::ensure!(self.video.processes_max > 0, "video.processes_max must be more than 0");
        anyhow::ensure!(self.video.threads > 0, "video.threads must be more than 0");
        anyhow::ensure!(self.video.nice < 20, "video.nice: at most 19");
        database::validate_url(self.ledger.url.expose()).context("ledger.url")?;
        self.payments.validate()?;
        self.validate_times()?;
        self.http.limits.validate()?;
        self.broker.validate()
    }

    /// The inequalities between durations that the protocol rests on.
    fn validate_times(&self) -> anyhow::Result<()> {
        let show = humantime::format_duration;
        let (heartbeat, lease) = (self.progress.heartbeat, self.lease);
        anyhow::ensure!(
            heartbeat.mul_f64(2.5) < lease && lease <= heartbeat * 4,
            "lease is {}: it must be more than 2.5 and at most 4 times progress.heartbeat ({}), so that two lost signs \
             of life do no harm and a dead provider is noticed",
            show(lease),
            show(heartbeat),
        );
        anyhow::ensure!(
            self.ack_hold + ACK_MARGIN < self.ack_timeout,
            "ack_hold is {}: with a margin of {} it must be less than ack_timeout ({}), the broker's acknowledgement \
             timeout",
            show(self.ack_hold),
            show(ACK_MARGIN),
            show(self.ack_timeout),
        );
        anyhow::ensure!(
            self.ledger.retention >= RETENTION_MIN,
            "ledger.retention is {}: it must be at least {}, so that a late repeat is recognised",
            show(self.ledger.retention),
            show(RETENTION_MIN),
        );
        anyhow::ensure!(
            self.progress.interval <= heartbeat,
            "progress.interval is {}: it must be at most progress.heartbeat ({})",
            show(self.progress.interval),
            show(heartbeat),
        );
        Ok(())
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

impl PaymentsConfig {
    fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.timeout.is_zero(), "payments.timeout must be more than 0");
        let url = &self.url;
        let web = url.is_empty() || url.starts_with("http://") || url.starts_with("https://");
        anyhow::ensure!(web, "payments.url {url:?}: write https://host/path, or nothing");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inequality_that_does_not_hold_names_its_key() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 7] = [
            ("lease is 37s", |config| config.lease = Duration::from_secs(37)),
            ("lease is 1m 1s", |config| config.lease = Duration::from_secs(61)),
            ("ack_hold is 29m", |config| config.ack_hold = Duration::from_secs(29 * 60)),
            ("ack_timeout", |config| config.ack_timeout = Duration::from_secs(60)),
            ("ledger.retention is 1day", |config| config.ledger.retention = Duration::from_secs(24 * 3600)),
            ("payments.url", |config| config.payments.url = "bank".into()),
            ("announcements.interval is 10m", |config| config.announcements.interval = Duration::from_secs(600)),
        ];
        for (says, change) in cases {
            let mut config: Config = shared::config::load(DEFAULTS, "PROVIDER_UNIT_TEST", None).unwrap();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        let config: Config = shared::config::load(DEFAULTS, "PROVIDER_UNIT_TEST", None).unwrap();
        config.validate().unwrap();
        assert!(config.effective_concurrency() > 0);
    }
}
