//! What a handler knows of the request beside its payload, and can say while it works.

use crate::handler::Failure;
use crate::ledger::{Answer, Claim};
use jiff::Timestamp;
use shared::message::{PROGRESS_MESSAGE_BYTES_MAX, Request};
use shared::problem::Problem;
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
    identity: String,
    attempt: u32,
    deadline: Option<Timestamp>,
    cancelled: CancellationToken,
    /// None if nobody can be told.
    reports: Option<watch::Sender<Report>>,
    claim: Option<Claim>,
}

impl Context {
    pub(crate) fn new(
        request: &Request,
        cancelled: CancellationToken,
        reports: watch::Sender<Report>,
        claim: Option<Claim>,
    ) -> Self {
        Self {
            correlation_id: request.correlation_id.clone(),
            identity: request.identity().unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
            attempt: request.attempt,
            deadline: request.deadline,
            cancelled,
            reports: Some(reports),
            claim,
        }
    }

    /// The context of a call, of which nothing is reported.
    pub(crate) fn of_call(
        correlation_id: String,
        identity: String,
        deadline: Option<Timestamp>,
        cancelled: CancellationToken,
    ) -> Self {
        Self { correlation_id, identity, attempt: 1, deadline, cancelled, reports: None, claim: None }
    }

    /// The operation's id, or a foreign client's correlation id.
    #[must_use]
    pub fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// What names the request, the same however often it is carried out; new each time for a foreign client's request
    /// without a correlation id.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
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

    /// Cancelled when nobody wants the reply any more: when the operation is canceled, at its deadline, and when the
    /// provider must stop. The handler is dropped a second later.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Writes down that the effect may happen from now on, and returns the idempotency key to have it with: the same
    /// however often the request is repeated. A handler with an external effect calls it just before the effect.
    /// From then on the operation can no longer be canceled, and if this provider dies, another repeats the effect
    /// with the same key.
    ///
    /// # Errors
    /// A failure to return at once, without the effect: the operation was canceled, this execution was given up,
    /// the ledger cannot be written, or the handler was not registered by `handle_external`.
    pub async fn intent(&self) -> Result<String, Failure> {
        let Some(claim) = &self.claim else {
            let detail = "intent() is for handlers that are registered by handle_external";
            return Err(Failure::Permanent(Problem::new("provider-error", 500, "The handler is wrong", detail)));
        };
        match claim.intend().await {
            Ok(Answer::Yes { .. }) => {
                shared::crash::point("provider.intent");
                Ok(claim.key().to_owned())
            }
            Ok(Answer::Canceled) => Err(Failure::Permanent(Problem::canceled())),
            Ok(_) => Err(Failure::stopped("this execution was given up")),
            Err(error) => Err(error.into()),
        }
    }

    /// Says how far the work is, 0 to 100, and what is being done, in at most 256 bytes. Call it as often as you
    /// like: the worker sends the newest report at the pace of `progress.interval`.
    pub fn progress(&self, percent: f64, message: impl Into<String>) {
        let Some(reports) = &self.reports else { return };
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(PROGRESS_MESSAGE_BYTES_MAX));
        reports.send_replace(Report { percent: Some(percent), message: Some(message) });
    }
}
