//! What machines do to the services: processes that stand still, a full disk, clocks that are wrong.

use futures_util::future::join_all;
use harness::broker::VirtualHost;
use harness::orders::{order, place, placed_once, taken};
use harness::process::{Process, Service};
use harness::services::{Services, analysis};
use harness::store::StoreOfTest;
use harness::{clock, eventually};
use nix::sys::signal::Signal;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Heartbeats are short, so that the broker notices within seconds that a process stands still.
async fn prepare() -> Services {
    Services::prepare("?heartbeat=1").await
}

async fn start(services: &Services) -> (Process, Process) {
    tokio::join!(services.requestor.start(), services.provider.start())
}

/// Waits until the broker has given up whoever consumed `queue`.
async fn abandoned(host: &VirtualHost, queue: &str) {
    let connection = host.connect().await;
    let channel = connection.create_channel().await.unwrap();
    eventually("the broker has noticed", async || {
        let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let found = channel.queue_declare(queue.into(), passive, Default::default()).await.unwrap();
        if found.consumer_count() == 0 { Ok(()) } else { Err(format!("{} consumers", found.consumer_count())) }
    })
    .await;
}

async fn finish(services: Services, running: impl IntoIterator<Item = Process>) {
    for mut process in running {
        assert!(process.terminate().await.success());
        // What the provider gives back at its end may be a dead letter, which the requestor is still to take.
        harness::pair::drained(&services.host).await;
    }
    services.finish().await;
}

