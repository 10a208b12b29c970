//! A plain RPC client that knows nothing of us (RabbitMQ's tutorial 6) is answered, if the provider may.

use futures_util::{FutureExt, StreamExt};
use harness::pair::Pair;
use harness::process::Process;
use harness::python::python;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use requestor::config::{KindConfig, PipelineConfig};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

/// A client with an exclusive queue of its own for replies.
struct Client {
    connection: lapin::Connection,
    channel: Channel,
    replies: Consumer,
    queue: ShortString,
}

impl Client {
    async fn connect(pair: &Pair) -> Self {
        let connection = pair.host.connect().await;
        let channel = connection.create_channel().await.unwrap();
        let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let declared = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.unwrap();
        let queue = declared.name().clone();
        let options = BasicConsumeOptions::default();
        let replies = channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await.unwrap();
        Self { connection, channel, replies, queue }
    }

    #[expect(clippy::disallowed_methods, reason = "a client that knows nothing of us")]
    async fn publish(&self, queue: &str, properties: BasicProperties, body: &[u8]) {
        self.channel
            .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, properties)
            .await
            .unwrap();
    }

    async fn reply(&mut self) -> Delivery {
        let next = tokio::time::timeout(harness::PATIENCE, self.replies.next()).await;
        let delivery = next.unwrap().unwrap().unwrap();
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        delivery
    }

    fn properties(&self, correlation_id: &str) -> BasicProperties {
        BasicProperties::default().with_reply_to(self.queue.clone()).with_correlation_id(correlation_id.into())
    }
}

async fn open_pair() -> Pair {
    let mut pair = Pair::prepare().await;
    pair.provider_config.replies.foreign = true;
    pair.start_requestor();
    pair.start_provider();
    // Answered only when the provider's queues are there.
    let id = pair.submit("echo", &json!(1)).await;
    pair.ended(&id).await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_tutorial_6_gets_its_reply() {
    let pair = open_pair().await;
    let mut client = Client::connect(&pair).await;
    client.publish("arr.request.echo", client.properties("my-call-1"), b"hi").await;
    let reply = client.reply().await;
    assert_eq!(reply.data, b"hi");
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "my-call-1");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_by_a_foreign_client_is_placed_once_however_often_it_asks() {
    let pair = open_pair().await;
    let mut client = Client::connect(&pair).await;
    let order =
        json!({"customer": "Ada", "items": [{"sku": "mouse", "quantity": 5, "unitPriceCents": 1999}]}).to_string();
    for _ in 0..3 {
        client.publish("arr.request.order.place", client.properties("order-1"), order.as_bytes()).await;
        let confirmation: Value = serde_json::from_slice(&client.reply().await.data).unwrap();
        assert_eq!(confirmation["items"][0]["stockLeft"], 4995);
    }
    let bad = client.properties("order-2");
    client.publish("arr.request.order.place", bad, b"{}").await;
    let reply = client.reply().await;
    assert_eq!(reply.properties.kind().as_ref().unwrap().as_str(), "arr.error");
    assert_eq!(serde_json::from_slice::<Value>(&reply.data).unwrap()["status"], 422);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_counted_answered_and_never_comes_back() {
    let pair = open_pair().await;
    let mut client = Client::connect(&pair).await;
    let ours = |id: &str| client.properties(id).with_type("arr.request".into());
    client.publish("arr.request.echo", client.properties("a").with_type("arr.nonsense".into()), b"\xff\x00").await;
    client.publish("arr.request.echo", ours("not-a-uuid"), b"1").await;
    client.publish("arr.request.echo", BasicProperties::default(), b"nobody to answer").await;
    client.publish("arr.request.echo", client.properties("x").with_reply_to("arr.reply.#".into()), b"1").await;
    let mut answered = Vec::new();
    for _ in 0..2 {
        let reply = client.reply().await;
        assert_eq!(reply.properties.kind().as_ref().unwrap().as_str(), "arr.error");
        answered.push(reply.properties.correlation_id().as_ref().unwrap().to_string());
    }
    answered.sort_unstable();
    assert_eq!(answered, ["a", "not-a-uuid"]);
    // The provider is alive and well, and has counted all four: this one came behind them.
    client.publish("arr.request.echo", client.properties("b"), b"still here").await;
    assert_eq!(client.reply().await.data, b"still here");
    assert!(pair.metric("arr_unreadable_total", "arr.request.echo").await >= 4.0);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_may_not_answers_no_foreign_client() {
    let pair = Pair::start().await;
    let id = pair.submit("echo", &json!(1)).await;
    pair.ended(&id).await;
    let mut client = Client::connect(&pair).await;
    client.publish("arr.request.echo", client.properties("a"), b"hi").await;
    // The provider stops only when it is done with all that it was delivered before.
    let id = pair.submit("echo", &json!(2)).await;
    pair.ended(&id).await;
    pair.finish().await;
    assert!(client.replies.next().now_or_never().flatten().is_none(), "it was answered");
}

/// A server as in the tutorial: it knows `reply_to` and `correlation_id`, and sets no type.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_tutorial_6_is_a_provider() {
    let mut pair = open_pair().await;
    pair.stop_provider().await;
    let server = Client::connect(&pair).await;
    let options = BasicConsumeOptions::default();
    let queue = "arr.request.echo".into();
    let mut requests = server.channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.unwrap();
    let id = pair.submit("echo", &json!(20)).await;
    let request = requests.next().await.unwrap().unwrap();
    let reply_to = request.properties.reply_to().clone().unwrap();
    let correlation_id = request.properties.correlation_id().clone().unwrap();
    let properties = BasicProperties::default().with_correlation_id(correlation_id);
    server.publish(reply_to.as_str(), properties, b"6765").await;
    request.ack(BasicAckOptions::default()).await.unwrap();
    assert_eq!(pair.result(&id).await, 6765);
    server.connection.close(200, "done".into()).await.unwrap();
    pair.finish().await;
}

/// The tutorial's own server, unchanged, on the queue that it declares itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_tutorial_6_in_python_serves_a_kind_and_steps_of_a_pipeline() {
    let mut pair = Pair::prepare().await;
    let kind = KindConfig { queue: Some("rpc_queue".into()), ..KindConfig::default() };
    pair.requestor_config.kinds.insert("fibonacci".into(), kind);
    let pipeline = PipelineConfig { steps: vec!["fibonacci".into(), "fibonacci".into()], timeout: None };
    pair.requestor_config.pipelines.insert("fibonacci.twice".into(), pipeline);
    pair.start_requestor();
    pair.ready().await;
    let early = pair.submit("fibonacci", &json!(20)).await;
    let waiting = pair.operation(&early).await;
    assert!(waiting.get("providersSeen").is_none(), "nobody can tell: {waiting}");

    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/rpc_server.py");
    let mut command = Command::new(python);
    command.arg(script).arg(&pair.host.url).stdin(Stdio::null()).stdout(Stdio::null());
    let mut server = Process::spawn(&mut command);
    assert_eq!(pair.result(&early).await, 6765, "it was asked when its queue was there");
    let twice = pair.submit("fibonacci.twice", &json!(7)).await;
    assert_eq!(pair.result(&twice).await, 233, "the thirteenth, since the seventh is 13");
    let shown = pair.get_json("/v1/kinds/fibonacci").await;
    assert_eq!((shown["queue"].as_str(), shown.get("live")), (Some("rpc_queue"), None));
    server.kill();
    pair.finish().await;
}
