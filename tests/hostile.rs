//! Bad input: forged and duplicated messages, addresses that lead elsewhere, bombs, and what kills connections.

mod bomb;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use harness::broker::{Broker, VirtualHost};
use harness::pair::Pair;
use harness::process::Service;
use harness::store::StoreOfTest;
use jiff::Timestamp;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use shared::amqp::{PublishError, Status, Supervisor, publisher};
use shared::config::SecretUrl;
use shared::message::{Content, Message, OperationId, Outcome, Progress, Reply, Request, ReturnAddress, answer};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// A connection of somebody who may publish what he likes.
struct Stranger {
    _connection: Connection,
    channel: Channel,
}

impl Stranger {
    async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel }
    }

    #[expect(clippy::disallowed_methods, reason = "messages that our own publisher would never send")]
    async fn publish(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) -> lapin::Result<()> {
        let options = BasicPublishOptions::default();
        let confirm = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?;
        confirm.await.map(drop)
    }

    async fn send(&self, message: &Message, properties: BasicProperties) -> lapin::Result<()> {
        self.publish(message.exchange, message.routing_key.as_str(), properties, &message.body).await
    }

    async fn declare(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
    }
}

fn request(id: &str, kind: &str, body: &Value) -> Request {
    Request {
        operation: Some(id.parse().unwrap()),
        correlation_id: id.into(),
        kind: kind.into(),
        step: 1,
        attempt: 1,
        deadline: Some(Timestamp::now() + Duration::from_secs(60)),
        expiration: None,
        reply_to: Some(ReturnAddress::Group("default".into())),
        priority: None,
        traceparent: None,
        content: Content::json(body.to_string()),
    }
}

fn request_message(id: &str) -> Message {
    request(id, "echo", &json!(1)).to_message(id.parse().unwrap(), "default", Timestamp::now()).unwrap()
}

fn forged(id: &str, body: impl Into<Bytes>) -> Message {
    let reply = Reply::new(1, 1, Outcome::Succeeded(Content::json(body)));
    answer(&ReturnAddress::Group("default".into()), id, &reply).unwrap()
}

