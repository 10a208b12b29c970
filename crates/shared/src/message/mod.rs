//! The wire contract: what is said, and how it looks as an AMQP message.
//!
//! `docs/protocol.md` says the same for other languages.

mod announcement;
mod incoming;
mod outgoing;

pub use announcement::{ANNOUNCEMENT_BYTES_MAX, Announcement, Effect};
pub use incoming::{
    VERSION, attempt_of, check_headers, check_request, header_number, header_text, is_traceparent, return_address,
    step_of,
};
pub use outgoing::answer;

use crate::problem::Problem;
use crate::topology;
use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::ShortString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use uuid::Uuid;

/// `type` of a request.
pub const REQUEST: &str = "arr.request";
/// `type` of a progress report.
pub const PROGRESS: &str = "arr.progress";
/// `type` of a message that asks to cancel an operation.
pub const CANCEL: &str = "arr.cancel";
/// `type` of an announcement of what a provider serves.
pub const ANNOUNCE: &str = "arr.announce";
/// `type` of a reply that carries the result.
pub const REPLY: &str = "arr.reply";
/// `type` of a reply that carries a problem.
pub const ERROR: &str = "arr.error";

/// The media type of JSON, the default of every payload.
pub const JSON: &str = "application/json";
/// The media type of a payload that came without one (RFC 9110 section 8.3).
pub const UNNAMED: &str = "application/octet-stream";

/// Names an operation, and is the correlation id of all its messages. A UUIDv7, so ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct OperationId(pub Uuid);

impl OperationId {
    /// A new id, later than every id made before it in this process.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for OperationId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OperationId {
    type Err = Unreadable;

    /// Takes the hyphenated form only, so that an operation has one URL.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Uuid::parse_str(text) {
            Ok(id) if text.len() == 36 => Ok(Self(id)),
            _ => Err(Unreadable("not an operation id".into())),
        }
    }
}

/// A payload with its media type.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// The media type, such as `application/json`.
    pub content_type: String,
    /// The bytes, untouched.
    pub body: Bytes,
}

impl Content {
    /// JSON that is already written.
    pub fn json(body: impl Into<Bytes>) -> Self {
        Self { content_type: JSON.into(), body: body.into() }
    }
}

/// Where a reply goes (EIP: Return Address).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReturnAddress {
    /// A requestor group: through the exchange `arr.reply`, to the queue of that group.
    Group(String),
    /// Any other queue, through the default exchange: a plain RPC client that knows nothing of us.
    Foreign(String),
}

impl ReturnAddress {
    /// Reads the `reply_to` of a message.
    ///
    /// Of our own queues only the reply queues are addresses: a sender must not be
    /// able to direct a reply among the requests, wishes to cancel or dead letters.
    #[must_use]
    pub fn parse(reply_to: &str) -> Option<Self> {
        match reply_to.strip_prefix("arr.reply.") {
            Some(group) if topology::is_group(group) => Some(Self::Group(group.into())),
            Some(_) => None,
            None if reply_to.is_empty() || reply_to.starts_with("arr.") => None,
            None => Some(Self::Foreign(reply_to.into())),
        }
    }

    fn exchange_and_key(&self) -> (&'static str, String) {
        match self {
            Self::Group(group) => (topology::REPLY, topology::reply_queue(group)),
            Self::Foreign(queue) => ("", queue.clone()),
        }
    }
}

/// An AMQP message on its way out. It always has a message id: returned messages are told apart by it.
#[derive(Clone, Debug)]
pub struct Message {
    /// The exchange; empty for the default exchange.
    pub exchange: &'static str,
    /// The routing key.
    pub routing_key: ShortString,
    /// The properties; the message id is in `message_id` as well.
    pub properties: BasicProperties,
    /// The message id.
    pub message_id: ShortString,
    /// The payload.
    pub body: Bytes,
    /// Whether the broker must say so when no queue takes the message.
    pub mandatory: bool,
}

/// Why a message cannot be read. It is counted, answered if it has a return address, and acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

