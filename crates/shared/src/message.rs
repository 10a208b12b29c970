use crate::problem::{self, Problem};
use crate::topology;
use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use uuid::Uuid;

/// `type` of a request.
pub const REQUEST: &str = "arr.request";
/// `type` of a progress report.
pub const PROGRESS: &str = "arr.progress";
/// `type` of a reply that carries the result.
pub const REPLY: &str = "arr.reply";
/// `type` of a reply that carries a problem.
pub const ERROR: &str = "arr.error";

/// The media type of JSON, the default of every payload.
pub const JSON: &str = "application/json";

/// AMQP strings such as correlation ids and routing keys are at most this long (AMQP 0-9-1, short string).
pub const SHORT_STRING_BYTES_MAX: usize = 255;

/// Names an operation, and is the correlation id of all its messages. A UUIDv7, so ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// Reads the `reply_to` of a message. An `arr.reply.` address whose group is not well formed is no address.
    #[must_use]
    pub fn parse(reply_to: &str) -> Option<Self> {
        match reply_to.strip_prefix("arr.reply.") {
            Some(group) if topology::is_group(group) => Some(Self::Group(group.into())),
            Some(_) => None,
            None if reply_to.is_empty() => None,
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
    /// The attempt that reports.
    pub attempt: u32,
    /// Grows from report to report, across executions too: microseconds since 1970 serve.
    pub sequence: i64,
    /// 0 to 100, if the handler can tell.
    pub percent: Option<f64>,
    /// What is being done, for people; at most [`PROGRESS_MESSAGE_BYTES_MAX`].
    pub message: Option<String>,
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
    /// The attempt that is answered.
    pub attempt: u32,
    /// Whether asking again may help; only for failures.
    pub retryable: bool,
    /// The outcome.
    pub outcome: Outcome,
}

/// The message id of a request: the same each time it is sent, so that repeats are recognised.
#[must_use]
pub fn request_message_id(operation: OperationId, step: u32) -> String {
    if step <= 1 { operation.to_string() } else { format!("{operation}.{step}") }
}

impl Request {
    /// The message that asks for this request. `now` decides what is left of the deadline.
    ///
    /// # Errors
    /// [`Unreadable`] when a name is longer than an AMQP short string.
    pub fn to_message(&self, operation: OperationId, group: &str, now: Timestamp) -> Result<Message, Unreadable> {
        let message_id = short(request_message_id(operation, self.step))?;
        let mut headers = FieldTable::default();
        headers.insert("attempt".into(), AMQPValue::LongUInt(self.attempt));
        headers.insert("step".into(), AMQPValue::LongUInt(self.step));
        let mut properties = BasicProperties::default()
            .with_type(REQUEST.into())
            .with_correlation_id(short(self.correlation_id.as_str())?)
            .with_reply_to(short(topology::reply_queue(group))?)
            .with_content_type(short(self.content.content_type.as_str())?);
        if let Some(deadline) = self.deadline {
            headers.insert("deadline".into(), AMQPValue::LongString(deadline.to_string().into()));
            let left = (deadline.as_millisecond() - now.as_millisecond()).max(0);
            properties = properties.with_expiration(left.to_string().into());
        }
        if let Some(traceparent) = &self.traceparent {
            headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.as_str().into()));
        }
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        message(topology::REQUEST, &self.kind, message_id, properties.with_headers(headers), self.content.body.clone())
    }

    /// Reads a request that came through the queue of `kind`.
    ///
    /// A message without `type` is a foreign client's and needs nothing but a return address.
    ///
    /// # Errors
    /// [`Unreadable`] with what is wrong, when it cannot be a request.
    pub fn from_delivery(kind: &str, delivery: &mut Delivery) -> Result<Self, Unreadable> {
        let properties = &delivery.properties;
        let message_type = properties.kind().as_ref().map(ShortString::as_str);
        let correlation_id = properties.correlation_id().as_ref().map(ToString::to_string);
        let ours = match message_type {
            Some(REQUEST) => true,
            None => false,
            Some(other) => return Err(Unreadable(format!("a message of type {other:?} is no request"))),
        };
        let operation = match (ours, &correlation_id) {
            (true, Some(id)) => Some(id.parse().map_err(|_| Unreadable("correlation_id is no operation id".into()))?),
            (true, None) => return Err(Unreadable("the request has no correlation_id".into())),
            (false, _) => None,
        };
        let deadline = match header_text(properties, "deadline") {
            Some(text) => Some(text.parse().map_err(|_| Unreadable(format!("header deadline is no time: {text:?}")))?),
            None => None,
        };
        Ok(Self {
            operation,
            correlation_id: correlation_id.unwrap_or_default(),
            kind: kind.into(),
            step: header_number(properties, "step").and_then(|n| n.try_into().ok()).unwrap_or(1),
            attempt: header_number(properties, "attempt").and_then(|n| n.try_into().ok()).unwrap_or(1),
            deadline,
            expiration: expiration(properties),
            reply_to: return_address(properties),
            priority: *properties.priority(),
            traceparent: header_text(properties, "traceparent").map(str::to_owned),
            content: take_content(delivery),
        })
    }

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

    /// The message that reports `progress` on this request, or none if a foreign client asked.
    ///
    /// # Errors
    /// [`Unreadable`] when a name is longer than an AMQP short string.
    pub fn progress_message(&self, progress: &Progress) -> Result<Option<Message>, Unreadable> {
        let (Some(ReturnAddress::Group(group)), Some(operation)) = (&self.reply_to, self.operation) else {
            return Ok(None);
        };
        let mut headers = FieldTable::default();
        headers.insert("attempt".into(), AMQPValue::LongUInt(progress.attempt));
        headers.insert("sequence".into(), AMQPValue::LongLongInt(progress.sequence));
        if let Some(percent) = progress.percent {
            headers.insert("percent".into(), AMQPValue::Double(percent));
        }
        let body = serde_json::json!({ "message": progress.message }).to_string();
        let properties = BasicProperties::default()
            .with_type(PROGRESS.into())
            .with_correlation_id(short(self.correlation_id.as_str())?)
            .with_content_type(JSON.into())
            .with_headers(headers);
        let message_id = short(format!("{operation}.{}.{}", progress.attempt, progress.sequence))?;
        let key = topology::progress_queue(group);
        let mut message = message(topology::PROGRESS, &key, message_id, properties, body)?;
        message.mandatory = false;
        Ok(Some(message))
    }

    /// The message that answers this request, or none if it has no return address.
    ///
    /// # Errors
    /// [`Unreadable`] when a name is longer than an AMQP short string.
    pub fn reply_message(&self, reply: &Reply) -> Result<Option<Message>, Unreadable> {
        let Some(address) = &self.reply_to else { return Ok(None) };
        answer(address, &self.correlation_id, self.step, reply).map(Some)
    }
}

