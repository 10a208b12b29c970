//! The broker goes away, and handlers misbehave.

use harness::broker::Broker;
use harness::orders::order;
use harness::pair::Pair;
use harness::proxy::Proxy;
use provider::{Config, Context, Failure, Provider};
use serde_json::{Value, json};
use shared::config::SecretUrl;

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_at_start_gets_everything_when_it_comes() {
    let mut pair = Pair::prepare().await;
    let mut proxy = Proxy::closed(Broker::shared().await.address());
    let url = SecretUrl::new(proxy.url(&pair.host.url));
    pair.requestor_config.broker.url = url.clone();
    pair.provider_config.broker.url = url;
    pair.start_requestor();
    pair.start_provider();
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(pair.submit("order.place", &order()).await);
    }
    let ready = pair.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.headers()["content-type"], "application/problem+json");
    assert_eq!(ready.json::<Value>().await.unwrap()["broker"], "away");
    assert_eq!(pair.get("/healthz").await.status(), 200);
    proxy.open().await;
    for id in &ids {
        pair.result(id).await;
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_again_and_again_lose_nothing() {
    let mut pair = Pair::prepare().await;
    let mut proxy = Proxy::closed(Broker::shared().await.address());
    let url = SecretUrl::new(proxy.url(&pair.host.url));
    pair.requestor_config.broker.url = url.clone();
    pair.provider_config.broker.url = url;
    proxy.open().await;
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        for _ in 0..40 {
            ids.push(pair.submit("order.place", &order()).await);
        }
        proxy.cut().await;
        ids.push(pair.submit("order.place", &order()).await);
        proxy.open().await;
    }
    let mut stock: Vec<_> = Vec::new();
    for id in &ids {
        stock.push(pair.result(id).await["items"][0]["stockLeft"].as_u64().unwrap());
    }
    stock.sort_unstable();
    let expected: Vec<_> = (5000 - ids.len() as u64..5000).collect();
    assert_eq!(stock, expected, "each order took one, once");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_with_requests_in_flight_loses_nothing() {
    let mut broker = Broker::start().await.unwrap();
    let mut pair = Pair::prepare_on(broker.virtual_host().await).await;
    // A queue may be lost with what is in it, if the broker is of those that come back without its process.
    pair.requestor_config.redrive.waiting = std::time::Duration::from_secs(5);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    broker.remembers_its_queues().await;
    // Half of them wait in the broker's queue when it is killed, the others come while it is away.
    pair.stop_provider().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(pair.submit("order.place", &order()).await);
    }
    pair.start_provider();
    let during = futures_util::future::join_all((0..50).map(|_| async { pair.submit("order.place", &order()).await }));
    let (during, ()) = tokio::join!(during, broker.kill_and_restart(&pair.host));
    ids.extend(during);
    for id in &ids {
        pair.result(id).await;
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_alarm_is_waited_for() {
    let broker = Broker::start().await.unwrap();
    let mut pair = Pair::prepare_on(broker.virtual_host().await).await;
    // Far shorter than the alarm, which must not count against the connection.
    let confirm_timeout = std::time::Duration::from_millis(500);
    pair.requestor_config.broker.confirm_timeout = confirm_timeout;
    pair.provider_config.broker.confirm_timeout = confirm_timeout;
    pair.start_requestor();
    pair.start_provider();
    let first = pair.submit("order.place", &order()).await;
    pair.result(&first).await;
    broker.memory_alarm(true).await;
    let mut ids = Vec::new();
    let state = async || pair.get("/readyz").await.text().await.unwrap();
    // The broker says that it is blocked to those who publish.
    harness::eventually("the requestor says that the broker is blocked", async || {
        ids.push(pair.submit("order.place", &order()).await);
        let state = state().await;
        if state.contains("blocked") { Ok(()) } else { Err(state) }
    })
    .await;
    // All the while, and for several times what a confirm may take, requests are accepted and the connection is kept.
    let until = tokio::time::Instant::now() + confirm_timeout * 4;
    while tokio::time::Instant::now() < until {
        ids.push(pair.submit("order.place", &order()).await);
        let during = state().await;
        assert!(during.contains("blocked"), "the connection was given up: {during}");
    }
    broker.memory_alarm(false).await;
    for id in &ids {
        pair.result(id).await;
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_that_operations_failure_and_nothing_elses() {
    let mut pair = Pair::prepare().await;
    let provider = |config: Config| {
        Provider::builder(config)
            .handle("echo", |request: Value, _: Context| {
                assert_ne!(request, "panic at once", "as asked for");
                async move {
                    assert_ne!(request, "panic later", "as asked for");
                    Ok::<_, Failure>(request)
                }
            })
            .handle_transactional("order.place", |_: Value, _: &provider::Transaction<'_>| -> Result<Value, Failure> {
                panic!("as asked for")
            })
            .handle_transactional_on_postgres("order.place", |_: Value, transaction| {
                Box::pin(async {
                    sqlx::query("select 1 / 0").execute(transaction.connection()).await.unwrap();
                    Ok(Value::Null)
                })
            })
            .build()
            .unwrap()
    };
    pair.start_provider_with(provider(pair.provider_config.clone()));
    pair.start_requestor();
    pair.ready().await;
    let mut failing = vec![pair.submit("order.place", &order()).await];
    for panic in ["panic at once", "panic later", "panic at once", "panic later"] {
        failing.push(pair.submit("echo", &json!(panic)).await);
    }
    let fine = pair.submit("echo", &json!("fine")).await;
    assert_eq!(pair.result(&fine).await, "fine");
    for id in failing {
        assert_eq!(pair.ended(&id).await["error"]["type"], "urn:problem-type:arr:handler-panicked");
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_ends_at_the_deadline() {
    let mut pair = Pair::prepare().await;
    pair.provider_config.concurrency = 1;
    let provider = Provider::builder(pair.provider_config.clone())
        .handle("echo", |request: Value, _: Context| async move {
            match request.as_str() {
                Some("hang") => std::future::pending().await,
                _ => Ok::<_, Failure>(request),
            }
        })
        .build()
        .unwrap();
    pair.start_provider_with(provider);
    pair.start_requestor();
    pair.ready().await;
    let request = pair.post("echo").body("\"hang\"");
    let response = request.header("operation-timeout", "2s").header("prefer", "wait=30").send().await.unwrap();
    assert_eq!(response.status(), 504);
    // Its slot, the only one, is free again.
    let id = pair.submit("echo", &json!("next")).await;
    assert_eq!(pair.result(&id).await, "next");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_no_message_can_carry_is_a_failure() {
    let mut pair = Pair::prepare().await;
    let provider = Provider::builder(pair.provider_config.clone())
        .handle("echo", |_: Value, _: Context| async { Ok::<_, Failure>("x".repeat(1 << 20)) })
        .build()
        .unwrap();
    pair.start_provider_with(provider);
    pair.start_requestor();
    let id = pair.submit("echo", &json!(1)).await;
    assert_eq!(pair.ended(&id).await["error"]["type"], "urn:problem-type:arr:result-too-large");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_broker_has_lost_is_sent_again() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.redrive.waiting = std::time::Duration::from_secs(1);
    pair.start_requestor();
    pair.start_provider();
    let first = pair.submit("echo", &json!(1)).await;
    pair.result(&first).await;
    pair.stop_provider().await;
    let id = pair.submit("echo", &json!(2)).await;
    let channel = pair.host.connect().await.create_channel().await.unwrap();
    harness::eventually("the request is in its queue", async || {
        let purged = channel.queue_purge("arr.request.echo".into(), Default::default()).await.unwrap();
        if purged == 1 { Ok(()) } else { Err(purged.to_string()) }
    })
    .await;
    pair.start_provider();
    assert_eq!(pair.result(&id).await, 2);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_may_pass_is_attempted_again() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.retries.pause = std::time::Duration::from_millis(100);
    let provider = Provider::builder(pair.provider_config.clone())
        .handle("echo", |good_attempt: u32, context: Context| async move {
            if context.attempt() < good_attempt {
                let problem = provider::Problem::new("busy", 503, "Busy", "come back later");
                return Err(Failure::Transient(problem));
            }
            Ok(context.attempt())
        })
        .build()
        .unwrap();
    pair.start_provider_with(provider);
    pair.start_requestor();
    pair.ready().await;
    let (good, hopeless) = (pair.submit("echo", &json!(3)).await, pair.submit("echo", &json!(9)).await);
    assert_eq!(pair.result(&good).await, 3);
    assert_eq!(pair.operation(&good).await["attempt"], 3);
    let operation = pair.ended(&hopeless).await;
    assert_eq!((operation["status"].as_str(), operation["attempt"].as_u64()), (Some("Failed"), Some(3)));
    assert_eq!(operation["error"]["title"], "Busy");
    pair.finish().await;
}
