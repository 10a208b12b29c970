use crate::kinds::announced::{Known, Provider};
use crate::operation::{Change, Operation, State};
use jiff::Timestamp;
use shared::message::{Content, OperationId};
use std::sync::Arc;

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
    STATUSES[status_number(operation)]
}

/// An operation's number in the column `status`, which is also its place among the statuses' names.
pub(super) fn status_number(operation: &Operation) -> usize {
    match operation.state {
        State::NotStarted => 0,
        State::Running(_) => 1,
        State::Succeeded => 2,
        State::Failed(_) => 3,
        State::Canceled(_) => 4,
    }
}

/// An event, and where it is in both orders.
#[derive(Clone, Debug)]
pub struct LoggedEvent {
    /// Its number among the events of all operations.
    pub sequence: u64,
    /// Its operation.
    pub id: OperationId,
    /// What its operation was asked for.
    pub kind: String,
    /// Its number in its operation's log.
    pub number: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub event_type: String,
    /// What belongs to it, as JSON.
    pub data: String,
}

/// A page of one operation's log.
#[derive(Clone, Debug)]
pub struct OperationLog {
    /// The number of the log's last event.
    pub last: u64,
    /// Whether the operation has ended.
    pub ended: bool,
    /// The page.
    pub events: Vec<LoggedEvent>,
}

/// A page of the log of all operations in a scope.
#[derive(Clone, Debug)]
pub struct LogOfAll {
    /// Why a follower that came this far cannot simply go on, if so.
    pub lost: Option<Lost>,
    /// The page.
    pub events: Vec<LoggedEvent>,
}

/// Why a follower cannot simply go on from where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nobody was ever told this number.
    Unknown,
    /// Events after it have been forgotten with their operations.
    Gone,
    /// It has more to read than is allowed.
    Behind,
}

/// Operations that have not ended, at one point of the log.
#[derive(Clone, Debug)]
pub struct OpenOperations {
    /// The number of the last event that they reflect.
    pub sequence: u64,
    /// The newest of them, newest first.
    pub operations: Vec<Operation>,
    /// Whether there are more.
    pub more: bool,
}

/// What was announced of a kind by one instance, as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct AnnouncedRow {
    pub(crate) kind: String,
    pub(crate) instance: String,
    pub(crate) known: Known,
    pub(crate) provider: Provider,
}

/// What an operation takes beside its bodies: about the size of its record, its log and their indices.
pub(super) const RECORD_BYTES: i64 = 1024;

/// Deliveries of one operation that are shown, the newest: each retry by hand may lead to one more.
pub(super) const SHOWN_MAX: usize = 10;

/// As a table can have it.
pub(super) fn signed(number: u64) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
