use crate::callers::{self, CallerConfig, Quotas};
use crate::rules::{Retries, Rules, RulesByKind};
use crate::webhook::{Secrets, WebhooksConfig};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use shared::amqp::BrokerConfig;
use shared::config::{SecretUrl, duration, list};
use shared::http::{ServerLimits, TlsConfig};
use shared::message::ANNOUNCEMENT_BYTES_MAX;
use shared::telemetry::LogConfig;
use shared::{database, topology};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `config/requestor.toml`: every key, its default and its reason.
pub const DEFAULTS: &str = include_str!("../../../config/requestor.toml");

/// Steps of a pipeline at most: they are stored with each operation.
const STEPS_MAX: usize = 32;

/// How long a provider must remember an outcome after its request's deadline, without what clocks may differ
/// (ledger.retention there). A retry after that could have an effect twice.
const RETRY_WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);

/// The requestor's configuration. What each key means is written in [`DEFAULTS`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct Config {
    pub group: String,
    pub http: HttpConfig,
    pub broker: BrokerConfig,
    pub calls: CallsConfig,
    pub replies: RepliesConfig,
    pub announcements: AnnouncementsConfig,
    pub store: StoreConfig,
    pub operations: OperationsConfig,
    #[serde(default)]
    pub callers: BTreeMap<String, CallerConfig>,
    pub quotas: Quotas,
    pub retries: Retries,
    pub redrive: RedriveConfig,
    pub cancel: CancelConfig,
    pub webhooks: WebhooksConfig,
    pub kinds: BTreeMap<String, KindConfig>,
    #[serde(default)]
    pub pipelines: BTreeMap<String, PipelineConfig>,
    pub log: LogConfig,
}

/// The section `[http]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct HttpConfig {
    pub listen: SocketAddr,
    pub allow_anonymous: bool,
    pub public_url: String,
    pub body_bytes_max: usize,
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    #[serde(with = "duration")]
    pub wait_max: Duration,
    pub waiters_max: usize,
    pub page_size_max: usize,
    pub streams_max: usize,
    pub streams: StreamsConfig,
    #[serde(with = "duration")]
    pub retry_after_min: Duration,
    #[serde(with = "duration")]
    pub retry_after_max: Duration,
    pub limits: ServerLimits,
    pub tls: TlsConfig,
}

/// The section `[http.streams]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct StreamsConfig {
    #[serde(with = "duration")]
    pub keep_alive: Duration,
    pub behind_max: usize,
}

/// The section `[replies]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct RepliesConfig {
    #[serde(deserialize_with = "list")]
    pub users: Vec<String>,
}

/// The section `[calls]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct CallsConfig {
    pub in_flight_max: usize,
}

/// The section `[announcements]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct AnnouncementsConfig {
    pub kinds_max: usize,
    pub providers_max: usize,
    pub schema_bytes_max: usize,
    #[serde(with = "duration")]
    pub lease_max: Duration,
    #[serde(with = "duration")]
    pub keep_providers: Duration,
    #[serde(with = "duration")]
    pub keep_kinds: Duration,
}

/// The section `[store]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct StoreConfig {
    pub url: SecretUrl,
    pub connections_max: u32,
}

/// The section `[operations]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct OperationsConfig {
    #[serde(with = "duration")]
    pub timeout: Duration,
    #[serde(with = "duration")]
    pub timeout_max: Duration,
    #[serde(with = "duration")]
    pub retention: Duration,
    #[serde(with = "duration")]
    pub retry_window: Duration,
    pub events_max: u32,
    pub forgotten_max: u64,
}

/// The section `[redrive]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct RedriveConfig {
    #[serde(with = "duration")]
    pub unconfirmed: Duration,
    #[serde(with = "duration")]
    pub quiet: Duration,
    #[serde(with = "duration")]
    pub waiting: Duration,
    #[serde(with = "duration")]
    pub waiting_max: Duration,
    #[serde(with = "duration")]
    pub unroutable_max: Duration,
}