/// The message that carries `reply` to `address`.
///
/// # Errors
/// [`Unreadable`] when a name is longer than an AMQP short string.
pub fn answer(address: &ReturnAddress, correlation_id: &str, step: u32, reply: &Reply) -> Result<Message, Unreadable> {
    let mut headers = FieldTable::default();
    headers.insert("attempt".into(), AMQPValue::LongUInt(reply.attempt));
    headers.insert("retryable".into(), AMQPValue::Boolean(reply.retryable));
    let (message_type, content_type, body) = match &reply.outcome {
        Outcome::Succeeded(content) => (REPLY, content.content_type.as_str(), content.body.clone()),
        Outcome::Failed(problem) => (ERROR, problem::CONTENT_TYPE, problem.to_json().into()),
    };
    let properties = BasicProperties::default()
        .with_type(message_type.into())
        .with_correlation_id(short(correlation_id)?)
        .with_content_type(short(content_type)?)
        .with_headers(headers);
    let (exchange, key) = address.exchange_and_key();
    // Cut rather than refused: a foreign correlation id may itself be as long as a short string can be.
    let mut message_id = format!("{step}.{}.{correlation_id}", reply.attempt);
    message_id.truncate(message_id.floor_char_boundary(SHORT_STRING_BYTES_MAX));
    message(exchange, &key, short(message_id)?, properties, body)
}

impl Progress {
    /// Reads a progress report.
    ///
    /// # Errors
    /// [`Unreadable`] with what is wrong.
    pub fn from_delivery(delivery: &Delivery) -> Result<(OperationId, Self), Unreadable> {
        let properties = &delivery.properties;
        if properties.kind().as_ref().map(ShortString::as_str) != Some(PROGRESS) {
            return Err(Unreadable("the message is no progress report".into()));
        }
        #[derive(Deserialize)]
        struct Body {
            message: Option<String>,
        }
        let body: Body = serde_json::from_slice(&delivery.data).map_err(|e| Unreadable(format!("no JSON: {e}")))?;
        let message = body.message.map(|mut text| {
            text.truncate(text.floor_char_boundary(PROGRESS_MESSAGE_BYTES_MAX));
            text
        });
        let percent = match header(properties, "percent") {
            Some(AMQPValue::Double(percent)) => Some(*percent),
            Some(AMQPValue::Float(percent)) => Some(f64::from(*percent)),
            _ => header_number(properties, "percent").map(|percent| percent as f64),
        };
        let progress = Self {
            attempt: attempt_of(properties),
            sequence: header_number(properties, "sequence").unwrap_or(0),
            percent: percent.filter(|p| p.is_finite()).map(|p| p.clamp(0.0, 100.0)),
            message,
        };
        Ok((operation_of(properties)?, progress))
    }
}