/// Waits until nothing is ready in `queue`, so that what was sent before has been taken.
async fn taken(host: &VirtualHost, queue: &str) {
    let channel = host.connect().await.create_channel().await.unwrap();
    harness::eventually(&format!("{queue} is empty"), async || {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let left = channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().message_count();
        if left == 0 { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
}

async fn no_reply_leads_to_a_victim(foreign: bool, victims: &[&str], others: &[&str]) {
    let mut pair = Pair::prepare().await;
    pair.provider_config.replies.foreign = foreign;
    pair.start_requestor();
    pair.start_provider();
    let first = pair.submit("echo", &json!("the queues are there")).await;
    pair.result(&first).await;
    let stranger = Stranger::connect(&pair.host.url).await;
    for victim in victims {
        stranger.declare(victim).await;
    }
    for address in victims.iter().chain(others) {
        for n in 0..20 {
            let message = request_message(&OperationId::new().to_string());
            let properties = message.properties.clone().with_reply_to((*address).into());
            let plain = BasicProperties::default().with_reply_to((*address).into()).with_correlation_id("x".into());
            let (properties, body) = if n % 2 == 0 { (properties, "1") } else { (plain, "not even \u{feff} JSON") };
            stranger.publish("arr.request", "echo", properties, body.as_bytes()).await.unwrap();
        }
    }
    let behind = pair.submit("echo", &json!("behind them all")).await;
    pair.result(&behind).await;
    pair.stop_provider().await;
    for victim in victims {
        assert_eq!(stranger.declare(victim).await, 0, "{victim} was written to");
        stranger.channel.queue_delete((*victim).into(), Default::default()).await.unwrap();
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_to_no_queue_but_a_reply_queue() {
    let long = "x".repeat(255);
    let victims =
        ["victim", "#", "*", "a b", "arr.control.others", "arr.request.others", "arr.dead.others", "arr.reply", &long];
    let others = ["amq.gen-x", "victim\0", "arr.reply.#", "arr.reply.a.b", "arr.reply.", "\0"];
    no_reply_leads_to_a_victim(false, &victims, &others).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn even_where_foreign_clients_are_answered_our_own_queues_are_none_of_theirs() {
    let victims =
        ["arr.control.others", "arr.request.others", "arr.dead.others", "arr.progress.others", "arr.reply.a.b"];
    no_reply_leads_to_a_victim(true, &victims, &["arr.reply.#", "arr.control.default"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_count_only_from_users_that_may_answer() {
    let mut pair = Pair::prepare().await;
    let mallory = format!("mallory-{}", pair.host.name);
    let stranger = Stranger::connect(&pair.host.add_user(&mallory).await).await;
    pair.requestor_config.replies.users = vec!["guest".into()];
    pair.start_requestor();
    pair.ready().await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(pair.submit("echo", &json!(n)).await);
    }
    for id in ids.iter().cycle().take(200) {
        let message = forged(id, "\"forged\"");
        let unsigned = message.properties.clone();
        let signed = unsigned.clone().with_user_id(mallory.as_str().into());
        stranger.send(&message, unsigned).await.unwrap();
        stranger.send(&message, signed).await.unwrap();
        let report =
            Progress { step: 1, attempt: 1, sequence: i64::MAX, percent: Some(99.0), message: None, lease: None };
        let progress = request(id, "echo", &json!(1)).progress_message(&report).unwrap().unwrap();
        let signed = progress.properties.clone().with_user_id(mallory.as_str().into());
        stranger.send(&progress, signed).await.unwrap();
    }
    taken(&pair.host, "arr.reply.default").await;
    taken(&pair.host, "arr.progress.default").await;
    // The broker itself refuses a lie about who sends.
    let lie = forged(&ids[0], "\"forged\"");
    let as_provider = lie.properties.clone().with_user_id("guest".into());
    assert!(stranger.send(&lie, as_provider).await.is_err());
    for id in &ids {
        let operation = pair.operation(id).await;
        assert_eq!(operation["status"], "NotStarted", "{operation}");
    }
    pair.start_provider();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(pair.result(id).await, n);
    }
    pair.host.delete_user(&mallory).await;
    pair.finish().await;
}

/// The latencies of `calls` one after the other, sorted.
async fn latencies(pair: &Pair, calls: usize) -> Vec<Duration> {
    let mut all = Vec::new();
    for n in 0..calls {
        let started = Instant::now();
        let response = pair.post("echo").header("prefer", "wait=30").body(n.to_string()).send().await.unwrap();
        assert_eq!(response.status(), 200);
        all.push(started.elapsed());
    }
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_replies_for_nobody_make_no_record_and_hold_nobody_up() {
    let pair = Pair::start().await;
    latencies(&pair, 10).await;
    let stranger = Stranger::connect(&pair.host.url).await;
    let flood = async {
        for n in 0..10_000 {
            let message = forged(&OperationId::new().to_string(), n.to_string());
            stranger.send(&message, message.properties.clone()).await.unwrap();
        }
    };
    let ((), during) = tokio::join!(flood, latencies(&pair, 100));
    // In a build without optimisation on a busy machine; what is excluded is that a good reply waits for all the bad.
    assert!(during[98] < Duration::from_secs(3), "p99 {:?}", during[98]);
    taken(&pair.host, "arr.reply.default").await;
    let operations = pair.get_json("/v1/operations?pageSize=200").await["operations"].as_array().unwrap().len();
    assert_eq!(operations, 110, "a forged reply made a record");
    assert!(pair.metric("arr_unknown_operation_total", "").await >= 10_000.0);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_another_version_or_encoding_and_results_that_are_too_large_fail_by_name() {
    let pair = Pair::start().await;
    let first = pair.submit("echo", &json!("the queues are there")).await;
    pair.result(&first).await;
    let mut pair = pair;
    pair.stop_provider().await;
    let stranger = Stranger::connect(&pair.host.url).await;
    let ids = [
        pair.submit("echo", &json!(1)).await,
        pair.submit("echo", &json!(2)).await,
        pair.submit("echo", &json!(3)).await,
    ];
    harness::eventually("the requests are in their queue", async || {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue =
            stranger.channel.queue_declare("arr.request.echo".into(), options, FieldTable::default()).await.unwrap();
        if queue.message_count() == 3 { Ok(()) } else { Err(queue.message_count().to_string()) }
    })
    .await;
    stranger.channel.queue_purge("arr.request.echo".into(), Default::default()).await.unwrap();
    let (version, encoding, large) =
        (request_message(&ids[0]), request_message(&ids[1]), forged(&ids[2], vec![b'1'; 1_048_577]));
    let mut headers = version.properties.headers().clone().unwrap();
    headers.insert("version".into(), AMQPValue::LongInt(2));
    stranger.send(&version, version.properties.clone().with_headers(headers)).await.unwrap();
    stranger.send(&encoding, encoding.properties.clone().with_content_encoding("gzip".into())).await.unwrap();
    stranger.send(&large, large.properties.clone()).await.unwrap();
    pair.start_provider();
    for (id, name) in ids.iter().zip(["unsupported-version", "unsupported-media-type", "result-too-large"]) {
        let failed = pair.ended(id).await;
        assert_eq!(failed["error"]["type"], format!("urn:problem-type:arr:{name}"), "{failed}");
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_delivered_three_times_has_one_effect_and_one_transition() {
    const ORDERS: usize = 300;
    let pair = Pair::start().await;
    let order = json!({"customer": "Ada", "items": [{"sku": "mouse", "quantity": 1, "unitPriceCents": 1999}]});
    // Until the provider has declared its queue, a request would go to the copies alone and count as sent.
    let first = pair.submit("echo", &json!("the queues are there")).await;
    pair.result(&first).await;
    let stranger = Stranger::connect(&pair.host.url).await;
    stranger.declare("copies").await;
    for (exchange, key) in [("arr.request", "order.place"), ("arr.reply", "arr.reply.default")] {
        let bound = stranger.channel.queue_bind(
            "copies".into(),
            exchange.into(),
            key.into(),
            Default::default(),
            FieldTable::default(),
        );
        bound.await.unwrap();
    }
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consumed = stranger.channel.basic_consume("copies".into(), "".into(), options, FieldTable::default()).await;
    let mut copies = consumed.unwrap();
    let copied = std::cell::Cell::new(0);
    let duplicate = async {
        while let Some(delivery) = copies.next().await {
            let delivery = delivery.unwrap();
            let key = delivery.routing_key.as_str();
            let queue = if key == "order.place" { "arr.request.order.place" } else { key };
            for _ in 0..2 {
                stranger.publish("", queue, delivery.properties.clone(), &delivery.data).await.unwrap();
            }
            copied.set(copied.get() + 1);
        }
    };
    let place = async {
        for id in join_all((0..ORDERS).map(|_| pair.submit("order.place", &order))).await {
            pair.result(&id).await;
        }
        harness::eventually("all requests and replies were copied", async || {
            if copied.get() >= 2 * ORDERS { Ok(()) } else { Err(copied.get().to_string()) }
        })
        .await;
        for queue in ["arr.request.order.place", "arr.reply.default", "copies"] {
            taken(&pair.host, queue).await;
        }
    };
    tokio::select! {
        () = duplicate => panic!("the consumer was cancelled"),
        () = place => {}
    }
    assert_eq!(harness::orders::taken(&pair.ledger).await, (ORDERS as i64, ORDERS as i64));
    let succeeded = "select count(*) from operations where status = 2 and late_outcome is null";
    assert_eq!(pair.store.numbers(succeeded).await, [ORDERS as i64 + 1]);
    assert!(pair.metric("arr_duplicate_messages_total", "").await >= 2.0 * ORDERS as f64);
    stranger.channel.queue_delete("copies".into(), Default::default()).await.unwrap();
    pair.finish().await;
}

fn problem_type(problem: &Value) -> &str {
    problem["type"].as_str().unwrap_or_default().trim_start_matches("urn:problem-type:arr:")
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_not_safe_to_read_is_refused_with_the_reason() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    let cases = [
        (r#"{"amount":1,"amount":100}"#.to_owned(), "hostile-json", "\"amount\""),
        (format!("{}{}", "[".repeat(65), "]".repeat(65)), "hostile-json", "64"),
        ("[".repeat(200_000), "hostile-json", "64"),
        (format!("[{}]", vec!["0"; 120_000].join(",")), "hostile-json", "100000"),
        ("{\"a\":\"\u{0}\"}".to_owned(), "not-json", "control character"),
    ];
    for (body, name, detail) in cases {
        let response = pair.post("echo").body(body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem_type(&problem), name, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{problem}");
    }
    let compressed = pair.post("echo").header("content-encoding", "gzip").body("1").send().await.unwrap();
    assert_eq!(compressed.status(), 415);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_is_refused_when_it_is_too_large() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    let stream = tokio::net::TcpStream::connect(pair.requestor_config.http.listen).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let head = "POST /v1/requests/echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n";
    write.write_all(head.as_bytes()).await.unwrap();
    let mut sent = 0;
    let send = async {
        while let Ok(written) = write.write(&[b'0'; 65536]).await {
            sent += written;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = vec![0; 1024];
    let answered = async { read.read(&mut answer).await.unwrap() };
    let length = tokio::select! { length = answered => length, () = send => 0 };
    let text = String::from_utf8_lossy(&answer[..length]);
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    assert!(sent < 32 * 1024 * 1024, "{sent} bytes of 1 GiB were taken");
    pair.finish().await;
}

/// A message whose headers fit no frame: the broker closes the connection that brings it.
fn killer() -> Message {
    let mut headers = FieldTable::default();
    headers.insert("x".into(), AMQPValue::LongString("x".repeat(200 * 1024).into()));
    let message = good("killer");
    Message { properties: message.properties.clone().with_headers(headers), ..message }
}

fn good(id: &str) -> Message {
    let message_id: ShortString = id.into();
    let properties = BasicProperties::default().with_message_id(message_id.clone());
    let body = Bytes::from_static(b"x");
    Message { exchange: "", routing_key: "routed".into(), properties, message_id, body, mandatory: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_the_connection_fails_alone() {
    let host = Broker::shared().await.virtual_host().await;
    let stranger = Stranger::connect(&host.url).await;
    stranger.declare("routed").await;
    let mut config = requestor::config::Config::load(None).unwrap().broker;
    config.url = SecretUrl::new(&host.url);
    let (publisher, mut queue) = publisher(&config);
    let (status, shutdown) = (Status::channel(), CancellationToken::new());
    let mut sessions = 0;
    let serve = async {
        let mut supervisor = Supervisor::new(&config, "test".into(), &status, &shutdown);
        while let Some(session) = supervisor.open().await {
            sessions += 1;
            let result = supervisor.guard(&session, session.publish_from(&mut queue)).await;
            if supervisor.close(session, result).await {
                break;
            }
        }
    };
    let check = async {
        let started = Instant::now();
        let before = (0..20).map(|n| publisher.publish(good(&format!("before-{n}"))));
        let behind = (0..20).map(|n| publisher.publish(good(&format!("behind-{n}"))));
        let (before, killed, behind) = tokio::join!(join_all(before), publisher.publish(killer()), join_all(behind));
        assert_eq!(killed, Err(PublishError::Invalid));
        for result in before.into_iter().chain(behind) {
            assert_eq!(result, Ok(()), "an innocent failed");
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert_eq!(publisher.publish(good("after")).await, Ok(()));
    };
    tokio::select! {
        () = check => {}
        () = serve => panic!("the sessions ended"),
    }
    assert!((2..=5).contains(&sessions), "{sessions} sessions");
    host.delete().await;
}

/// A row that no code of ours would have written; what it says cannot be sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_request_that_cannot_be_sent_fails_alone() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    let bad = pair.submit("echo", &json!("bad")).await;
    let good = pair.submit("echo", &json!("good")).await;
    pair.stop_requestor().await;
    let sql = format!("update operations set traceparent = '{}' where id = ", "x".repeat(200 * 1024));
    let id = match &pair.store {
        StoreOfTest::File(_) => format!("x'{}'", bad.replace('-', "")),
        StoreOfTest::Database(_) => format!("'{bad}'"),
    };
    assert_eq!(pair.store.execute(&(sql + &id)).await, 1);
    pair.start_requestor();
    pair.start_provider();
    assert_eq!(pair.result(&good).await, "good");
    assert_eq!(problem_type(&pair.ended(&bad).await["error"]), "unpublishable");
    pair.finish().await;
}

/// The real programs, since what is at stake is the process.
#[tokio::test(flavor = "multi_thread")]
async fn header_bombs_stop_no_process_and_cost_no_connection() {
    let broker = Broker::shared().await;
    let host = broker.virtual_host().await;
    let folder = tempfile::tempdir().unwrap();
    let (requestor, provider) =
        (Service::requestor(&host.url, folder.path()), Service::provider(&host.url, folder.path()));
    let (mut requestor_process, mut provider_process) = (requestor.start().await, provider.start().await);
    let caller = harness::caller::Caller::new(format!("http://127.0.0.1:{}", requestor.port()));
    let first = caller.submit("echo", &json!("the queues are there")).await;
    caller.result(&first).await;
    let stranger = Stranger::connect(&host.url).await;
    let mut many = FieldTable::default();
    for n in 0..10_000 {
        many.insert(format!("h{n}").into(), AMQPValue::Void);
    }
    let mut large = FieldTable::default();
    large.insert("traceparent".into(), AMQPValue::LongString("x".repeat(100 * 1024).into()));
    let queues = ["arr.request.echo", "arr.reply.default", "arr.progress.default", "arr.dead.echo"];
    for queue in queues {
        for headers in [&many, &large] {
            for kind in ["arr.request", "arr.reply", "arr.progress"] {
                let id = OperationId::new().to_string();
                let properties = BasicProperties::default().with_headers(headers.clone()).with_type(kind.into());
                let properties =
                    properties.with_correlation_id(id.as_str().into()).with_reply_to("arr.reply.default".into());
                stranger.publish("", queue, properties, b"1").await.unwrap();
            }
        }
        for depth in [100, 1000] {
            bomb::publish_nested(&broker.address(), &host.name, queue, depth).await;
        }
    }
    for queue in queues {
        taken(&host, queue).await;
    }
    let last = caller.submit("echo", &json!("still here")).await;
    assert_eq!(caller.result(&last).await, "still here");
    assert!(requestor_process.terminate().await.success() && provider_process.terminate().await.success());
    for service in [&requestor, &provider] {
        assert_eq!(service.log().matches("connected broker").count(), 1, "{}", service.log());
    }
    harness::pair::nothing_left(&host).await;
    host.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_there_with_other_arguments_is_named_and_never_touched() {
    let host = Broker::shared().await.virtual_host().await;
    let folder = tempfile::tempdir().unwrap();
    let stranger = Stranger::connect(&host.url).await;
    stranger.declare("arr.request.echo").await;
    stranger.publish("", "arr.request.echo", BasicProperties::default(), b"of somebody else").await.unwrap();
    let (requestor, provider) =
        (Service::requestor(&host.url, folder.path()), Service::provider(&host.url, folder.path()));
    let (mut requestor_process, mut provider_process) = (requestor.start().await, provider.start().await);
    harness::eventually("the provider names the queue", async || {
        let log = provider.log();
        let told = ["PRECONDITION_FAILED", "arr.request.echo"].iter().all(|word| log.contains(word));
        if told { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(stranger.declare("arr.request.echo").await, 1, "it was touched");
    // The operator decides; nobody has to be started again.
    stranger.channel.queue_delete("arr.request.echo".into(), Default::default()).await.unwrap();
    let caller = harness::caller::Caller::new(format!("http://127.0.0.1:{}", requestor.port()));
    let id = caller.submit("echo", &json!("served")).await;
    assert_eq!(caller.result(&id).await, "served");
    assert!(requestor_process.terminate().await.success() && provider_process.terminate().await.success());
    harness::pair::nothing_left(&host).await;
    host.delete().await;
}