/// The section `[cancel]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct CancelConfig {
    #[serde(with = "duration")]
    pub resend: Duration,
    #[serde(with = "duration")]
    pub resend_max: Duration,
}

/// One of the sections `[kinds.…]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct KindConfig {
    #[serde(default, with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
}

/// One of the sections `[pipelines.…]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct PipelineConfig {
    pub steps: Vec<String>,
    #[serde(default, with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// Durations that may be absent. For `#[serde(with = …)]`.
pub(crate) mod optional_duration {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => shared::config::duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| shared::config::duration::parse(&text).map_err(D::Error::custom)).transpose()
    }
}

impl Config {
    /// The defaults, then `file`, then the environment.
    ///
    /// # Errors
    /// In one line, which key is wrong and why.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let config: Self = shared::config::load(DEFAULTS, "REQUESTOR", file)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what this machine has for it: the certificate's files, and descriptors for the connections, of which it
    /// may have to take fewer; then so many fewer may wait or be streams, so that they leave room for others still.
    pub(crate) fn fit_machine(&mut self) -> anyhow::Result<()> {
        self.http.tls.validate()?;
        let wanted = self.http.limits.connections_max;
        self.http.limits.fit_descriptors()?;
        let fitting = self.http.limits.connections_max;
        if fitting < wanted {
            for max in [&mut self.http.waiters_max, &mut self.http.streams_max] {
                *max = max.saturating_mul(fitting) / wanted;
            }
            tracing::warn!(self.http.waiters_max, self.http.streams_max, "fewer callers may wait or hold streams, too");
        }
        self.http.validate(!self.callers.is_empty())
    }

    /// What decides how operations change.
    #[must_use]
    pub fn rules(&self) -> RulesByKind {
        let default = Rules {
            retries: self.retries,
            fallback: None,
            jitter: 1.0,
            retention: self.operations.retention,
            quiet: self.redrive.quiet,
            retry_window: self.operations.retry_window,
            cancel_resend: self.cancel.resend,
            events_max: self.operations.events_max,
        };
        let of_kind = |settings: &KindConfig| {
            let attempts = settings.attempts.unwrap_or(self.retries.attempts);
            let (retries, fallback) = (Retries { attempts, ..self.retries }, settings.fallback.clone());
            Rules { retries, fallback, ..default.clone() }
        };
        let kinds = self.kinds.iter().map(|(kind, settings)| (kind.clone(), of_kind(settings))).collect();
        RulesByKind { default, kinds }
    }

    fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(topology::is_group(&self.group), "group {:?}: use a-z, 0-9 and hyphens", self.group);
        self.broker.validate()?;
        database::validate_url(self.store.url.expose()).context("store.url")?;
        // The writer must not wait for those who read.
        anyhow::ensure!(self.store.connections_max >= 2, "store.connections_max: at least 2");
        callers::validate(&self.callers, &self.quotas)?;
        self.http.validate(!self.callers.is_empty())?;
        anyhow::ensure!(
            self.http.body_bytes_max < self.broker.message_bytes_max,
            "http.body_bytes_max must be below broker.message_bytes_max, or a request could be accepted and not sent"
        );
        let operations = &self.operations;
        anyhow::ensure!(operations.timeout_max >= operations.timeout, "operations.timeout is above timeout_max");
        for (kind, settings) in &self.kinds {
            anyhow::ensure!(topology::is_kind(kind), "kinds.{kind:?}: use a-z, 0-9, dots, hyphens, underscores");
            let timeout = settings.timeout.unwrap_or(operations.timeout);
            let attempts = settings.attempts.unwrap_or(self.retries.attempts);
            anyhow::ensure!(attempts > 0, "retries.attempts and kinds.{kind}.attempts must be at least 1");
            anyhow::ensure!(timeout <= operations.timeout_max, "kinds.{kind}.timeout is above operations.timeout_max");
            anyhow::ensure!(
                settings.queue.as_deref().is_none_or(is_foreign_queue),
                "kinds.{kind}.queue: name a queue of at most 255 bytes that is none of ours (arr.…) or the broker's (amq.…)"
            );
            self.validate_fallbacks(kind)?;
        }
        for (name, pipeline) in &self.pipelines {
            self.validate_pipeline(name, pipeline)?;
        }
        anyhow::ensure!(
            operations.retention >= operations.retry_window,
            "operations.retention must be at least operations.retry_window, or what may be retried would be forgotten"
        );
        anyhow::ensure!(
            operations.retry_window <= RETRY_WINDOW_MAX,
            "operations.retry_window must be at most 24h: a provider's ledger may forget an outcome a day after the deadline"
        );
        let secrets = Secrets::new(&self.webhooks.secrets, &self.callers);
        self.webhooks.validate(operations.retention, secrets.any())?;
        let kept = &self.announcements;
        anyhow::ensure!(
            kept.schema_bytes_max * 2 < ANNOUNCEMENT_BYTES_MAX,
            "announcements.schema_bytes_max must be less than half of an announcement's {ANNOUNCEMENT_BYTES_MAX} bytes"
        );
        anyhow::ensure!(self.retries.pause <= self.retries.pause_max, "retries.pause is above retries.pause_max");
        anyhow::ensure!(self.cancel.resend <= self.cancel.resend_max, "cancel.resend is above cancel.resend_max");
        anyhow::ensure!(!self.cancel.resend.is_zero(), "cancel.resend must be more than 0");
        anyhow::ensure!(
            self.redrive.waiting <= self.redrive.waiting_max,
            "redrive.waiting is above redrive.waiting_max"
        );
        Ok(())
    }
}