impl From<Unreadable> for Problem {
    fn from(error: Unreadable) -> Self {
        Self::new("unreadable-message", 400, "The message is no request", error.to_string())
    }
}

/// A request as the provider receives it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The operation, unless a foreign client asks.
    pub operation: Option<OperationId>,
    /// Echoed in every answer.
    pub correlation_id: String,
    /// What is asked, from the queue that the message came through.
    pub kind: String,
    /// The step of a pipeline, from 1.
    pub step: u32,
    /// Which attempt of the requestor's this is, from 1.
    pub attempt: u32,
    /// When the requestor gives up, by its clock. Foreign requests may have none.
    pub deadline: Option<Timestamp>,
    /// What was left of that when the message was published. Set by [`Request::to_message`].
    pub expiration: Option<Duration>,
    /// Where the answer goes.
    pub reply_to: Option<ReturnAddress>,
    /// 0 to 9; quorum queues tell priorities apart from RabbitMQ 4.0 on.
    pub priority: Option<u8>,
    /// W3C Trace Context, passed on unchanged.
    pub traceparent: Option<String>,
    /// The payload.
    pub content: Content,
}

/// A report on the way to the outcome. May be lost, repeated and reordered.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The step that reports, from 1.
    pub step: u32,
    /// The attempt that reports.
    pub attempt: u32,
    /// Grows from report to report, across executions too: microseconds since 1970 serve.
    pub sequence: i64,
    /// 0 to 100, if the handler can tell.
    pub percent: Option<f64>,
    /// What is being done, for people; at most [`PROGRESS_MESSAGE_BYTES_MAX`].
    pub message: Option<String>,
    /// How long the provider may now be silent before it counts as dead, if it has acknowledged the request early.
    pub lease: Option<Duration>,
}

/// The longest progress text, in bytes. It is stored with the operation and shown in one line.
pub const PROGRESS_MESSAGE_BYTES_MAX: usize = 256;

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The result.
    Succeeded(Content),
    /// Why there is none.
    Failed(Problem),
}

/// The final answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The step that is answered, from 1.
    pub step: u32,
    /// The attempt that is answered.
    pub attempt: u32,
    /// Whether asking again may help; only for failures.
    pub retryable: bool,
    /// The earliest time to ask again, from now, if the provider knows better than the kind's policy.
    pub retry_after: Option<Duration>,
    /// The outcome.
    pub outcome: Outcome,
}

impl Reply {
    /// A final answer to `attempt` of `step`.
    #[must_use]
    pub fn new(step: u32, attempt: u32, outcome: Outcome) -> Self {
        Self { step, attempt, retryable: false, retry_after: None, outcome }
    }

    /// The same; but a result of more than `bytes_max` becomes a failure that says so.
    #[must_use]
    pub fn at_most(self, bytes_max: usize) -> Self {
        match &self.outcome {
            Outcome::Succeeded(content) if content.body.len() > bytes_max => {
                let detail = format!("the result has {} bytes, more than {bytes_max}", content.body.len());
                let problem = Problem::new("result-too-large", 500, "Result too large", detail);
                Self { outcome: Outcome::Failed(problem), ..self }
            }
            _ => self,
        }
    }
}

/// A wish that an operation be canceled. The provider group answers with the problem `canceled`, which proves that no
/// effect happened and none will, or with the outcome that it has recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Cancel {
    /// The operation.
    pub operation: OperationId,
    /// The kind of the step under way.
    pub kind: String,
    /// The step under way, from 1.
    pub step: u32,
    /// The attempt under way, from 1.
    pub attempt: u32,
    /// When the requestor gives up, by its clock.
    pub deadline: Timestamp,
    /// Where the answer goes.
    pub reply_to: ReturnAddress,
}

impl Cancel {
    /// What names the request that must not be carried out.
    #[must_use]
    pub fn identity(&self) -> String {
        request_message_id(self.operation, self.step)
    }
}

