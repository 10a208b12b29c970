//! One delivery: what is sent, and what an attempt came to.

use super::document::document;
use crate::operation::Operation;
use bytes::Bytes;
use jiff::Timestamp;
use shared::message::{Content, OperationId};
use std::fmt;
use std::time::Duration;

/// Names a delivery: one outcome of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DeliveryId {
    pub(crate) operation: OperationId,
    /// The version in which the operation had this outcome; after a retry by hand it is another.
    pub(crate) number: u32,
}

impl fmt::Display for DeliveryId {
    /// The header `webhook-id`, in which no dot may be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "msg_{}_{}", self.operation.0.simple(), self.number)
    }
}

/// An outcome that is sent to the receiver that its caller named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) id: DeliveryId,
    /// Whose operation it is.
    pub(crate) owner: String,
    pub(crate) url: String,
    /// Of the URL: those of one host share its slots.
    pub(crate) host: String,
    /// Such as `operation.succeeded`.
    pub(crate) event_type: String,
    pub(crate) body: Bytes,
    pub(crate) state: State,
    /// Attempts so far.
    pub(crate) attempts: u32,
    /// When the next attempt is made, if one is.
    pub(crate) next_at: Option<Timestamp>,
}

impl Delivery {
    /// The delivery of the outcome that `operation` has just come to, if its caller wants one.
    pub(crate) fn of(operation: &Operation, result: Option<&Content>) -> Option<Self> {
        let url = operation.callback.as_ref()?.url.clone();
        let host = url::Url::parse(&url).ok()?.host_str()?.trim_end_matches('.').to_owned();
        let (event_type, body) = document(operation, result)?;
        let id = DeliveryId { operation: operation.id, number: operation.version };
        let owner = operation.owner.clone();
        Some(Self { id, owner, url, host, event_type, body, state: State::Pending, attempts: 0, next_at: None })
    }
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// An attempt follows.
    Pending,
    /// The receiver has taken it.
    Delivered,
    /// The receiver wants no more (410).
    Refused,
    /// No attempt is left.
    GivenUp,
}

impl State {
    pub(crate) const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Refused, Self::GivenUp];

    /// As it is stored and shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Delivered => "Delivered",
            Self::Refused => "Refused",
            Self::GivenUp => "GivenUp",
        }
    }

    pub(crate) fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|state| state.name() == name).unwrap_or(Self::GivenUp)
    }
}

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// From 1 in each delivery.
    pub(crate) number: u32,
    pub(crate) at: Timestamp,
    pub(crate) took: Duration,
    /// What the receiver answered.
    pub(crate) status: Option<u16>,
    /// Why there was no answer, or why it does not count.
    pub(crate) error: Option<String>,
}

impl Attempt {
    /// What becomes of the delivery: it has arrived, is not wanted any more, or must be tried again.
    pub(crate) fn state(&self) -> State {
        match self.status {
            Some(200..=299) => State::Delivered,
            Some(410) => State::Refused,
            Some(_) | None => State::Pending,
        }
    }
}