impl Config {
    /// Follows the fallbacks of `kind` to their end.
    fn validate_fallbacks(&self, kind: &str) -> anyhow::Result<()> {
        let mut seen = vec![kind];
        while let Some(fallback) = seen.last().and_then(|last| self.kinds.get(*last)?.fallback.as_deref()) {
            anyhow::ensure!(
                !seen.contains(&fallback),
                "kinds.{kind}.fallback leads in a circle: {fallback} comes again"
            );
            anyhow::ensure!(
                topology::is_kind(fallback) && !self.pipelines.contains_key(fallback),
                "kinds.{kind}.fallback leads to {fallback:?}, which cannot be a kind"
            );
            seen.push(fallback);
        }
        Ok(())
    }

    fn validate_pipeline(&self, name: &str, pipeline: &PipelineConfig) -> anyhow::Result<()> {
        anyhow::ensure!(topology::is_kind(name), "pipelines.{name:?}: use a-z, 0-9, dots, hyphens, underscores");
        anyhow::ensure!(!self.kinds.contains_key(name), "pipelines.{name}: there is a kind of this name");
        anyhow::ensure!(
            matches!(pipeline.steps.len(), 1..=STEPS_MAX),
            "pipelines.{name}.steps: name 1 to {STEPS_MAX} kinds"
        );
        for step in &pipeline.steps {
            anyhow::ensure!(
                topology::is_kind(step) && !self.pipelines.contains_key(step),
                "pipelines.{name}.steps: {step:?} cannot be a kind (a pipeline cannot be a step)"
            );
        }
        let timeout = pipeline.timeout.unwrap_or(self.operations.timeout);
        anyhow::ensure!(
            timeout <= self.operations.timeout_max,
            "pipelines.{name}.timeout is above operations.timeout_max"
        );
        Ok(())
    }
}

/// Whether a plain RPC server may be asked through this queue.
fn is_foreign_queue(name: &str) -> bool {
    matches!(name.len(), 1..=255) && !name.starts_with("arr.") && !name.starts_with("amq.")
}

