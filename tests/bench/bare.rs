//! What a careful programmer writes by hand with lapin and nothing else: the baselines.

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use hdrhistogram::Histogram;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, PublisherConfirm};
use requestor::cli::bench::cost::{Meter, named};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Deliveries that are acknowledged together at most.
const ACKS: u32 = 64;
/// Unacknowledged deliveries: never the limit here.
const PREFETCH: u16 = 4096;

/// Which baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Direct reply-to, transient, nothing acknowledged.
    Rpc,
    /// Quorum queues both ways, persistent, every publish confirmed, every delivery acknowledged by hand.
    Durable,
}

/// How much to ask.
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    #[arg(long)]
    in_flight: u32,
    #[arg(long)]
    seconds: f64,
    #[arg(long)]
    warm_up: f64,
    #[arg(long)]
    payload: usize,
    #[arg(long = "pid", value_parser = named)]
    pids: Vec<(String, u32)>,
}

impl Way {
    fn request_queue(self) -> &'static str {
        match self {
            Self::Rpc => "bare.rpc",
            Self::Durable => "bare.durable.request",
        }
    }

    fn reply_queue(self) -> &'static str {
        match self {
            Self::Rpc => "amq.rabbitmq.reply-to",
            Self::Durable => "bare.durable.reply",
        }
    }

    async fn channel(self, connection: &Connection) -> anyhow::Result<Channel> {
        let channel = connection.create_channel().await?;
        if self == Self::Durable {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
        }
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        Ok(channel)
    }

    async fn declare(self, channel: &Channel) -> anyhow::Result<()> {
        let mut arguments = FieldTable::default();
        let options = match self {
            Self::Rpc => QueueDeclareOptions { auto_delete: true, ..Default::default() },
            Self::Durable => {
                arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
                QueueDeclareOptions { durable: true, ..Default::default() }
            }
        };
        channel.queue_declare(self.request_queue().into(), options, arguments.clone()).await?;
        if self == Self::Durable {
            channel.queue_declare(self.reply_queue().into(), options, arguments).await?;
        }
        Ok(())
    }

    async fn consume(self, channel: &Channel, queue: &str) -> anyhow::Result<Consumer> {
        let options = BasicConsumeOptions { no_ack: self == Self::Rpc, ..Default::default() };
        Ok(channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?)
    }

    fn properties(self) -> BasicProperties {
        let properties = BasicProperties::default().with_content_type("application/json".into());
        match self {
            Self::Rpc => properties,
            Self::Durable => properties.with_delivery_mode(2),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a baseline has nothing of ours")]
async fn publish(
    channel: &Channel,
    key: ShortString,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<PublisherConfirm> {
    channel.basic_publish("".into(), key, BasicPublishOptions::default(), body, properties).await
}

/// Answers each request with what it was sent.
pub(crate) async fn serve(way: Way, url: &str) -> anyhow::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = way.channel(&connection).await?;
    way.declare(&channel).await?;
    let mut requests = way.consume(&channel, way.request_queue()).await?;
    let (confirms, confirmed) = mpsc::unbounded_channel();
    #[expect(clippy::disallowed_methods, reason = "it ends with the process")]
    tokio::spawn(settle(confirmed));
    while let Some(request) = requests.next().await {
        let request = request?;
        let reply_to = request.properties.reply_to().clone().context("no reply_to")?;
        let id = request.properties.correlation_id().clone().context("no correlation_id")?;
        let properties = way.properties().with_correlation_id(id);
        let confirm = publish(&channel, reply_to, &request.data, properties).await?;
        if way == Way::Durable {
            confirms.send((confirm, request))?;
        }
    }
    anyhow::bail!("the consumer has ended")
}

/// Acknowledges requests whose replies are confirmed, those that are together by one frame.
async fn settle(mut confirmed: mpsc::UnboundedReceiver<(PublisherConfirm, Delivery)>) -> anyhow::Result<()> {
    while let Some((confirm, request)) = confirmed.recv().await {
        confirm.await?;
        let (mut last, mut count) = (request, 1);
        while count < ACKS
            && let Ok((confirm, request)) = confirmed.try_recv()
        {
            confirm.await?;
            (last, count) = (request, count + 1);
        }
        last.acker.ack(BasicAckOptions { multiple: true }).await?;
    }
    Ok(())
}

/// Asks, and asks again for each reply; prints what was measured.
pub(crate) async fn ask(way: Way, url: &str, load: &Load) -> anyhow::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = way.channel(&connection).await?;
    way.declare(&channel).await?;
    let mut replies = way.consume(&channel, way.reply_queue()).await?;
    let body = format!("{{\"payload\":\"{}\"}}", "x".repeat(load.payload.saturating_sub(14)));
    let (confirms, confirmed) = mpsc::unbounded_channel::<PublisherConfirm>();
    #[expect(clippy::disallowed_methods, reason = "it ends with the process")]
    tokio::spawn(await_in_turn(confirmed));
    // Replies of an earlier run may still come.
    let run = std::process::id();
    let request = async |slot: u32| {
        let properties = way.properties().with_reply_to(way.reply_queue().into());
        let properties = properties.with_correlation_id(format!("{run}.{slot}").into());
        let confirm = publish(&channel, way.request_queue().into(), body.as_bytes(), properties).await?;
        if way == Way::Durable {
            confirms.send(confirm)?;
        }
        anyhow::Ok(())
    };
    let (warm_up, seconds) = (Duration::from_secs_f64(load.warm_up), Duration::from_secs_f64(load.seconds));
    let from = Instant::now() + warm_up;
    let until = from + seconds;
    let meter = Meter::new(&load.pids);
    let (mut before, mut latencies) = (None, Histogram::<u64>::new_with_bounds(1_000, 120_000_000_000, 2)?);
    let mut asked = Vec::new();
    for slot in 0..load.in_flight {
        asked.push(Instant::now());
        request(slot).await?;
    }
    let mut unacknowledged = 0;
    loop {
        let reply = replies.next().await.context("the consumer has ended")??;
        let now = Instant::now();
        if now >= until {
            break;
        }
        let id = reply.properties.correlation_id().as_ref().context("no correlation_id")?.as_str();
        let (of_run, slot) = id.split_once('.').context("a correlation_id of another")?;
        let (of_run, slot): (u32, u32) = (of_run.parse()?, slot.parse()?);
        if of_run != run {
            reply.acker.ack(BasicAckOptions::default()).await?;
            continue;
        }
        let place = asked.get_mut(slot as usize).context("a reply to another")?;
        if now >= from {
            before.get_or_insert_with(|| meter.read());
            latencies.saturating_record((now - *place).as_nanos().try_into()?);
        }
        *place = now;
        request(slot).await?;
        unacknowledged += 1;
        if way == Way::Durable && (unacknowledged >= ACKS.min(load.in_flight)) {
            reply.acker.ack(BasicAckOptions { multiple: true }).await?;
            unacknowledged = 0;
        }
    }
    let cost = meter.since(&before.context("no reply in time")?);
    report(load, &latencies, &cost.cpu);
    Ok(())
}

async fn await_in_turn(mut confirmed: mpsc::UnboundedReceiver<PublisherConfirm>) -> anyhow::Result<()> {
    while let Some(confirm) = confirmed.recv().await {
        confirm.await?;
    }
    Ok(())
}

fn report(load: &Load, latencies: &Histogram<u64>, cpu: &std::collections::BTreeMap<String, Duration>) {
    let done = latencies.len() as f64;
    let microseconds = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let cpu = cpu.iter().map(|(name, used)| (name.clone(), json!(used.as_secs_f64() * 10_000.0 / done)));
    println!(
        "{}",
        json!({
            "perSecond": done / load.seconds,
            "latencyMicroseconds": {"p50": microseconds(0.5), "p99": microseconds(0.99)},
            "cpuSecondsPer10000": cpu.collect::<serde_json::Map<_, _>>(),
            "failed": 0,
        })
    );
}
