//! Messages on their way out.

use super::{
    CANCEL, Cancel, ERROR, JSON, Message, OperationId, Outcome, PROGRESS, Progress, REPLY, REQUEST, Reply, Request,
    ReturnAddress, Unreadable, request_message_id,
};
use crate::{problem, topology};
use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// AMQP strings such as correlation ids and routing keys are at most this long (AMQP 0-9-1, short string).
const SHORT_STRING_BYTES_MAX: usize = 255;

/// Bytes of headers in a message of ours. Properties and headers must fit one frame (128 KiB), or the broker closes the
/// connection with everything that is on it; ours have less than 300.
const HEADER_BYTES_MAX: usize = 8 * 1024;

impl Request {
    /// The message that asks for this request. `now` decides what is left of the deadline.
    ///
    /// # Errors
    /// [`Unreadable`] when a name is longer than an AMQP short string or headers than 8 KiB.
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

    /// The message that reports `progress` on this request, or none if a foreign client asked.
    ///
    /// # Errors
    /// [`Unreadable`] when a name is longer than an AMQP short string or headers than 8 KiB.
    pub fn progress_message(&self, progress: &Progress) -> Result<Option<Message>, Unreadable> {
        let (Some(ReturnAddress::Group(group)), Some(operation)) = (&self.reply_to, self.operation) else {
            return Ok(None);
        };
        let mut headers = FieldTable::default();
        headers.insert("attempt".into(), AMQPValue::LongUInt(progress.attempt));
        headers.insert("step".into(), AMQPValue::LongUInt(progress.step));
        headers.insert("sequence".into(), AMQPValue::LongLongInt(progress.sequence));
        if let Some(percent) = progress.percent {
            headers.insert("percent".into(), AMQPValue::Double(percent));
        }
        if let Some(lease) = progress.lease {
            headers.insert("lease".into(), milliseconds(lease));
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
}

impl Cancel {
    /// The message that asks for it. The same each time, so it may be sent as often as need be.
    ///
    /// # Errors
    /// [`Unreadable`] when a name is longer than an AMQP short string or headers than 8 KiB.
    pub fn to_message(&self) -> Result<Message, Unreadable> {
        let mut headers = FieldTable::default();
        headers.insert("attempt".into(), AMQPValue::LongUInt(self.attempt));
        headers.insert("step".into(), AMQPValue::LongUInt(self.step));
        headers.insert("deadline".into(), AMQPValue::LongString(self.deadline.to_string().into()));
        let properties = BasicProperties::default()
            .with_type(CANCEL.into())
            .with_correlation_id(short(self.operation.to_string())?)
            .with_reply_to(short(self.reply_to.exchange_and_key().1)?)
            .with_content_type(JSON.into())
            .with_headers(headers);
        message(topology::CONTROL, &self.kind, short(format!("{}.cancel", self.identity()))?, properties, "{}")
    }
}

fn milliseconds(duration: std::time::Duration) -> AMQPValue {
    AMQPValue::LongLongInt(duration.as_millis().try_into().unwrap_or(i64::MAX))
}

/// The message that carries `reply` to `address`.
///
/// # Errors
/// [`Unreadable`] when a name is longer than an AMQP short string or headers than 8 KiB.
pub fn answer(address: &ReturnAddress, correlation_id: &str, reply: &Reply) -> Result<Message, Unreadable> {
    let mut headers = FieldTable::default();
    headers.insert("attempt".into(), AMQPValue::LongUInt(reply.attempt));
    headers.insert("step".into(), AMQPValue::LongUInt(reply.step));
    headers.insert("retryable".into(), AMQPValue::Boolean(reply.retryable));
    if let Some(pause) = reply.retry_after {
        headers.insert("retry-after".into(), milliseconds(pause));
    }
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
    let mut message_id = format!("{}.{}.{correlation_id}", reply.step, reply.attempt);
    message_id.truncate(message_id.floor_char_boundary(SHORT_STRING_BYTES_MAX));
    message(exchange, &key, short(message_id)?, properties, body)
}

pub(super) fn short(text: impl Into<String>) -> Result<ShortString, Unreadable> {
    let text = text.into();
    ShortString::try_new(text.as_str())
        .map_err(|_| Unreadable(format!("{} bytes are too long for an AMQP name: {:.40}…", text.len(), text)))
}

pub(super) fn message(
    exchange: &'static str,
    routing_key: &str,
    message_id: ShortString,
    properties: BasicProperties,
    body: impl Into<Bytes>,
) -> Result<Message, Unreadable> {
    if super::incoming::header_bytes(&properties)? > HEADER_BYTES_MAX {
        return Err(Unreadable(format!("the headers are more than {HEADER_BYTES_MAX} bytes")));
    }
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
