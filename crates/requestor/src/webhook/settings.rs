use super::signature::{Secret, secrets};
use super::target::Pattern;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shared::config::{duration, list};
use std::str::FromStr;
use std::time::Duration;

/// Attempts of one delivery at most: each is kept and shown with the operation.
const ATTEMPTS_MAX: usize = 32;
/// The most that a pause is lengthened, so that what failed together does not come back together.
const JITTER_MAX: f64 = 1.1;

/// The section `[webhooks]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct WebhooksConfig {
    #[serde(deserialize_with = "secrets")]
    pub secrets: Vec<Secret>,
    #[serde(deserialize_with = "list")]
    pub schedule: Vec<Pause>,
    #[serde(with = "duration")]
    pub retry_after_max: Duration,
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    #[serde(with = "duration")]
    pub timeout: Duration,
    pub concurrency: usize,
    pub concurrency_per_host: usize,
    pub allow_http: bool,
    #[serde(deserialize_with = "list")]
    pub ports: Vec<u16>,
    #[serde(deserialize_with = "list")]
    pub allow_hosts: Vec<Pattern>,
    #[serde(deserialize_with = "list")]
    pub allow_private: Vec<IpNet>,
}

/// How long to wait after a failed attempt, as in `5m`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pause(#[serde(with = "duration")] Duration);

impl FromStr for Pause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        duration::parse(text).map(Self)
    }
}

impl WebhooksConfig {
    /// `used` tells whether anybody has a secret.
    pub(crate) fn validate(&self, retention: Duration, used: bool) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.schedule.len() < ATTEMPTS_MAX,
            "webhooks.schedule: at most {ATTEMPTS_MAX} attempts are made, so give fewer pauses"
        );
        anyhow::ensure!(
            self.concurrency > 0 && self.concurrency_per_host > 0,
            "webhooks.concurrency and concurrency_per_host must be at least 1"
        );
        anyhow::ensure!(!self.timeout.is_zero(), "webhooks.timeout must be more than 0");
        let longest = self.longest();
        anyhow::ensure!(
            !used || longest < retention,
            "operations.retention ({}h) must be longer than all of webhooks.schedule with its jitter ({}h), or an outcome \
             would be forgotten before the last attempt to deliver it; keep operations longer, or shorten the schedule",
            retention.as_secs() / 3600,
            longest.as_secs().div_ceil(3600),
        );
        Ok(())
    }

    /// How long a delivery can take that succeeds at its last attempt, as far as it is up to us.
    fn longest(&self) -> Duration {
        let pauses: Duration = self.schedule.iter().map(|Pause(pause)| *pause).sum();
        let attempts = u32::try_from(self.schedule.len() + 1).unwrap_or(u32::MAX);
        pauses.mul_f64(JITTER_MAX).saturating_add(self.timeout.saturating_mul(attempts))
    }

    /// How long to wait after `attempt`, from 1, has failed, if another follows; longer if the receiver has said so.
    pub(super) fn pause_after(&self, attempt: u32, retry_after: Option<Duration>) -> Option<Duration> {
        let Pause(pause) = self.schedule.get(attempt.checked_sub(1)? as usize)?;
        let jitter = rand::RngExt::random_range(&mut rand::rng(), 1.0 / JITTER_MAX..=JITTER_MAX);
        Some(pause.mul_f64(jitter).max(retry_after.unwrap_or_default().min(self.retry_after_max)))
    }
}