/// The provider wakes up as a zombie: the broker has long given its requests to others.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_stands_still_in_mid_job_has_each_effect_once_when_it_goes_on() {
    let stack = prepare().await;
    let (requestor, mut provider) = start(&stack).await;
    let long = stack.caller.submit("risk.analyze", &analysis()).await;
    stack.caller.reached(&long, &["Running"]).await;
    let mut ids = place(&stack.caller, 5).await;
    let orders = order();
    let during = join_all((0..30).map(|_| stack.caller.submit("order.place", &orders)));
    let stop = async {
        stack.caller.result(&ids[0]).await;
        provider.signal(Signal::SIGSTOP);
    };
    let (during, ()) = tokio::join!(during, stop);
    ids.extend(during);
    abandoned(&stack.host, "arr.request.risk.analyze").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Service::provider(&stack.host.url, elsewhere.path()).with("PROVIDER_KINDS", "risk.analyze");
    let other = other.start().await;
    stack.caller.result(&long).await;
    let before = stack.caller.operation(&long).await;
    provider.signal(Signal::SIGCONT);
    placed_once(&stack.caller, &ids, &stack.ledger).await;
    // It ends what it had begun, and its reply comes too late.
    assert!(provider.terminate().await.success());
    placed_once(&stack.caller, &ids, &stack.ledger).await;
    assert_eq!(stack.caller.operation(&long).await, before);
    finish(stack, [other, requestor]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_that_stands_still_takes_its_replies_when_it_goes_on() {
    let stack = prepare().await;
    let (mut requestor, provider) = start(&stack).await;
    let mut ids = place(&stack.caller, 1).await;
    stack.caller.result(&ids[0]).await;
    ids.extend(place(&stack.caller, 30).await);
    requestor.signal(Signal::SIGSTOP);
    abandoned(&stack.host, "arr.reply.default").await;
    requestor.signal(Signal::SIGCONT);
    ids.extend(place(&stack.caller, 5).await);
    placed_once(&stack.caller, &ids, &stack.ledger).await;
    finish(stack, [provider, requestor]).await;
}

/// Leaves no room on the small disk of `process`; there is room again when the file is removed.
fn fill(process: &Process, folder: &Path) -> PathBuf {
    let path = process.sees(&folder.join("filler"));
    let mut file = std::fs::File::create(&path).unwrap();
    let mut piece = vec![0; 64 * 1024];
    while !piece.is_empty() {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_whose_disk_is_full_accepts_nothing_and_keeps_what_it_has_accepted() {
    let mut stack = prepare().await;
    let disk = stack.folder.path().join("disk");
    let store = format!("sqlite://{}/requestor.db", disk.display());
    stack.requestor = stack.requestor.with("REQUESTOR_STORE__URL", &store).on_small_disk(&disk);
    let (requestor, provider) = start(&stack).await;
    let mut ids = place(&stack.caller, 5).await;
    let filler = fill(&requestor, &disk);
    eventually("the requestor accepts no more", async || {
        let response = stack.caller.try_submit("order.place", &order()).await.unwrap();
        match response.status().as_u16() {
            202 => ids.push(response.json::<serde_json::Value>().await.unwrap()["id"].as_str().unwrap().to_owned()),
            503 => return Ok(()),
            _ => {}
        }
        Err(format!("{} accepted", ids.len()))
    })
    .await;
    // It still answers, and knows what it has accepted.
    stack.caller.operation(&ids[0]).await;
    std::fs::remove_file(filler).unwrap();
    ids.extend(place(&stack.caller, 5).await);
    placed_once(&stack.caller, &ids, &stack.ledger).await;
    finish(stack, [provider, requestor]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_whose_disk_is_full_waits_until_it_can_record_what_it_does() {
    let mut stack = prepare().await;
    let disk = stack.folder.path().join("disk");
    let ledger = format!("sqlite://{}/provider.db", disk.display());
    stack.provider = stack.provider.with("PROVIDER_LEDGER__URL", &ledger).on_small_disk(&disk);
    let (requestor, provider) = start(&stack).await;
    let mut ids = place(&stack.caller, 5).await;
    let filler = fill(&provider, &disk);
    eventually("the ledger cannot be written", async || {
        ids.extend(place(&stack.caller, 1).await);
        if stack.provider.log().contains("the disk is full") { Ok(()) } else { Err(format!("{} placed", ids.len())) }
    })
    .await;
    std::fs::remove_file(filler).unwrap();
    ids.extend(place(&stack.caller, 5).await);
    for id in &ids {
        stack.caller.result(id).await;
    }
    // A copy: SQLite would look for the path as this process sees it.
    for file in ["provider.db", "provider.db-wal"] {
        std::fs::copy(provider.sees(&disk.join(file)), stack.folder.path().join(file)).unwrap();
    }
    placed_once(&stack.caller, &ids, &StoreOfTest::in_file(stack.folder.path(), "provider")).await;
    finish(stack, [provider, requestor]).await;
}

/// A clock that is three hours fast or slow, at one of the two.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_wrong_neither_end_an_operation_early_nor_keep_it_for_ever() {
    clock::install_if_missing().await;
    join_all([("+3h", "+0"), ("-3h", "+0"), ("+0", "+3h"), ("+0", "-3h")].map(async |(requestor, provider)| {
        let mut stack = prepare().await;
        stack.requestor = clock::shifted(stack.requestor, requestor);
        stack.provider = clock::shifted(stack.provider, provider);
        let (requestor, provider) = start(&stack).await;
        let timeout = async |kind: &str, seconds: u32, body: &serde_json::Value| {
            let request = stack.caller.post(kind).header("operation-timeout", format!("{seconds}s"));
            let response = request.body(body.to_string()).send().await.unwrap();
            response.json::<serde_json::Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
        };
        let started = Instant::now();
        let id = timeout("order.place", 30, &order()).await;
        stack.caller.result(&id).await;
        let mut endless = analysis();
        endless["paths"] = 20_000_000.into();
        let hopeless = timeout("risk.analyze", 2, &endless).await;
        let ended = stack.caller.ended(&hopeless).await;
        assert_eq!(ended["error"]["type"], "urn:problem-type:arr:deadline-exceeded", "{ended}");
        assert!(started.elapsed() > Duration::from_secs(2), "ended after {:?}", started.elapsed());
        assert_eq!(taken(&stack.ledger).await, (1, 1));
        // A copy that is still in its queue would become a dead letter when nobody is there to take it.
        harness::pair::drained(&stack.host).await;
        finish(stack, [provider, requestor]).await;
    }))
    .await;
}
