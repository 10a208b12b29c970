use super::{Gateway, PREFETCH};
use futures_util::StreamExt;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use shared::amqp::{self, PublishError, Settle};
use shared::message::{self, Outcome, Reply, ReturnAddress, attempt_of, header_number, header_text, step_of};
use shared::problem::Problem;
use shared::topology;

/// Entries of a delivery history that are told at most; there is one for each queue and reason.
const HISTORY_MAX: usize = 16;

impl Gateway {
    /// Answers dead letters to their return address, which may be another group's: the broker gave them up, so
    /// their provider will not answer.
    pub(super) async fn answer_dead_letters(&self, channel: &Channel, kind: &str) -> anyhow::Result<()> {
        let queue = topology::dead_queue(kind);
        let mut deliveries = amqp::consume(channel, &queue, PREFETCH).await?;
        while let Some(delivery) = deliveries.next().await {
            let delivery = delivery?;
            metrics::counter!("arr_dead_letters_total", "kind" => kind.to_owned()).increment(1);
            if let Some(message) = dead_letter_answer(&delivery, kind) {
                match self.0.publisher.publish(message).await {
                    Ok(()) | Err(PublishError::Unroutable | PublishError::TooLarge(_) | PublishError::Invalid) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            amqp::settle(&delivery.acker, Settle::Ack).await?;
        }
        anyhow::bail!("the consumer of {queue} was cancelled")
    }
}

fn dead_letter_answer(delivery: &Delivery, kind: &str) -> Option<message::Message> {
    let properties = &delivery.properties;
    let address = message::return_address(properties).filter(|address| matches!(address, ReturnAddress::Group(_)))?;
    let correlation_id = properties.correlation_id().as_ref()?;
    let reason = header_text(properties, "x-first-death-reason").unwrap_or("unknown");
    let problem = match reason {
        "expired" => Problem::deadline_exceeded(),
        _ => Problem::new(
            "poison",
            500,
            "No provider survives this request",
            format!("the broker gave the request up ({reason}); each provider of {kind} that took it ended before it answered"),
        )
        .with("deliveryCount", header_number(properties, "x-delivery-count"))
        .with("deliveries", properties.headers().as_ref().map(history).unwrap_or_default()),
    };
    let reply = Reply::new(step_of(properties), attempt_of(properties), Outcome::Failed(problem));
    message::answer(&address, correlation_id.as_str(), &reply).ok()
}

/// Which queues the message died in, and why, how often and when: RabbitMQ's header `x-death`, newest first.
fn history(headers: &FieldTable) -> Vec<Value> {
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { return Vec::new() };
    let tables = deaths.as_slice().iter().filter_map(|death| match death {
        AMQPValue::FieldTable(death) => Some(death.inner()),
        _ => None,
    });
    let text = |value: Option<&AMQPValue>| match value {
        Some(AMQPValue::LongString(text)) => Some(text.to_string()),
        _ => None,
    };
    let entry = |death: &std::collections::BTreeMap<_, AMQPValue>| {
        let count = match death.get("count") {
            Some(AMQPValue::LongLongInt(count)) => Some(*count),
            _ => None,
        };
        let time = match death.get("time") {
            Some(AMQPValue::Timestamp(at)) => {
                i64::try_from(*at).ok().and_then(|at| jiff::Timestamp::from_second(at).ok())
            }
            _ => None,
        };
        json!({ "queue": text(death.get("queue")), "reason": text(death.get("reason")), "count": count, "time": time })
    };
    tables.take(HISTORY_MAX).map(entry).collect()
}
