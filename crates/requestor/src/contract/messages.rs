//! The messages of the protocol, each with an example that the code has made.

use super::samples;
use lapin::types::AMQPValue;
use serde_json::{Map, Value, json};
use shared::message::{
    self, ANNOUNCE, Announcement, CANCEL, ERROR, JSON, Message, PROGRESS, PROGRESS_MESSAGE_BYTES_MAX, REPLY, REQUEST,
    Unreadable,
};
use shared::problem::{self, Problem};

/// Names of the messages that carry the requests, or results, of the kinds that come with the product.
pub(super) fn kinds_with(what: &str) -> Vec<String> {
    super::schemas::payloads().into_iter().map(|(name, _)| name).filter(|name| name.ends_with(what)).collect()
}

/// All messages, by name.
pub(super) fn all() -> Map<String, Value> {
    let (request, reply) = (request(), reply());
    let mut messages = Map::new();
    for (name, _) in super::schemas::payloads() {
        let mut message = if name.ends_with("request") { request.clone() } else { reply.clone() };
        let (kind, what) = name.rsplit_once('.').unwrap_or_default();
        message["title"] = json!(format!("A {what} of {kind}"));
        message["payload"] = json!({ "$ref": format!("#/components/schemas/{name}") });
        if let Some(message) = message.as_object_mut() {
            message.remove("examples");
        }
        messages.insert(name, message);
    }
    let others = [("request", request), ("reply", reply), ("error", error()), ("progress", progress())];
    messages.extend(
        others
            .into_iter()
            .chain([("cancel", cancel()), ("announcement", announcement())])
            .map(|(name, message)| (name.to_owned(), message)),
    );
    messages
}

fn request() -> Value {
    let about = "A request. `attempt` and `step` tell which; the same `message_id` may come again at any time.";
    let headers = json!({
        "attempt": count(), "step": count(), "deadline": time(), "traceparent": { "type": "string" },
        "version": { "type": "integer", "const": message::VERSION, "description": "Absent is the same." },
    });
    let properties = json!({
        "message_id": { "type": "string", "description": "The operation's id; from step 2 on with .{step} appended." },
        "reply_to": { "type": "string", "description": "arr.reply.{group}" },
        "expiration": { "type": "string", "description": "What is left of the deadline, in milliseconds." },
        "priority": { "type": "integer", "minimum": 0, "maximum": 9 },
    });
    described(
        REQUEST,
        JSON,
        about,
        (headers, properties),
        json!({ "description": "What the kind says." }),
        samples::request(),
    )
}

fn reply() -> Value {
    let about = "The result. A message without `type` is a plain RPC server's, and counts as this.";
    described(
        REPLY,
        JSON,
        about,
        (reply_headers(), json!({})),
        json!({ "description": "What the kind says." }),
        samples::reply(),
    )
}

fn error() -> Value {
    let about = "Why there is no result. `retryable` says that another attempt may succeed.";
    let payload = schemars::schema_for!(Problem).to_value();
    described(ERROR, problem::CONTENT_TYPE, about, (reply_headers(), json!({})), payload, samples::error())
}

fn reply_headers() -> Value {
    json!({
        "attempt": count(), "step": count(),
        "retryable": { "type": "boolean", "description": "Absent is false." },
        "retry-after": milliseconds("Another attempt is of no use before."),
    })
}

fn progress() -> Value {
    let about = "How far a request is. What is not newer than the last is ignored.";
    let headers = json!({
        "attempt": count(), "step": count(),
        "sequence": { "type": "integer", "description": "Grows from report to report; microseconds since 1970 serve." },
        "percent": { "type": "number", "minimum": 0, "maximum": 100 },
        "lease": milliseconds("The request was acknowledged early, and its provider may be silent for so long."),
    });
    let text = json!({ "type": ["string", "null"], "maxLength": PROGRESS_MESSAGE_BYTES_MAX });
    let payload = json!({ "type": "object", "properties": { "message": text } });
    described(PROGRESS, JSON, about, (headers, json!({})), payload, samples::progress())
}

fn cancel() -> Value {
    let about = "A wish that a request be not carried out.";
    let headers = json!({ "attempt": count(), "step": count(), "deadline": time() });
    let properties = json!({
        "message_id": { "type": "string", "description": "The request's, with .cancel appended." },
        "reply_to": { "type": "string", "description": "arr.reply.{group}" },
    });
    described(CANCEL, JSON, about, (headers, properties), json!({ "type": "object" }), samples::cancel())
}

fn announcement() -> Value {
    let about = "That an instance of a provider serves a kind. Sent at each connection and then regularly.";
    let properties =
        json!({ "expiration": { "type": "string", "description": "For how long it holds, in milliseconds." } });
    let payload = super::schemas::inlined(schemars::schema_for!(Announcement).to_value());
    let mut message = described(ANNOUNCE, JSON, about, (json!({}), properties), payload, samples::announcement());
    if let Some(message) = message.as_object_mut() {
        message.remove("correlationId");
    }
    if let Some(properties) = message["x-properties"]["properties"].as_object_mut() {
        properties.remove("correlation_id");
    }
    message
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 1, "description": "Absent is 1." })
}

fn time() -> Value {
    json!({ "type": "string", "format": "date-time", "description": "When the requestor gives up, by its clock." })
}

fn milliseconds(about: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": format!("{about} In milliseconds.") })
}

fn described(
    message_type: &str,
    content_type: &str,
    about: &str,
    (headers, own_properties): (Value, Value),
    payload: Value,
    sample: Result<Message, Unreadable>,
) -> Value {
    let mut properties = json!({
        "type": { "const": message_type },
        "correlation_id": { "type": "string", "format": "uuid", "description": "The operation's id." },
        "message_id": { "type": "string" },
        "content_type": { "type": "string" },
        "delivery_mode": { "const": 2 },
        "timestamp": { "type": "integer" },
    });
    for (name, property) in own_properties.as_object().into_iter().flatten() {
        properties[name] = property.clone();
    }
    let mut described = json!({
        "title": message_type,
        "summary": about,
        "contentType": content_type,
        "correlationId": { "location": "$message.header#/correlation_id", "description": "The property `correlation_id`." },
        "headers": { "type": "object", "properties": headers },
        "payload": payload,
        "bindings": { "amqp": { "messageType": message_type, "bindingVersion": "0.3.0" } },
        "x-properties": { "type": "object", "properties": properties },
    });
    if let Ok(sample) = sample {
        described["examples"] = json!([example(&sample)]);
    }
    described
}

/// A message as it is published.
fn example(message: &Message) -> Value {
    let headers = message.properties.headers().iter().flat_map(|headers| headers.inner());
    let headers: Map<_, _> = headers.map(|(name, value)| (name.to_string(), plain(value))).collect();
    let payload: Value = serde_json::from_slice(&message.body).unwrap_or_default();
    json!({ "headers": headers, "payload": payload })
}

fn plain(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::LongString(text) => json!(text.to_string()),
        other => json!(format!("{other:?}")),
    }
}
