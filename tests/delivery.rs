//! Every message may come more than once.

use harness::asker::{self, Asker};
use harness::orders::taken;
use harness::pair::Pair;
use jiff::Timestamp;
use lapin::Channel;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use provider::{Context, Failure, Provider};
use serde_json::json;
use shared::message::{Content, Message, OperationId, Outcome, Reply, Request, ReturnAddress, answer};
use shared::problem::Problem;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Semaphore;

#[expect(clippy::disallowed_methods, reason = "messages that our own publisher would never send")]
async fn publish(channel: &Channel, message: &Message) {
    let (options, properties) = (BasicPublishOptions::default(), message.properties.clone());
    let confirm =
        channel.basic_publish(message.exchange.into(), message.routing_key.clone(), options, &message.body, properties);
    confirm.await.unwrap().await.unwrap();
}

async fn channel(pair: &Pair) -> (lapin::Connection, Channel) {
    let connection = pair.host.connect().await;
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

fn request(id: &str, kind: &str, body: &serde_json::Value) -> (OperationId, Request) {
    let operation: OperationId = id.parse().unwrap();
    let request = Request {
        operation: Some(operation),
        correlation_id: id.into(),
        kind: kind.into(),
        step: 1,
        attempt: 1,
        deadline: Some(Timestamp::now() + std::time::Duration::from_secs(60)),
        expiration: None,
        reply_to: Some(ReturnAddress::Group("default".into())),
        priority: None,
        traceparent: None,
        content: Content::json(body.to_string()),
    };
    (operation, request)
}

fn reply_message(request: &Request, reply: &Reply) -> Message {
    answer(request.reply_to.as_ref().unwrap(), &request.correlation_id, reply).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_delivered_three_times_changes_stock_and_status_once() {
    let pair = Pair::start().await;
    let (_connection, channel) = channel(&pair).await;
    let order = json!({"customer": "Ada", "items": [{"sku": "mouse", "quantity": 1, "unitPriceCents": 1999}]});
    let mut ids = Vec::new();
    for _ in 0..20 {
        let id = pair.submit("order.place", &order).await;
        let (operation, request) = request(&id, "order.place", &order);
        for _ in 0..2 {
            publish(&channel, &request.to_message(operation, "default", Timestamp::now()).unwrap()).await;
        }
        ids.push(id);
    }
    for id in &ids {
        pair.result(id).await;
    }
    // And replies that say something else: the first is final.
    let last = ids.last().unwrap();
    let before = pair.operation(last).await;
    let (_, request) = request(last, "order.place", &order);
    let contradiction = Outcome::Failed(Problem::new("other", 500, "Other", "another outcome"));
    for outcome in [Outcome::Succeeded(Content::json("1")), contradiction] {
        let reply = Reply::new(1, 1, outcome);
        publish(&channel, &reply_message(&request, &reply)).await;
    }
    // Replies are taken in order: when this one is there, those before it are.
    let behind = pair.submit("echo", &json!("behind")).await;
    pair.result(&behind).await;
    assert_eq!(pair.operation(last).await, before);
    assert_eq!(taken(&pair.ledger).await, (20, 20));
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_for_nobody_and_nonsense_are_dropped() {
    let pair = Pair::start().await;
    let (_connection, channel) = channel(&pair).await;
    let (_, stranger) = request(&OperationId::new().to_string(), "echo", &json!(1));
    let reply = Reply::new(1, 1, Outcome::Succeeded(Content::json("1")));
    let message = reply_message(&stranger, &reply);
    publish(&channel, &message).await;
    let nonsense = Message {
        properties: lapin::BasicProperties::default().with_correlation_id("nope".into()),
        body: bytes::Bytes::from_static(b"\xff"),
        ..message
    };
    publish(&channel, &nonsense).await;
    let id = pair.submit("echo", &json!("still here")).await;
    assert_eq!(pair.result(&id).await, "still here");
    assert_eq!(pair.get_json("/v1/operations").await["operations"].as_array().unwrap().len(), 1, "no record was made");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_outcome_is_kept_beside_the_record() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    let submit = pair.post("echo").body("1");
    let accepted: serde_json::Value =
        submit.header("operation-timeout", "200ms").send().await.unwrap().json().await.unwrap();
    let id = accepted["id"].as_str().unwrap();
    assert_eq!(pair.ended(id).await["error"]["type"], "urn:problem-type:arr:deadline-exceeded");
    let (_connection, channel) = channel(&pair).await;
    let (_, request) = request(id, "echo", &json!(1));
    let reply = Reply::new(1, 1, Outcome::Succeeded(Content::json("1")));
    publish(&channel, &reply_message(&request, &reply)).await;
    let late = harness::eventually("the late outcome is visible", async || {
        let operation = pair.operation(id).await;
        if operation["lateOutcome"].is_object() { Ok(operation) } else { Err(operation.to_string()) }
    })
    .await;
    assert_eq!((late["status"].as_str(), late["lateOutcome"]["status"].as_str()), (Some("Failed"), Some("Succeeded")));
    pair.finish().await;
}

/// Acknowledgements go together up to the oldest request that is under way, and past it one by one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_acknowledged_before_and_behind_what_is_not() {
    let mut pair = Pair::prepare().await;
    pair.provider_config.concurrency = 2;
    let mut asker = Asker::start(&pair.host, &["gated"]).await;
    let gate = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&gate);
    let handler = move |through: bool, _: Context| {
        let gate = Arc::clone(&waits);
        async move {
            if !through {
                gate.acquire().await.unwrap().forget();
            }
            Ok::<_, Failure>(through)
        }
    };
    let provider = Provider::builder(pair.provider_config.clone()).handle("gated", handler).build().unwrap();
    pair.start_provider_with(provider);
    let held = async |expected: usize| {
        harness::eventually("what is done is acknowledged", async || {
            let queue = pair.host.queue("arr.request.gated").await;
            let (ready, held) = (&queue["messages_ready"], &queue["messages_unacknowledged"]);
            if *ready == 0 && *held == expected { Ok(()) } else { Err(format!("{ready} ready, {held} held")) }
        })
        .await;
    };
    let gated = asker::request("gated", &json!(false));
    let through: Vec<_> = (0..300).map(|_| asker::request("gated", &json!(true))).collect();
    let (before, behind) = through.split_at(100);
    for request in before.iter().chain([&gated]).chain(behind) {
        asker.send(request).await;
    }
    let mut answered = HashSet::new();
    while answered.len() < through.len() {
        answered.insert(asker.any_reply().await.0);
    }
    assert!(through.iter().all(|request| request.operation.is_some_and(|id| answered.contains(&id))));
    held(1).await;
    gate.add_permits(1);
    asker.reply(&gated).await;
    held(0).await;
    asker.finish().await;
    pair.finish().await;
}
