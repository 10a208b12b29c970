//! Messages on their way in: what another program wrote is not believed before it is read.

use super::{
    CANCEL, Cancel, Content, ERROR, OperationId, Outcome, PROGRESS, PROGRESS_MESSAGE_BYTES_MAX, Progress, REPLY,
    REQUEST, Reply, Request, ReturnAddress, UNNAMED, Unreadable,
};
use crate::json;
use crate::problem::Problem;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::Deserialize;
use std::time::Duration;

/// The version of this protocol, in the header `version` of requests; absent is 1.
pub const VERSION: i64 = 1;
/// Values in the headers of one message. We read ten, and dead-lettering adds about twenty.
const HEADERS_MAX: usize = 256;
/// Bytes in the headers of one message. Ours have less than 300, and a history of dead-lettering a few KiB.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Tables and arrays within one another in headers. A history of dead-lettering (`x-death`) is an array of tables that
/// hold arrays.
const HEADER_DEPTH_MAX: usize = 8;
/// The body of a progress report: its text, with escapes, and what other providers may add.
const PROGRESS_BODY_BYTES_MAX: usize = 4096;

impl Request {
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
            step: step_of(properties),
            attempt: attempt_of(properties),
            deadline,
            expiration: expiration(properties),
            reply_to: return_address(properties),
            priority: *properties.priority(),
            traceparent: header_text(properties, "traceparent").filter(|text| is_traceparent(text)).map(str::to_owned),
            content: take_content(delivery),
        })
    }
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
        if delivery.data.len() > PROGRESS_BODY_BYTES_MAX {
            return Err(Unreadable(format!("the report has {} bytes", delivery.data.len())));
        }
        let body: Body = json::read(&delivery.data).map_err(|error| Unreadable(format!("no report: {error}")))?;
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
            step: step_of(properties),
            attempt: attempt_of(properties),
            sequence: header_number(properties, "sequence").unwrap_or(0),
            percent: percent.filter(|p| p.is_finite()).map(|p| p.clamp(0.0, 100.0)),
            message,
            lease: milliseconds(properties, "lease"),
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
        let (operation, step) = answered(properties)?;
        let attempt = attempt_of(properties);
        let retry_after = milliseconds(properties, "retry-after");
        let retryable = matches!(header(properties, "retryable"), Some(AMQPValue::Boolean(true)));
        let outcome = match properties.kind().as_ref().map(ShortString::as_str) {
            Some(REPLY) | None => match encoding(properties) {
                None => Outcome::Succeeded(take_content(delivery)),
                Some(encoding) => Outcome::Failed(Problem::new(
                    "provider-error",
                    500,
                    "The provider's reply cannot be read",
                    format!("the result is encoded as {encoding:.32?}; providers must send it as it is"),
                )),
            },
            Some(ERROR) => Outcome::Failed(Problem::from_body(&delivery.data)),
            Some(other) => return Err(Unreadable(format!("a message of type {other:?} is no reply"))),
        };
        Ok((operation, Self { step, attempt, retryable, retry_after, outcome }))
    }
}

impl Cancel {
    /// Reads a wish to cancel. The kind is the routing key, which a dead letter or a copy keeps.
    ///
    /// # Errors
    /// [`Unreadable`] with what is wrong.
    pub fn from_delivery(delivery: &Delivery) -> Result<Self, Unreadable> {
        let properties = &delivery.properties;
        if properties.kind().as_ref().map(ShortString::as_str) != Some(CANCEL) {
            return Err(Unreadable("the message is no wish to cancel".into()));
        }
        let deadline = header_text(properties, "deadline").and_then(|text| text.parse().ok());
        let reply_to = return_address(properties).filter(|address| matches!(address, ReturnAddress::Group(_)));
        Ok(Self {
            operation: operation_of(properties)?,
            kind: delivery.routing_key.as_str().into(),
            step: step_of(properties),
            attempt: attempt_of(properties),
            deadline: deadline.ok_or_else(|| Unreadable("header deadline is no time".into()))?,
            reply_to: reply_to.ok_or_else(|| Unreadable("reply_to names no requestor group".into()))?,
        })
    }
}

/// Checks everything of a request but what it asks: headers, size, encoding and version.
///
/// # Errors
/// The problem to answer with.
pub fn check_request(delivery: &Delivery, body_bytes_max: usize) -> Result<(), Problem> {
    let properties = &delivery.properties;
    check_headers(properties)?;
    if delivery.data.len() > body_bytes_max {
        let detail = format!("the request has {} bytes, more than {body_bytes_max}", delivery.data.len());
        return Err(Problem::new("too-large", 413, "Request too large", detail).with("limit", body_bytes_max));
    }
    if let Some(encoding) = encoding(properties) {
        let detail = format!("the request is encoded as {encoding:.32?}; send it as it is");
        return Err(Problem::new("unsupported-media-type", 415, "Unsupported media type", detail));
    }
    match header(properties, "version") {
        None => Ok(()),
        Some(_) if header_number(properties, "version") == Some(VERSION) => Ok(()),
        Some(_) => {
            let detail = format!("this provider knows version {VERSION} of the protocol only");
            Err(Problem::new("unsupported-version", 400, "Unsupported version", detail)
                .with("supported", vec![VERSION]))
        }
    }
}

