//! What a handler knows of the request beside its payload, and can say while it works.

use jiff::Timestamp;
use shared::message::{PROGRESS_MESSAGE_BYTES_MAX, Request};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a handler last said of its work.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) percent: Option<f64>,
    pub(crate) message: Option<String>,
}

/// The context of one execution. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    correlation_id: String,
    attempt: u32,
    deadline: Option<Timestamp>,
    cancelled: CancellationToken,
    reports: watch::Sender<Report>,
}

impl Context {
    pub(crate) fn new(request: &Request, cancelled: CancellationToken, reports: watch::Sender<Report>) -> Self {
        Self {
            correlation_id: request.correlation_id.clone(),
            attempt: request.attempt,
            deadline: request.deadline,
            cancelled,
            reports,
        }
    }

    /// The operation's id, or a foreign client's correlation id.
    #[must_use]
    pub fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// Which attempt of the requestor's this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the requestor gives up. The worker cancels and then drops the handler at that time.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    /// Cancelled when nobody wants the reply any more: at the deadline and when the provider must stop.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Says how far the work is, 0 to 100, and what is being done, in at most 256 bytes. Call it as often as you
    /// like: the worker sends the newest report at the pace of `progress.interval`.
    pub fn progress(&self, percent: f64, message: impl Into<String>) {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(PROGRESS_MESSAGE_BYTES_MAX));
        self.reports.send_replace(Report { percent: Some(percent), message: Some(message) });
    }
}
