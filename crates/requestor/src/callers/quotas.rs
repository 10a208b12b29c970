//! How much a caller may have at once.

use governor::clock::DefaultClock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use serde::{Deserialize, Serialize};
use shared::config::duration;
use std::num::NonZeroU32;
use std::time::Duration;

/// The section `[quotas]`: how much each caller may have at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct Quotas {
    pub rate_requests: NonZeroU32,
    #[serde(with = "duration")]
    pub rate_window: Duration,
    pub open_max: u64,
    pub bytes_max: u64,
    pub waiters_max: usize,
    pub streams_max: usize,
}

/// The section `[callers.….quotas]`: what differs for one caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct OwnQuotas {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_requests: Option<NonZeroU32>,
    #[serde(default, with = "crate::config::optional_duration", skip_serializing_if = "Option::is_none")]
    pub rate_window: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiters_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams_max: Option<usize>,
}

impl Quotas {
    /// These, with what `own` says otherwise.
    #[must_use]
    pub fn with(&self, own: &OwnQuotas) -> Self {
        Self {
            rate_requests: own.rate_requests.unwrap_or(self.rate_requests),
            rate_window: own.rate_window.unwrap_or(self.rate_window),
            open_max: own.open_max.unwrap_or(self.open_max),
            bytes_max: own.bytes_max.unwrap_or(self.bytes_max),
            waiters_max: own.waiters_max.unwrap_or(self.waiters_max),
            streams_max: own.streams_max.unwrap_or(self.streams_max),
        }
    }

    /// Checks them; `section` is where they are.
    ///
    /// # Errors
    /// Which key is wrong.
    pub fn validate(&self, section: &str) -> anyhow::Result<()> {
        // Callers are told the window in seconds.
        anyhow::ensure!(self.rate_window.as_secs() > 0, "{section}.rate_window must be at least 1s");
        anyhow::ensure!(self.rate().is_some(), "{section}.rate_requests are too many for rate_window");
        anyhow::ensure!(self.open_max > 0, "{section}.open_max must be at least 1");
        anyhow::ensure!(self.bytes_max > 0, "{section}.bytes_max must be at least 1");
        Ok(())
    }

    fn rate(&self) -> Option<Quota> {
        let period = self.rate_window / self.rate_requests.get();
        Quota::with_period(period).map(|quota| quota.allow_burst(self.rate_requests))
    }
}

/// Counts the requests of one caller.
#[derive(Debug)]
pub(super) struct Rate {
    limiter: Option<RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>>,
    quotas: Quotas,
}

/// What a caller has left of its rate, once a request is counted.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    /// Requests that may follow at once.
    pub(crate) requests: u32,
    /// In how many seconds there are more: all of them, or one if this request was refused.
    pub(crate) seconds: u64,
    /// Whether this request was one too many.
    pub(crate) refused: bool,
    /// The caller's quotas.
    pub(crate) quotas: Quotas,
}

impl Rate {
    pub(super) fn new(quotas: &Quotas) -> Self {
        let limiter = quotas.rate().map(|rate| RateLimiter::direct(rate).with_middleware());
        Self { limiter, quotas: quotas.clone() }
    }

    /// Counts a request.
    pub(super) fn count(&self) -> Left {
        let all = self.quotas.rate_requests.get();
        let (requests, wait) = match self.limiter.as_ref().map(RateLimiter::check) {
            None => (all, Duration::ZERO),
            Some(Ok(state)) => {
                let requests = state.remaining_burst_capacity();
                (requests, self.quotas.rate_window / all * all.saturating_sub(requests))
            }
            Some(Err(until)) => {
                let wait = until.wait_time_from(governor::clock::Clock::now(&DefaultClock::default()));
                return self.left(0, wait, true);
            }
        };
        self.left(requests, wait, false)
    }

    fn left(&self, requests: u32, wait: Duration, refused: bool) -> Left {
        Left { requests, seconds: wait.as_secs_f64().ceil().max(1.0) as u64, refused, quotas: self.quotas.clone() }
    }
}