impl HttpConfig {
    /// What URLs of this service begin with, where nothing else is known.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_on() { "https" } else { "http" }
    }

    fn validate(&self, keys: bool) -> anyhow::Result<()> {
        anyhow::ensure!(
            keys || self.allow_anonymous || self.listen.ip().is_loopback(),
            "http.listen {} can be reached from other machines by anyone; give callers keys, or set http.allow_anonymous",
            self.listen
        );
        if !self.public_url.is_empty() {
            let url = url::Url::parse(&self.public_url).context("http.public_url")?;
            anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "http.public_url must be http:// or https://");
        }
        self.limits.validate()?;
        anyhow::ensure!(
            self.waiters_max < self.limits.connections_max,
            "http.waiters_max must be below http.limits.connections_max, or waiting callers could lock out all others"
        );
        anyhow::ensure!(self.page_size_max > 0, "http.page_size_max must be at least 1");
        anyhow::ensure!(
            self.streams_max < self.limits.connections_max,
            "http.streams_max must be below http.limits.connections_max, or streams could lock out all other callers"
        );
        anyhow::ensure!(!self.streams.keep_alive.is_zero(), "http.streams.keep_alive must be more than 0");
        anyhow::ensure!(
            self.retry_after_min <= self.retry_after_max,
            "http.retry_after_min is above http.retry_after_max"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let config: Config = shared::config::load(DEFAULTS, "REQUESTOR_UNIT_TEST", None).unwrap();
        config.validate().unwrap();
        assert_eq!(config.kinds["order.place"].timeout, Some(Duration::from_secs(300)));
    }

    #[test]
    fn fallbacks_and_pipelines_must_lead_somewhere() {
        let refused = |change: fn(&mut Config)| {
            let mut config: Config = shared::config::load(DEFAULTS, "REQUESTOR_UNIT_TEST", None).unwrap();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        let pipeline =
            |steps: &[&str]| PipelineConfig { steps: steps.iter().map(|&s| s.into()).collect(), timeout: None };
        let fall_back = |config: &mut Config, from: &str, to: &str| {
            config.kinds.get_mut(from).unwrap().fallback = Some(to.into());
        };
        let circle = refused(|config| {
            config.kinds.get_mut("echo").unwrap().fallback = Some("risk.analyze".into());
            config.kinds.get_mut("risk.analyze").unwrap().fallback = Some("echo".into());
        });
        assert!(circle.contains("circle"), "{circle}");
        let mut config: Config = shared::config::load(DEFAULTS, "REQUESTOR_UNIT_TEST", None).unwrap();
        fall_back(&mut config, "echo", "video.publish");
        assert!(config.validate().unwrap_err().to_string().contains("kinds.echo.fallback"));
        for (steps, hint) in [(&[][..], "1 to 32"), (&["No"], "cannot be"), (&["twice"], "cannot be a step")] {
            let mut config: Config = shared::config::load(DEFAULTS, "REQUESTOR_UNIT_TEST", None).unwrap();
            config.pipelines.insert("twice".into(), pipeline(steps));
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains("pipelines.twice.steps") && error.contains(hint), "{error}");
        }
        let too_long = refused(|config| config.operations.retry_window = Duration::from_secs(25 * 3600));
        assert!(too_long.contains("24h"), "{too_long}");
        let forgotten = refused(|config| config.operations.retention = Duration::from_secs(3600));
        assert!(forgotten.contains("retry_window"), "{forgotten}");
        let undelivered = refused(|config| {
            config.webhooks.secrets = vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap()];
            config.operations.retention = Duration::from_secs(72 * 3600);
        });
        assert!(undelivered.contains("operations.retention (72h)") && undelivered.contains("84h"), "{undelivered}");
    }

    #[test]
    fn listening_to_everyone_must_be_meant() {
        let mut config: Config = shared::config::load(DEFAULTS, "REQUESTOR_UNIT_TEST", None).unwrap();
        config.http.listen = "0.0.0.0:8080".parse().unwrap();
        assert!(config.validate().unwrap_err().to_string().contains("allow_anonymous"));
        let hash = callers::key::hash("key");
        let caller = CallerConfig {
            key_hashes: vec![hash],
            admin: false,
            quotas: Default::default(),
            webhook_secrets: Vec::new(),
        };
        config.callers.insert("ada".into(), caller.clone());
        config.validate().unwrap();
        config.callers.insert("bob".into(), caller.clone());
        assert!(config.validate().unwrap_err().to_string().contains("callers.bob.key_hashes: a key of ada"));
        config.callers = [("anonymous".into(), caller)].into();
        assert!(config.validate().unwrap_err().to_string().contains("not \"anonymous\""));
    }
}
