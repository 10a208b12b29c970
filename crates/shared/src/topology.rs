//! Names and arguments of everything that is declared at the broker.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

/// Requests: direct exchange, routing key = kind. No alternate exchange, for it would hide that nobody listens.
pub const REQUEST: &str = "arr.request";
/// Replies: direct exchange, routing key = the reply queue's name.
pub const REPLY: &str = "arr.reply";
/// Progress: direct exchange, routing key = the progress queue's name.
pub const PROGRESS: &str = "arr.progress";
/// Wishes to cancel: direct exchange, routing key = kind.
pub const CONTROL: &str = "arr.control";
/// Dead letters: direct exchange, routing key = kind.
pub const DEAD: &str = "arr.dead";

/// Calls: direct exchange, routing key = kind. A call may be lost, and is not worth a quorum queue.
pub const CALL: &str = "arr.call";
/// Where the reply to a call goes: straight to the connection that asked, through the default exchange. What begins so
/// names no queue, so a call cannot direct its reply into one.
pub const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// What providers serve: fanout exchange, to all instances of all requestor groups.
pub const ANNOUNCE: &str = "arr.announce";

/// What has changed in a store that several requestors share: direct exchange, routing key = the group.
pub const CHANGED: &str = "arr.changed";

/// Deliveries of a request that kill their provider before it becomes a dead letter (N+1 in all).
const DELIVERY_LIMIT: i32 = 5;
/// Replies and dead letters are never given up; from RabbitMQ 4.0 on the default of 20 would drop them.
const DELIVERY_LIMIT_NONE: i32 = 1_000_000;
/// Requests that wait in one queue at most; beyond that the broker refuses and the requestor keeps them.
const REQUESTS_MAX: i32 = 1_000_000;
/// Progress reports that wait at most; beyond that the oldest are dropped.
const PROGRESS_MAX: i32 = 10_000;
/// Calls of one kind that wait at most; beyond that the oldest are dropped, whose callers have waited longest.
const CALLS_MAX: i32 = 100_000;
/// How long calls are taken for a kind that nobody serves: a provider that is started again is not missed, and then
/// callers are told at once.
const CALL_QUEUE_EXPIRES_MS: i32 = 60_000;
/// Announcements that wait for one requestor at most; beyond that the oldest are dropped. Each comes again.
const ANNOUNCEMENTS_MAX: i32 = 10_000;

/// Hints of changes that wait for one requestor at most; beyond that the oldest are dropped. Each is told by the store.
const CHANGES_MAX: i32 = 1000;

/// The queue that holds requests of `kind`.
#[must_use]
pub fn request_queue(kind: &str) -> String {
    format!("arr.request.{kind}")
}

/// The queue that holds replies for a requestor group; also its return address.
#[must_use]
pub fn reply_queue(group: &str) -> String {
    format!("arr.reply.{group}")
}

/// The queue that holds progress reports for a requestor group.
#[must_use]
pub fn progress_queue(group: &str) -> String {
    format!("arr.progress.{group}")
}

/// The queue that holds wishes to cancel for a provider group, until one of its instances has recorded them.
#[must_use]
pub fn control_queue(group: &str) -> String {
    format!("arr.control.{group}")
}

/// The queue of one `instance` of a provider group, which tells it to stop early. It goes with its connection.
#[must_use]
pub fn instance_queue(group: &str, instance: &str) -> String {
    format!("arr.control.{group}.{instance}")
}

/// The queue of one `instance` of a requestor group, to hear what providers serve. It goes with its connection: what was
/// announced while nobody listened is announced again.
#[must_use]
pub fn announcement_queue(group: &str, instance: &str) -> String {
    format!("arr.announce.{group}.{instance}")
}

/// The queue of one `instance` of a requestor group, to hear what others have changed. It goes with its connection.
#[must_use]
pub fn changes_queue(group: &str, instance: &str) -> String {
    format!("arr.changed.{group}.{instance}")
}

/// The queue that holds dead letters of `kind`.
#[must_use]
pub fn dead_queue(kind: &str) -> String {
    format!("arr.dead.{kind}")
}

/// The queue that holds calls of `kind`.
#[must_use]
pub fn call_queue(kind: &str) -> String {
    format!("arr.call.{kind}")
}

/// Whether `name` may name a group: lower-case letters, digits and hyphens, 63 at most.
#[must_use]
pub fn is_group(name: &str) -> bool {
    is_name(name, b"-")
}

/// Whether `name` may name a kind: as a group, with dots and underscores, such as `order.place`.
#[must_use]
pub fn is_kind(name: &str) -> bool {
    is_name(name, b"-._")
}

fn is_name(name: &str, punctuation: &[u8]) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    matches!(name.len(), 1..=63)
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || punctuation.contains(&byte))
}

/// Declares what a provider of `kinds` in `group` needs.
///
/// # Errors
/// What the broker says, such as 406 when a queue exists with other arguments.
pub async fn declare_for_provider(
    channel: &Channel,
    group: &str,
    instance: &str,
    kinds: &[String],
) -> lapin::Result<()> {
    declare_exchanges(channel).await?;
    let (control, own) = (control_queue(group), ShortString::from(instance_queue(group, instance)));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(control.as_str().into(), durable, kept_arguments()).await?;
    let passing = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(own.clone(), passing, FieldTable::default()).await?;
    for kind in kinds {
        for queue in [ShortString::from(control.as_str()), own.clone()] {
            let options = QueueBindOptions::default();
            channel.queue_bind(queue, CONTROL.into(), kind.as_str().into(), options, FieldTable::default()).await?;
        }
    }
    for kind in kinds {
        declare_dead_queue(channel, kind).await?;
        declare_bound(channel, &request_queue(kind), REQUEST, kind, request_arguments(kind)).await?;
    }
    Ok(())
}