/// The message id of a request: the same each time it is sent, so that repeats are recognised.
#[must_use]
pub fn request_message_id(operation: OperationId, step: u32) -> String {
    if step <= 1 { operation.to_string() } else { format!("{operation}.{step}") }
}

impl Request {
    /// What names this request however often it is sent, and no other; none if a foreign client gave it no name.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        match (self.operation, &self.reply_to) {
            (Some(operation), _) => Some(request_message_id(operation, self.step)),
            (None, Some(ReturnAddress::Foreign(address))) if !self.correlation_id.is_empty() => {
                Some(format!("foreign:{}:{address}:{}", self.kind, self.correlation_id))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::message::Delivery;
    use lapin::types::{AMQPValue, FieldTable};

    fn request() -> (OperationId, Request) {
        let operation: OperationId = "01a2076b-5594-7450-ab5f-b6f5ebe0fa56".parse().unwrap();
        let request = Request {
            operation: Some(operation),
            correlation_id: operation.to_string(),
            kind: "order.place".into(),
            step: 1,
            attempt: 2,
            deadline: Some("2026-11-23T08:00:30Z".parse().unwrap()),
            expiration: None,
            reply_to: Some(ReturnAddress::Group("default".into())),
            priority: Some(7),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            content: Content::json("{}"),
        };
        (operation, request)
    }

    /// The message as its receiver gets it.
    fn delivered(message: &Message) -> Delivery {
        let (exchange, key) = (message.exchange.into(), message.routing_key.clone());
        let mut delivery = Delivery::mock(1, exchange, key, false, message.body.to_vec());
        delivery.properties = message.properties.clone();
        delivery
    }

    fn text(value: &Option<ShortString>) -> &str {
        value.as_ref().map_or("", ShortString::as_str)
    }

    #[test]
    fn a_request_on_the_wire_is_as_the_protocol_says() {
        let (operation, request) = request();
        let now = "2026-11-23T08:00:00Z".parse().unwrap();
        let message = request.to_message(operation, "default", now).unwrap();
        let properties = &message.properties;
        assert_eq!((message.exchange, message.routing_key.as_str()), ("arr.request", "order.place"));
        assert!(message.mandatory);
        assert_eq!(text(properties.kind()), "arr.request");
        assert_eq!(text(properties.correlation_id()), operation.to_string());
        assert_eq!(text(properties.message_id()), operation.to_string());
        assert_eq!(text(properties.reply_to()), "arr.reply.default");
        assert_eq!(text(properties.expiration()), "30000");
        assert_eq!(text(properties.content_type()), "application/json");
        assert_eq!((*properties.delivery_mode(), *properties.priority()), (Some(2), Some(7)));
        assert_eq!(header_text(properties, "deadline"), Some("2026-11-23T08:00:30Z"));

        let read = Request::from_delivery("order.place", &mut delivered(&message)).unwrap();
        assert_eq!((read.operation, read.step, read.attempt), (Some(operation), 1, 2));
        assert_eq!((read.deadline, read.expiration), (request.deadline, Some(Duration::from_secs(30))));
        assert_eq!((read.reply_to, read.traceparent), (request.reply_to, request.traceparent));
        assert_eq!((read.content, read.priority), (request.content, request.priority));
        assert_eq!(request_message_id(operation, 2), format!("{operation}.2"));
    }

    #[test]
    fn replies_and_progress_come_back_as_they_were_sent() {
        let (operation, request) = request();
        let problem = Problem::new("out-of-stock", 409, "Out of stock", "none left");
        for outcome in [Outcome::Succeeded(Content::json("1")), Outcome::Failed(problem)] {
            let reply =
                Reply { retryable: true, retry_after: Some(Duration::from_secs(3)), ..Reply::new(2, 3, outcome) };
            let address = request.reply_to.as_ref().unwrap();
            let message = answer(address, &request.correlation_id, &reply).unwrap();
            assert_eq!((message.exchange, message.routing_key.as_str()), ("arr.reply", "arr.reply.default"));
            assert_eq!(Reply::from_delivery(&mut delivered(&message)).unwrap(), (operation, reply));
        }
        let (message, lease) = (Some("half".into()), Some(Duration::from_secs(45)));
        let progress = Progress { step: 1, attempt: 2, sequence: 9, percent: Some(12.5), message, lease };
        let message = request.progress_message(&progress).unwrap().unwrap();
        assert_eq!((message.exchange, message.routing_key.as_str()), ("arr.progress", "arr.progress.default"));
        assert!(!message.mandatory);
        assert_eq!(Progress::from_delivery(&delivered(&message)).unwrap(), (operation, progress));
    }

    #[test]
    fn a_cancel_comes_back_as_it_was_sent() {
        let (operation, request) = request();
        let (kind, reply_to) = ("order.place".to_owned(), request.reply_to.unwrap());
        let cancel = Cancel { operation, kind, step: 2, attempt: 3, deadline: request.deadline.unwrap(), reply_to };
        let message = cancel.to_message().unwrap();
        assert_eq!((message.exchange, message.routing_key.as_str()), ("arr.control", "order.place"));
        assert_eq!(Cancel::from_delivery(&delivered(&message)).unwrap(), cancel);
        assert_eq!(cancel.identity(), format!("{operation}.2"));
    }

    #[test]
    fn a_plain_server_answers_the_step_that_it_was_asked() {
        let operation = OperationId::new();
        for (echoed, step) in [(operation.to_string(), 1), (request_message_id(operation, 7), 7)] {
            let mut delivery = Delivery::mock(1, "".into(), "arr.reply.default".into(), false, b"1".to_vec());
            delivery.properties = BasicProperties::default().with_correlation_id(echoed.into());
            let outcome = Outcome::Succeeded(Content { content_type: UNNAMED.into(), body: "1".into() });
            assert_eq!(Reply::from_delivery(&mut delivery).unwrap(), (operation, Reply::new(step, 1, outcome)));
        }
        let mut delivery = Delivery::mock(1, "".into(), "arr.reply.default".into(), false, Vec::new());
        for bad in [".1".to_owned(), format!("{operation}."), format!("{operation}.x"), format!("{operation}.1.1")] {
            delivery.properties = BasicProperties::default().with_correlation_id(bad.into());
            assert!(Reply::from_delivery(&mut delivery).is_err());
        }
    }

    #[test]
    fn other_clients_write_integers_as_they_like() {
        let (operation, request) = request();
        let mut delivery = delivered(&request.to_message(operation, "default", Timestamp::now()).unwrap());
        for value in [AMQPValue::ShortShortInt(3), AMQPValue::LongInt(3), AMQPValue::LongLongInt(3)] {
            let mut headers = FieldTable::default();
            headers.insert("attempt".into(), value);
            delivery.properties = delivery.properties.with_headers(headers);
            assert_eq!(attempt_of(&delivery.properties), 3);
        }
    }

    #[test]
    fn no_return_address_leads_elsewhere_than_it_says() {
        let long = format!("arr.reply.{}", "a".repeat(245));
        let ours = ["arr.reply.", "arr.reply.#", "arr.reply.*", "arr.reply.a.b", "arr.reply.A", "arr.reply.a\0", &long];
        let others = ["arr.control.default", "arr.request.echo", "arr.dead.echo", "arr.progress.default", "arr.", ""];
        for bad in ours.into_iter().chain(others) {
            assert_eq!(ReturnAddress::parse(bad), None, "{bad}");
        }
        assert_eq!(ReturnAddress::parse("victim"), Some(ReturnAddress::Foreign("victim".into())));
        let long = "x".repeat(300);
        let reply = Reply::new(1, 1, Outcome::Succeeded(Content::json("1")));
        assert!(answer(&ReturnAddress::Foreign(long), "a", &reply).is_err());
        assert!(answer(&ReturnAddress::Foreign("q".into()), &"é".repeat(127), &reply).is_ok());
    }
}
