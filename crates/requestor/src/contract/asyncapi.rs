//! The protocol between requestor and provider as an AsyncAPI document.

use super::messages::{self, kinds_with};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};
use shared::topology;

const ABOUT: &str = "What a requestor and its providers say to each other over RabbitMQ, from the requestor's side: a \
    provider receives what is sent here, and sends what is received. Every message is persistent and published with \
    confirms. `x-properties` has a message's AMQP properties, `headers` its header table; `docs/protocol.md` says in \
    which order things happen.";

const QUEUE_KIND: &str =
    "What is asked for, such as `order.place`: 1 to 63 of a-z, 0-9, hyphens, dots and underscores.";
const QUEUE_GROUP: &str = "The requestors that share a store, or the providers that share a ledger: 1 to 63 of a-z, 0-9 \
    and hyphens.";

/// The document.
pub(super) fn document() -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Requestor and provider",
            "version": shared::message::VERSION.to_string(),
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": shared::message::JSON,
        "servers": { "broker": {
            "host": "127.0.0.1:5672",
            "protocol": "amqp",
            "protocolVersion": "0-9-1",
            "description": "RabbitMQ 3.10 to 4.3.",
        } },
        "channels": channels(),
        "operations": operations(),
        "components": { "messages": messages::all(), "schemas": super::schemas::inlined_payloads() },
    })
}

fn channels() -> Value {
    let mut requests = vec!["request".to_owned()];
    requests.extend(kinds_with("request"));
    let mut replies = vec!["reply".to_owned(), "error".to_owned()];
    replies.extend(kinds_with("result"));
    let cancel = ["cancel".to_owned()];
    let (kind, group) = ("{kind}", "{group}");
    let instance = topology::instance_queue(group, "{instance}");
    let kept = topology::kept_arguments();
    let mut announcements = passing_queue(
        &topology::announcement_queue(group, "{instance}"),
        (topology::ANNOUNCE, ""),
        &topology::announcement_arguments(),
        &["announcement".to_owned()],
        "What providers serve, for one connection of a requestor.",
    );
    announcements["x-exchange"]["type"] = json!("fanout");
    json!({
        "requests": queue(
            &topology::request_queue(kind), (topology::REQUEST, kind), &topology::request_arguments(kind), &requests,
            "Requests of a kind. Declared by its provider; competing consumers."),
        "replies": queue(
            &topology::reply_queue(group), (topology::REPLY, &topology::reply_queue(group)), &kept, &replies,
            "Replies for a requestor group, shared by its instances."),
        "progress": queue(
            &topology::progress_queue(group), (topology::PROGRESS, &topology::progress_queue(group)),
            &topology::progress_arguments(), &["progress".to_owned()],
            "Progress reports for a requestor group. They may be lost, repeated and reordered."),
        "cancels": queue(
            &topology::control_queue(group), (topology::CONTROL, kind), &kept, &cancel,
            "Wishes to cancel, for a provider group. Bound once for each kind that it serves."),
        "cancelsOfInstance": passing_queue(
            &instance, (topology::CONTROL, kind), &FieldTable::default(), &cancel,
            "The same for one connection of a provider, so that it stops early."),
        "announcements": announcements,
        "deadLetters": queue(
            &topology::dead_queue(kind), (topology::DEAD, kind), &kept, &requests,
            "Requests that no provider survived. Consumed by requestors."),
    })
}

/// A durable queue, bound to an exchange by a routing key.
fn queue(name: &str, bound: (&str, &str), arguments: &FieldTable, messages: &[String], about: &str) -> Value {
    let mut channel = passing_queue(name, bound, arguments, messages, about);
    let properties = json!({ "name": name, "durable": true, "exclusive": false, "autoDelete": false, "vhost": "/" });
    channel["bindings"]["amqp"]["queue"] = properties;
    channel
}

/// A queue that goes with its connection.
fn passing_queue(
    name: &str,
    (exchange, key): (&str, &str),
    arguments: &FieldTable,
    messages: &[String],
    about: &str,
) -> Value {
    let described = [("kind", QUEUE_KIND), ("group", QUEUE_GROUP), ("instance", "A new UUID for each connection.")];
    let parameters = described.iter().filter(|(parameter, _)| name.contains(&format!("{{{parameter}}}")));
    let parameters: Map<_, _> =
        parameters.map(|(name, about)| ((*name).to_owned(), json!({ "description": about }))).collect();
    let queue = json!({ "name": name, "durable": false, "exclusive": true, "autoDelete": true, "vhost": "/" });
    json!({
        "address": name,
        "description": about,
        "parameters": parameters,
        "messages": messages.iter().map(|name| (name.clone(), message(name))).collect::<Map<_, _>>(),
        "bindings": { "amqp": { "is": "queue", "queue": queue, "bindingVersion": "0.3.0" } },
        "x-arguments": arguments.inner().iter().map(|(name, value)| (name.to_string(), plain(value))).collect::<Map<_, _>>(),
        "x-exchange": { "name": exchange, "type": "direct", "durable": true, "routingKey": key },
    })
}

fn operations() -> Value {
    let reply = |messages: &[String]| {
        json!({
            "address": { "location": "$message.header#/reply_to", "description": "The property `reply_to`." },
            "channel": reference("channels", "replies"),
            "messages": of_channel("replies", messages),
        })
    };
    let mut replies = vec!["reply".to_owned(), "error".to_owned()];
    replies.extend(kinds_with("result"));
    let error = ["error".to_owned()];
    json!({
        "sendRequest": {
            "action": "send",
            "channel": reference("channels", "requests"),
            "summary": "Ask a provider. The same message may be sent again at any time, until its reply is there.",
            "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "ack": true, "bindingVersion": "0.3.0" } },
            "reply": reply(&replies),
        },
        "sendCancel": {
            "action": "send",
            "channel": reference("channels", "cancels"),
            "summary": "Ask a provider group not to carry a request out. `canceled` proves that its effect did not happen.",
            "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "ack": true, "bindingVersion": "0.3.0" } },
            "reply": reply(&replies),
        },
        "receiveProgress": {
            "action": "receive",
            "channel": reference("channels", "progress"),
            "summary": "Learn how far a request is, and that its provider lives.",
        },
        "receiveAnnouncement": {
            "action": "receive",
            "channel": reference("channels", "announcements"),
            "summary": "Learn who serves which kind, and what its payloads look like.",
        },
        "answerDeadLetter": {
            "action": "receive",
            "channel": reference("channels", "deadLetters"),
            "summary": "Answer for a provider that did not survive the request, with the problem `poison`.",
            "reply": reply(&error),
        },
    })
}

fn of_channel(channel: &str, messages: &[String]) -> Vec<Value> {
    messages.iter().map(|name| json!({ "$ref": format!("#/channels/{channel}/messages/{name}") })).collect()
}

fn message(name: &str) -> Value {
    json!({ "$ref": format!("#/components/messages/{name}") })
}

fn reference(section: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/{section}/{name}") })
}

fn plain(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongString(text) => json!(text.to_string()),
        other => json!(format!("{other:?}")),
    }
}