/// Checks that the headers of a message are not more than an honest sender needs.
///
/// # Errors
/// [`Unreadable`] with the limit that they exceed.
pub fn check_headers(properties: &BasicProperties) -> Result<(), Unreadable> {
    header_bytes(properties).map(drop)
}

/// How many bytes the headers take, roughly.
pub(super) fn header_bytes(properties: &BasicProperties) -> Result<usize, Unreadable> {
    let mut spent = Spent::default();
    if let Some(headers) = properties.headers() {
        spent.table(headers, 1)?;
    }
    Ok(spent.bytes)
}

#[derive(Default)]
struct Spent {
    values: usize,
    bytes: usize,
}

impl Spent {
    fn table(&mut self, table: &FieldTable, depth: usize) -> Result<(), Unreadable> {
        table.inner().iter().try_for_each(|(name, value)| {
            self.bytes += name.as_str().len() + 1;
            self.value(value, depth)
        })
    }

    fn value(&mut self, value: &AMQPValue, depth: usize) -> Result<(), Unreadable> {
        self.values += 1;
        self.bytes += match value {
            AMQPValue::LongString(text) => text.as_bytes().len() + 5,
            AMQPValue::ShortString(text) => text.as_str().len() + 2,
            AMQPValue::ByteArray(bytes) => bytes.as_slice().len() + 5,
            _ => 9,
        };
        if self.values > HEADERS_MAX || self.bytes > HEADER_BYTES_MAX || depth > HEADER_DEPTH_MAX {
            let limits = format!("{HEADERS_MAX} values, {HEADER_BYTES_MAX} bytes, {HEADER_DEPTH_MAX} levels");
            return Err(Unreadable(format!("the headers are more than {limits}")));
        }
        match value {
            AMQPValue::FieldTable(table) => self.table(table, depth + 1),
            AMQPValue::FieldArray(array) => array.as_slice().iter().try_for_each(|value| self.value(value, depth + 1)),
            _ => Ok(()),
        }
    }
}

/// What the body is encoded as, if that is anything but itself.
fn encoding(properties: &BasicProperties) -> Option<&str> {
    let encoding = properties.content_encoding().as_ref()?.as_str();
    let plain = ["", "utf-8", "utf8", "identity"].iter().any(|plain| encoding.eq_ignore_ascii_case(plain));
    (!plain).then_some(encoding)
}

/// Whether `text` is a `traceparent` as W3C Trace Context defines it for version 00: 55 characters, and neither id zero.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let [version, trace, parent, flags] = parts[..] else { return false };
    [version.len(), trace.len(), parent.len(), flags.len()] == [2, 32, 16, 2]
        && parts.iter().all(|part| hex(part))
        && version == "00"
        && !zero(trace)
        && !zero(parent)
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
    counted(properties, "attempt")
}

/// The step in the headers; 1 where there is none.
#[must_use]
pub fn step_of(properties: &BasicProperties) -> u32 {
    counted(properties, "step")
}

fn counted(properties: &BasicProperties, name: &str) -> u32 {
    header_number(properties, name).and_then(|n| n.try_into().ok()).unwrap_or(1)
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn milliseconds(properties: &BasicProperties, name: &str) -> Option<Duration> {
    header_number(properties, name).and_then(|n| n.try_into().ok()).map(Duration::from_millis)
}

fn expiration(properties: &BasicProperties) -> Option<Duration> {
    properties.expiration().as_ref()?.as_str().parse().ok().map(Duration::from_millis)
}

fn operation_of(properties: &BasicProperties) -> Result<OperationId, Unreadable> {
    let id = properties.correlation_id().as_ref().ok_or_else(|| Unreadable("no correlation_id".into()))?;
    id.as_str().parse().map_err(|_| Unreadable("correlation_id is no operation id".into()))
}

/// What a reply answers. A plain RPC server sends no header, but echoes the correlation id, in which the step is if it is
/// not the first.
fn answered(properties: &BasicProperties) -> Result<(OperationId, u32), Unreadable> {
    let id = properties.correlation_id().as_ref().map_or("", ShortString::as_str);
    let echoed = id.split_once('.').filter(|_| header(properties, "step").is_none());
    match echoed.map(|(operation, step)| (operation.parse(), step.parse())) {
        Some((Ok(operation), Ok(step))) => Ok((operation, step)),
        _ => Ok((operation_of(properties)?, step_of(properties))),
    }
}

fn take_content(delivery: &mut Delivery) -> Content {
    let content_type = delivery.properties.content_type().as_ref().map_or("", ShortString::as_str);
    let content_type = if content_type.is_empty() { UNNAMED } else { content_type }.to_owned();
    Content { content_type, body: std::mem::take(&mut delivery.data).into() }
}