impl Reply {
    /// Reads a reply. A message without `type` is a plain RPC server's, and its body is the result.
    ///
    /// # Errors
    /// [`Unreadable`] with what is wrong.
    pub fn from_delivery(delivery: &mut Delivery) -> Result<(OperationId, Self), Unreadable> {
        let properties = &delivery.properties;
        let operation = operation_of(properties)?;
        let attempt = attempt_of(properties);
        let retryable = matches!(header(properties, "retryable"), Some(AMQPValue::Boolean(true)));
        let outcome = match properties.kind().as_ref().map(ShortString::as_str) {
            Some(REPLY) | None => Outcome::Succeeded(take_content(delivery)),
            Some(ERROR) => Outcome::Failed(Problem::from_body(&delivery.data)),
            Some(other) => return Err(Unreadable(format!("a message of type {other:?} is no reply"))),
        };
        Ok((operation, Self { attempt, retryable, outcome }))
    }
}

/// The return address of a message, if it has one that can be used.
#[must_use]
pub fn return_address(properties: &BasicProperties) -> Option<ReturnAddress> {
    properties.reply_to().as_ref().and_then(|address| ReturnAddress::parse(address.as_str()))
}

/// The text of a header, if it is there and is UTF-8.
#[must_use]
pub fn header_text<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a str> {
    match header(properties, name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// The number in a header. Clients of other languages choose the integer's width as they like.
#[must_use]
pub fn header_number(properties: &BasicProperties, name: &str) -> Option<i64> {
    match header(properties, name)? {
        AMQPValue::ShortShortInt(n) => Some((*n).into()),
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => Some((*n).into()),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::LongInt(n) => Some((*n).into()),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::LongLongInt(n) => Some(*n),
        _ => None,
    }
}

/// The attempt in the headers; 1 where there is none.
#[must_use]
pub fn attempt_of(properties: &BasicProperties) -> u32 {
    header_number(properties, "attempt").and_then(|n| n.try_into().ok()).unwrap_or(1)
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn expiration(properties: &BasicProperties) -> Option<Duration> {
    properties.expiration().as_ref()?.as_str().parse().ok().map(Duration::from_millis)
}

fn operation_of(properties: &BasicProperties) -> Result<OperationId, Unreadable> {
    let id = properties.correlation_id().as_ref().ok_or_else(|| Unreadable("no correlation_id".into()))?;
    id.as_str().parse().map_err(|_| Unreadable("correlation_id is no operation id".into()))
}

fn take_content(delivery: &mut Delivery) -> Content {
    let content_type = delivery.properties.content_type().as_ref().map_or("", ShortString::as_str);
    let content_type = if content_type.is_empty() { "application/octet-stream" } else { content_type }.to_owned();
    Content { content_type, body: std::mem::take(&mut delivery.data).into() }
}

fn short(text: impl Into<String>) -> Result<ShortString, Unreadable> {
    let text = text.into();
    ShortString::try_new(text.as_str())
        .map_err(|_| Unreadable(format!("{} bytes are too long for an AMQP name: {:.40}…", text.len(), text)))
}

fn message(
    exchange: &'static str,
    routing_key: &str,
    message_id: ShortString,
    properties: BasicProperties,
    body: impl Into<Bytes>,
) -> Result<Message, Unreadable> {
    let properties = properties
        .with_message_id(message_id.clone())
        .with_delivery_mode(2)
        .with_timestamp(Timestamp::now().as_second().try_into().unwrap_or_default());
    Ok(Message {
        exchange,
        routing_key: short(routing_key)?,
        properties,
        message_id,
        body: body.into(),
        mandatory: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let reply = Reply { attempt: 2, retryable: true, outcome };
            let message = request.reply_message(&reply).unwrap().unwrap();
            assert_eq!((message.exchange, message.routing_key.as_str()), ("arr.reply", "arr.reply.default"));
            assert_eq!(Reply::from_delivery(&mut delivered(&message)).unwrap(), (operation, reply));
        }
        let progress = Progress { attempt: 2, sequence: 9, percent: Some(12.5), message: Some("half".into()) };
        let message = request.progress_message(&progress).unwrap().unwrap();
        assert_eq!((message.exchange, message.routing_key.as_str()), ("arr.progress", "arr.progress.default"));
        assert!(!message.mandatory);
        assert_eq!(Progress::from_delivery(&delivered(&message)).unwrap(), (operation, progress));
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
        for bad in ["", "arr.reply.", "arr.reply.#", "arr.reply.a.b", "arr.reply.A"] {
            assert_eq!(ReturnAddress::parse(bad), None, "{bad}");
        }
        assert_eq!(ReturnAddress::parse("victim"), Some(ReturnAddress::Foreign("victim".into())));
        let long = "x".repeat(300);
        let reply = Reply { attempt: 1, retryable: false, outcome: Outcome::Succeeded(Content::json("1")) };
        assert!(answer(&ReturnAddress::Foreign(long), "a", 1, &reply).is_err());
        assert!(answer(&ReturnAddress::Foreign("q".into()), &"é".repeat(127), 1, &reply).is_ok());
    }
}
