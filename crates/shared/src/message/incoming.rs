//! Messages on their way in: what another program wrote is not believed before it is read.

use super::{
    CANCEL, Cancel, Content, ERROR, OperationId, Outcome, PROGRESS, PROGRESS_MESSAGE_BYTES_MAX, Progress, REPLY,
    REQUEST, Reply, Request, ReturnAddress, Unreadable,
};
use crate::problem::Problem;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};
use serde::Deserialize;
use std::time::Duration;

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
            traceparent: header_text(properties, "traceparent").map(str::to_owned),
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
        let operation = operation_of(properties)?;
        let (step, attempt) = (step_of(properties), attempt_of(properties));
        let retry_after = milliseconds(properties, "retry-after");
        let retryable = matches!(header(properties, "retryable"), Some(AMQPValue::Boolean(true)));
        let outcome = match properties.kind().as_ref().map(ShortString::as_str) {
            Some(REPLY) | None => Outcome::Succeeded(take_content(delivery)),
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

fn take_content(delivery: &mut Delivery) -> Content {
    let content_type = delivery.properties.content_type().as_ref().map_or("", ShortString::as_str);
    let content_type = if content_type.is_empty() { "application/octet-stream" } else { content_type }.to_owned();
    Content { content_type, body: std::mem::take(&mut delivery.data).into() }
}
