//! Where operations are kept. The only place with SQL.

mod announced;
mod due;
mod log;
mod owners;
mod sqlite;
mod tables;
mod webhooks;

pub(crate) use announced::AnnouncedRow;
pub use log::{LogOfAll, LoggedEvent, Lost, OpenOperations, OperationLog};
pub use sqlite::Store;

use crate::operation::{Change, Operation};
use jiff::Timestamp;
use shared::message::{Content, OperationId};
use std::sync::Arc;

pub use shared::database::DatabaseError as StoreError;

/// Whose operations a query may see. All that is asked for a caller has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everybody's.
    All,
    /// Those of this caller.
    Of(Arc<str>),
}

impl Scope {
    /// The one caller whose operations are meant.
    pub(crate) fn owner(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Of(owner) => Some(owner),
        }
    }
}

/// Which operations to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this status, as [`status_name`] gives it.
    pub status: Option<&'static str>,
    /// Only those before this one.
    pub before: Option<OperationId>,
    /// At most so many.
    pub limit: usize,
}

/// An operation to be stored.
#[derive(Clone, Debug)]
pub struct NewOperation {
    /// The operation.
    pub operation: Operation,
    /// Its request.
    pub request: Content,
    /// What its owner will know it by if the answer is lost.
    pub key: Option<IdempotencyKey>,
    /// What its owner may have.
    pub room: Room,
}

/// A key that an owner uses for one request only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key.
    pub key: String,
    /// Tells the request from others.
    pub fingerprint: Vec<u8>,
}

/// How much of an owner's the store takes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Operations that have not ended.
    pub open_max: u64,
    /// Bytes of requests, results and records.
    pub bytes_max: u64,
}

/// What came of a new operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// It is stored.
    New,
    /// Its request was stored before with its key, as this operation.
    Before(Box<Operation>),
    /// Its key was used for another request.
    OtherPayload,
    /// Its owner has as many open operations as there may be.
    TooManyOpen,
    /// It would take more bytes than its owner may have.
    TooManyBytes,
}

/// What applying an event did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The operation after it.
    pub operation: Operation,
    /// The change.
    pub change: Change,
}

/// An operation of which a batch of writes has changed something; perhaps, since a write may have been undone.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The operation.
    pub id: OperationId,
    /// Whose it is.
    pub owner: Arc<str>,
}

/// Which request of an operation, and for which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The operation.
    pub id: OperationId,
    /// The step.
    pub step: u32,
    /// The attempt.
    pub attempt: u32,
}

impl RequestId {
    /// The request under way.
    #[must_use]
    pub fn of(operation: &Operation) -> Self {
        Self { id: operation.id, step: operation.step, attempt: operation.attempt }
    }
}

/// That a request was sent, or could not be.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Which request.
    pub request: RequestId,
    /// How often it has been sent now.
    pub sends: u32,
    /// When it was given to the publisher.
    pub sent_at: Timestamp,
    /// When to send it again unless something is heard of it.
    pub next_send_at: Timestamp,
}

/// The five statuses of an operation (Azure REST guidelines), by their number in the tables.
pub const STATUSES: [&str; 5] = ["NotStarted", "Running", "Succeeded", "Failed", "Canceled"];

/// The status of `operation`.
#[must_use]
pub fn status_name(operation: &Operation) -> &'static str {
    STATUSES[tables::status_number(operation)]
}