/// Declares what a requestor of `group` needs that asks for `kinds`.
///
/// # Errors
/// What the broker says, such as 406 when a queue exists with other arguments.
pub async fn declare_for_requestor(channel: &Channel, group: &str, kinds: &[String]) -> lapin::Result<()> {
    declare_exchanges(channel).await?;
    let reply = reply_queue(group);
    declare_bound(channel, &reply, REPLY, &reply, kept_arguments()).await?;
    let progress = progress_queue(group);
    declare_bound(channel, &progress, PROGRESS, &progress, progress_arguments()).await?;
    for kind in kinds {
        declare_dead_queue(channel, kind).await?;
    }
    Ok(())
}

/// Declares the queue in which an `instance` of a requestor group hears what providers serve, and returns its name.
///
/// # Errors
/// What the broker says.
pub async fn declare_for_announcements(channel: &Channel, group: &str, instance: &str) -> lapin::Result<String> {
    let queue = announcement_queue(group, instance);
    let passing = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(queue.as_str().into(), passing, announcement_arguments()).await?;
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.as_str().into(), ANNOUNCE.into(), "".into(), options, FieldTable::default()).await?;
    Ok(queue)
}

/// Declares the exchange through which requestors that share a store tell each other what has changed.
///
/// # Errors
/// What the broker says.
pub async fn declare_changed(channel: &Channel) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(CHANGED.into(), ExchangeKind::Direct, durable, FieldTable::default()).await
}

/// Declares the queue in which an `instance` of a requestor group hears what others have changed, and returns its name.
///
/// # Errors
/// What the broker says.
pub async fn declare_for_changes(channel: &Channel, group: &str, instance: &str) -> lapin::Result<String> {
    let queue = changes_queue(group, instance);
    let passing = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(CHANGES_MAX));
    channel.queue_declare(queue.as_str().into(), passing, arguments).await?;
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.as_str().into(), CHANGED.into(), group.into(), options, FieldTable::default()).await?;
    Ok(queue)
}

async fn declare_exchanges(channel: &Channel) -> lapin::Result<()> {
    let exchanges = [REQUEST, REPLY, PROGRESS, CONTROL, DEAD].map(|name| (name, ExchangeKind::Direct));
    for (name, kind) in exchanges.into_iter().chain([(ANNOUNCE, ExchangeKind::Fanout)]) {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await?;
    }
    Ok(())
}

/// Declares the queue that holds dead letters of `kind`.
///
/// # Errors
/// What the broker says, such as 406 when it exists with other arguments.
pub async fn declare_dead_queue(channel: &Channel, kind: &str) -> lapin::Result<()> {
    declare_bound(channel, &dead_queue(kind), DEAD, kind, kept_arguments()).await
}

async fn declare_bound(
    channel: &Channel,
    queue: &str,
    exchange: &'static str,
    key: &str,
    arguments: FieldTable,
) -> lapin::Result<()> {
    // Groups and kinds are at most 63 bytes, so that no name comes near the limit of 255.
    let queue = ShortString::from(queue);
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.clone(), options, arguments).await?;
    channel.queue_bind(queue, exchange.into(), key.into(), QueueBindOptions::default(), FieldTable::default()).await
}

/// The arguments of a queue of requests of `kind`.
#[must_use]
pub fn request_arguments(kind: &str) -> FieldTable {
    let mut arguments = quorum(DELIVERY_LIMIT);
    arguments.insert("x-dead-letter-exchange".into(), text(DEAD));
    arguments.insert("x-dead-letter-routing-key".into(), text(kind));
    // At-least-once dead-lettering works only together with reject-publish (RabbitMQ, "Quorum Queues").
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(REQUESTS_MAX));
    arguments
}

/// The arguments of a queue of calls: a classic one, which takes half of what a quorum queue costs.
#[must_use]
pub fn call_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("classic"));
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(CALLS_MAX));
    arguments.insert("x-expires".into(), AMQPValue::LongInt(CALL_QUEUE_EXPIRES_MS));
    arguments
}

/// The arguments of a queue of progress reports.
#[must_use]
pub fn progress_arguments() -> FieldTable {
    // Not for the reports' sake, which may be lost: a classic queue whose node is down cannot be declared.
    let mut arguments = kept_arguments();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(PROGRESS_MAX));
    arguments.insert("x-overflow".into(), text("drop-head"));
    arguments
}

/// The arguments of a queue of announcements.
#[must_use]
pub fn announcement_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(ANNOUNCEMENTS_MAX));
    arguments
}

/// The arguments of a queue that gives nothing up: replies, wishes to cancel, dead letters.
#[must_use]
pub fn kept_arguments() -> FieldTable {
    quorum(DELIVERY_LIMIT_NONE)
}

fn quorum(delivery_limit: i32) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(delivery_limit));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_reach_another_queue_are_refused() {
        for bad in ["", "-a", "A", "a b", "a#", "a*", "a/b", "a\0", "é", &"a".repeat(64)] {
            assert!(!is_group(bad) && !is_kind(bad), "{bad:?}");
        }
        assert!(is_group("team-1") && !is_group("team.1"));
        assert!(is_kind("order.place") && is_kind("echo"));
    }
}
