//! Settings that decide how operations change.

use rand::RngExt;
use serde::{Deserialize, Serialize};
use shared::config::duration;
use std::collections::BTreeMap;
use std::time::Duration;

/// The section `[retries]` of the configuration: what happens after a failure that may pass.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// The longest pause before the second attempt; it doubles from attempt to attempt.
    #[serde(with = "duration")]
    pub pause: Duration,
    /// The longest pause.
    #[serde(with = "duration")]
    pub pause_max: Duration,
}

/// Settings that decide how operations change, by kind.
#[derive(Clone, Debug)]
pub struct RulesByKind {
    /// For a kind that is not configured: announced, or no longer configured.
    pub default: Rules,
    /// For those that are.
    pub kinds: BTreeMap<String, Rules>,
}

impl RulesByKind {
    /// The rules for `kind`, with a new draw.
    #[must_use]
    pub fn draw(&self, kind: &str) -> Rules {
        Rules { jitter: rand::rng().random(), ..self.kinds.get(kind).unwrap_or(&self.default).clone() }
    }
}

/// Settings that decide how one operation changes.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What happens after a failure that may pass.
    pub retries: Retries,
    /// The kind that is asked instead when no attempt is left.
    pub fallback: Option<String>,
    /// Drawn between 0 and 1, to spread what would otherwise come together.
    pub jitter: f64,
    /// How long an ended operation is kept.
    pub retention: Duration,
    /// How long after the last sign of life the request is sent again.
    pub quiet: Duration,
    /// How long after its end a failed operation may be attempted again by hand.
    pub retry_window: Duration,
    /// How long after a cancel was requested it is sent again.
    pub cancel_resend: Duration,
    /// Entries of an event log beyond which progress is no longer logged.
    pub events_max: u32,
}

impl Retries {
    /// The longest pause before `attempt`, the second or a later one.
    pub(crate) fn pause_before(&self, attempt: u32) -> Duration {
        doubled(self.pause, self.pause_max, attempt.saturating_sub(2))
    }
}

/// `first` doubled `times` times, but at most `longest`.
pub(crate) fn doubled(first: Duration, longest: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(31)).min(longest)
}

/// Between half of `pause` and all of it.
pub(crate) fn half_jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}
