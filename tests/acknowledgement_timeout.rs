//! Jobs that take longer than the broker lets a delivery go unacknowledged.

use harness::broker::{Broker, VirtualHost};
use harness::caller::Caller;
use harness::pair::Pair;
use harness::process::Service;
use provider::{Context, Failure, Provider};
use serde_json::{Value, json};
use shared::topology::request_queue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Brokers before 4.3 look once a minute, so that theirs passes after one to two.
const TIMEOUT: &str = "consumer_timeout = 60000";
const JOB: Duration = Duration::from_secs(170);

/// All at once and in one test, since they mostly wait: three tests would keep others from running.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_longer_than_the_acknowledgement_timeout_is_carried_out_once() {
    let broker = Broker::start_with(TIMEOUT).await.unwrap();
    tokio::join!(
        acknowledged_early_it_is_never_taken_away(broker.virtual_host().await),
        taken_away_it_goes_on_and_the_copy_joins(broker.virtual_host().await),
        a_provider_killed_after_its_acknowledgement_is_replaced(broker.virtual_host().await),
    );
}

async fn acknowledged_early_it_is_never_taken_away(host: VirtualHost) {
    let mut pair = Pair::prepare_on(host).await;
    pair.provider_config.ack_hold = Duration::from_secs(20);
    let (executions, redelivered) = run_long_job(&mut pair).await;
    assert_eq!((executions, redelivered), (1, 0));
    pair.finish().await;
}

async fn taken_away_it_goes_on_and_the_copy_joins(host: VirtualHost) {
    let mut pair = Pair::prepare_on(host).await;
    pair.provider_config.ack_hold = Duration::from_secs(600);
    let (executions, redelivered) = run_long_job(&mut pair).await;
    assert!(executions == 1 && redelivered > 0, "executions {executions}, redelivered {redelivered}");
    pair.finish().await;
}

/// Runs one job of [`JOB`]; how often it was executed, and how often the broker delivered it again.
async fn run_long_job(pair: &mut Pair) -> (u32, u64) {
    let executions = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&executions);
    let provider = Provider::builder(pair.provider_config.clone())
        .handle("echo", move |request: Value, _: Context| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                sleep(JOB).await;
                Ok::<_, Failure>(request)
            }
        })
        .build()
        .unwrap();
    pair.start_provider_with(provider);
    pair.start_requestor();
    pair.ready().await;
    let request = pair.post("echo").header("operation-timeout", "10m").body("\"long\"");
    let operation: Value = request.send().await.unwrap().json().await.unwrap();
    let id = operation["id"].as_str().unwrap();
    sleep(JOB).await;
    assert_eq!(pair.result(id).await, "long");
    let queue = pair.host.queue(&request_queue("echo")).await;
    let redelivered = queue["message_stats"]["redeliver"].as_u64().unwrap_or(0);
    (executions.load(Ordering::SeqCst), redelivered)
}

/// Nobody but the requestor can know: the broker has its acknowledgement.
#[expect(clippy::print_stderr, reason = "the figure is what this test is for")]
async fn a_provider_killed_after_its_acknowledgement_is_replaced(host: VirtualHost) {
    let folder = tempfile::tempdir().unwrap();
    let requestor = Service::requestor(&host.url, folder.path());
    let provider =
        Service::provider(&host.url, folder.path()).with("PROVIDER_ACK_HOLD", "1s").with("RAYON_NUM_THREADS", "1");
    let caller = Caller::new(format!("http://127.0.0.1:{}", requestor.port()));
    let mut requestor = requestor.start().await;
    let killed_once_acknowledged = provider.clone().with("FAILPOINTS", "provider.acked-early=return");
    let mut first = killed_once_acknowledged.start().await;
    // One core, and long enough to outlast its acknowledgement on any machine.
    let analysis = json!({"weights": [1.0], "means": [0.0], "covariance": [[0.0001]], "horizonDays": 100,
        "paths": 2_000_000, "seed": 1});
    let id = caller.submit("risk.analyze", &analysis).await;
    assert!(!first.ended().await.success());
    let killed = Instant::now();
    let mut second = provider.start().await;
    let last = caller.operation(&id).await;
    harness::eventually("another provider has begun", async || {
        let now = caller.operation(&id).await;
        if now["lastUpdatedAt"] == last["lastUpdatedAt"] { Err(now.to_string()) } else { Ok(()) }
    })
    .await;
    eprintln!("a provider killed after its acknowledgement was replaced after {:.1?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(45 + 10), "the lease is 45 s");
    caller.result(&id).await;
    assert!(second.terminate().await.success());
    assert!(requestor.terminate().await.success());
    harness::pair::nothing_left(&host).await;
}
