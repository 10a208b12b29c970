//! Jobs that outlast what a broker lets a delivery be held.

use harness::asker::{Asker, request};
use harness::pair::Pair;
use harness::process::Service;
use provider::{Context, Failure, Provider};
use serde_json::{Value, json};
use shared::message::Outcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

#[derive(Default)]
struct Counted {
    begun: AtomicU32,
    now: AtomicU32,
    most: AtomicU32,
}

/// A provider of `nap`, which takes as many milliseconds as it is asked to, and counts.
fn napper(pair: &Pair, counted: &Arc<Counted>) -> Provider {
    let counted = Arc::clone(counted);
    let nap = move |milliseconds: u64, _: Context| {
        let counted = Arc::clone(&counted);
        async move {
            counted.begun.fetch_add(1, Ordering::SeqCst);
            counted.most.fetch_max(counted.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            counted.now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Failure>(())
        }
    };
    Provider::builder(pair.provider_config.clone()).handle("nap", nap).build().unwrap()
}

async fn prepare() -> Pair {
    let mut pair = Pair::prepare().await;
    let config = &mut pair.provider_config;
    (config.concurrency, config.ack_hold, config.lease) = (2, Duration::from_millis(500), Duration::from_millis(600));
    (config.progress.interval, config.progress.heartbeat) = (Duration::from_millis(50), Duration::from_millis(200));
    pair
}

/// Waits until a job has acknowledged its delivery early.
async fn leased(asker: &mut Asker, lease: Duration) {
    while asker.progress().await.lease != Some(lease) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn three_times_as_many_long_jobs_as_slots_run_once_each() {
    let mut pair = prepare().await;
    let mut asker = Asker::start(&pair.host, &["nap"]).await;
    let counted = Arc::<Counted>::default();
    pair.start_provider_with(napper(&pair, &counted));
    let requests: Vec<_> = (0..6).map(|_| request("nap", &json!(1500))).collect();
    for request in &requests {
        asker.send(request).await;
    }
    leased(&mut asker, Duration::from_millis(600)).await;
    let mut answered = Vec::new();
    for _ in 0..6 {
        let (operation, reply) = asker.any_reply().await;
        assert!(matches!(reply.outcome, Outcome::Succeeded(_)), "{reply:?}");
        answered.push(Some(operation));
    }
    for request in &requests {
        assert_eq!(answered.iter().filter(|id| **id == request.operation).count(), 1, "{answered:?}");
    }
    assert_eq!(counted.begun.load(Ordering::SeqCst), 6);
    assert_eq!(counted.most.load(Ordering::SeqCst), 2, "there are two slots");
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_the_broker_cancels_leaves_its_job_running() {
    let mut pair = prepare().await;
    let mut asker = Asker::start(&pair.host, &["nap"]).await;
    let counted = Arc::<Counted>::default();
    pair.start_provider_with(napper(&pair, &counted));
    let long = request("nap", &json!(3000));
    asker.send(&long).await;
    asker.progress().await;
    asker.delete_queue("arr.request.nap").await;
    assert!(matches!(asker.reply(&long).await.outcome, Outcome::Succeeded(_)));
    assert_eq!(counted.begun.load(Ordering::SeqCst), 1);
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_stops_ends_its_lease() {
    let mut pair = prepare().await;
    pair.provider_config.drain = Duration::from_millis(100);
    let mut asker = Asker::start(&pair.host, &["nap"]).await;
    pair.start_provider_with(napper(&pair, &Arc::default()));
    let endless = request("nap", &json!(3_600_000));
    asker.send(&endless).await;
    leased(&mut asker, Duration::from_millis(600)).await;
    pair.stop_provider().await;
    leased(&mut asker, Duration::ZERO).await;
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_early_acknowledgement_only_the_requestor_sends_again() {
    let pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &["risk.analyze"]).await;
    let service = Service::provider(&pair.host.url, pair.folder.path())
        .with("PROVIDER_KINDS", "risk.analyze")
        .with("PROVIDER_CONCURRENCY", "1")
        .with("PROVIDER_ACK_HOLD", "1s")
        .with("PROVIDER_LEASE", "3s")
        .with("PROVIDER_PROGRESS__HEARTBEAT", "1s")
        // One core, so that an analysis takes seconds on any machine.
        .with("RAYON_NUM_THREADS", "1");
    let analysis = |paths: u64| -> Value {
        json!({"weights": [1.0], "means": [0.0], "covariance": [[0.0001]], "horizonDays": 100, "paths": paths, "seed": 1})
    };
    let mut tries = 0;
    let (long, mut provider) = loop {
        tries += 1;
        let (long, short) = (request("risk.analyze", &analysis(20_000_000)), request("risk.analyze", &analysis(1000)));
        asker.send(&long).await;
        let mut killed = service.clone().with("FAILPOINTS", "provider.acked-early=return").spawn();
        assert!(!killed.ended().await.success());
        // What a broker delivers again comes first, so that the answer to this one tells.
        let mut provider = service.start().await;
        asker.send(&short).await;
        let (operation, reply) = asker.any_reply().await;
        assert!(matches!(reply.outcome, Outcome::Succeeded(_)), "{reply:?}");
        if Some(operation) == short.operation {
            break (long, provider);
        }
        // It was killed before its acknowledgement had arrived: once more.
        assert!(tries < 5, "it is never acknowledged early");
        assert_eq!(Some(operation), long.operation);
        asker.reply(&short).await;
        assert!(provider.terminate().await.success());
    };
    asker.send(&long).await;
    leased(&mut asker, Duration::from_secs(3)).await;
    provider.kill();
    // It may have been killed before its acknowledgement arrived.
    asker.delete_queue("arr.request.risk.analyze").await;
    asker.finish().await;
    pair.finish().await;
}
