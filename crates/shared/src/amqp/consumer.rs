use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Consumer};

/// How a delivery ends (RabbitMQ: positive and negative acknowledgement).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Done with; the broker forgets it.
    Ack,
    /// Done with this one and all before it on the channel.
    AckAll,
    /// An attempt that failed: delivered again, and counted towards the delivery limit.
    Reject,
    /// Not this consumer's fault, such as a shutdown: delivered again.
    Requeue,
}

/// Consumes `queue` on `channel` with at most `prefetch` deliveries unacknowledged.
///
/// The stream ends or yields an error when the session must be made anew.
///
/// # Errors
/// What the broker says.
pub async fn consume(channel: &Channel, queue: &str, prefetch: u16) -> anyhow::Result<Consumer> {
    super::call("basic.qos", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    super::call("basic.consume", channel.basic_consume(queue.into(), "".into(), options, arguments)).await
}

/// Settles a delivery.
///
/// # Errors
/// When the broker cannot have taken it: the session is over and the message will come again.
pub async fn settle(acker: &Acker, how: Settle) -> anyhow::Result<()> {
    let settled = super::call("settling a delivery", async {
        match how {
            Settle::Ack => acker.ack(BasicAckOptions { multiple: false }).await,
            Settle::AckAll => acker.ack(BasicAckOptions { multiple: true }).await,
            Settle::Reject => acker.reject(BasicRejectOptions { requeue: true }).await,
            Settle::Requeue => acker.nack(BasicNackOptions { multiple: false, requeue: true }).await,
        }
    });
    anyhow::ensure!(settled.await?, "the delivery belongs to a session that is over");
    Ok(())
}
