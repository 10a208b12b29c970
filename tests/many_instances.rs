//! Several requestors on one database: any takes any reply, and what one learns wakes who waits at another. Several
//! providers on one ledger.

use futures_util::future::join_all;
use harness::broker::Broker;
use harness::broker::cluster::{Cluster, Fault};
use harness::caller::Caller;
use harness::http_client;
use harness::orders::{order, taken};
use harness::postgres::Postgres;
use harness::process::Service;
use harness::store::StoreOfTest;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::topology;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// A requestor on a database, with its log in a folder of its own below `folder`.
fn requestor(name: &str, broker: &str, store: &str, folder: &Path) -> Service {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    Service::requestor(broker, &folder).with("REQUESTOR_STORE__URL", store)
}

/// A provider of orders with its ledger in a database, and with its log in a folder of its own below `folder`.
fn provider(name: &str, broker: &str, ledger: &str, folder: &Path) -> Service {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    Service::provider(broker, &folder).with("PROVIDER_KINDS", "order.place").with("PROVIDER_LEDGER__URL", ledger)
}

fn caller(service: &Service) -> Caller {
    Caller::new(format!("http://127.0.0.1:{}", service.port()))
}

/// Without hints, who waits reads the store every two seconds, and so learns the outcome after one on the average.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_one_instance_takes_wakes_who_waits_at_another() {
    let host = Broker::shared().await.virtual_host().await;
    let (folder, database) = (tempfile::tempdir().unwrap(), Postgres::shared().await.database().await);
    let services = ["a", "b"].map(|name| requestor(name, &host.url, database.url.expose(), folder.path()));
    // Of 2 s, after which a waiter looks by itself, most are left when it ends.
    let commands = folder.path().join("provider.toml");
    let nap = r#"sleep 0.5; echo '{"result": 1}'"#;
    std::fs::write(&commands, format!("[commands.nap]\ncommand = [\"sh\", \"-c\", '''{nap}''']\n")).unwrap();
    let provider = Service::provider(&host.url, folder.path()).with_config(commands).with("PROVIDER_KINDS", "nap");
    let mut running = Vec::new();
    for service in services.iter().chain([&provider]) {
        running.push(service.start().await);
    }
    let callers = services.each_ref().map(caller);
    for caller in &callers {
        caller.ready().await;
    }
    callers[0].knows("nap").await;
    let mut late = Vec::new();
    for _ in 0..12 {
        let id = callers[0].submit("nap", &json!({})).await;
        // Each of both, since which of them takes the reply is chance.
        let waits = join_all(callers.iter().map(async |caller| {
            let path = format!("/v1/operations/{id}?redirect=false");
            let response = caller.request("GET", &path).header("prefer", "wait=30").send().await.unwrap();
            let operation: Value = response.json().await.unwrap();
            assert_eq!(operation["status"], "Succeeded", "{operation}");
            let ended: Timestamp = operation["lastUpdatedAt"].as_str().unwrap().parse().unwrap();
            Timestamp::now().duration_since(ended).as_millis()
        }));
        late.push(waits.await.into_iter().max());
    }
    late.sort_unstable();
    assert!(late[late.len() / 2] < Some(1000), "milliseconds from an outcome until both had learnt it: {late:?}");
    drop(running);
    host.delete().await;
}

/// Callers who know both instances: what they cannot ask of one they ask of the other, with the same key.
struct Callers {
    bases: [String; 2],
    http: reqwest::Client,
    ended: AtomicUsize,
}

impl Callers {
    /// Places an order and learns its outcome, whatever it takes; the operation's id.
    async fn place(&self, number: usize) -> String {
        let id = self
            .ask(number, |base| {
                let request = self.http.post(format!("{base}/v1/requests/order.place"));
                request.header("idempotency-key", format!("\"order-{number}\"")).json(&order())
            })
            .await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        loop {
            let path = format!("/v1/operations/{id}?redirect=false");
            let operation =
                self.ask(number, |base| self.http.get(format!("{base}{path}")).header("prefer", "wait=10")).await;
            match operation["status"].as_str() {
                Some("NotStarted" | "Running") => {}
                Some("Succeeded") => break,
                _ => panic!("{operation}"),
            }
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
        id
    }

    /// The first answer that is none of 503.
    async fn ask(&self, number: usize, request: impl Fn(&str) -> reqwest::RequestBuilder) -> Value {
        for base in self.bases.iter().cycle().skip(number % 2) {
            match request(base).send().await {
                Ok(response) if response.status().is_success() => return response.json().await.unwrap(),
                Ok(response) => assert_eq!(response.status(), 503, "{}", response.text().await.unwrap()),
                Err(error) => assert!(error.is_connect() || error.is_request() || error.is_body(), "{error:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
        unreachable!("both are asked for ever")
    }

    async fn have_ended(&self, count: usize) {
        harness::eventually("operations end", async || match self.ended.load(Ordering::Relaxed) {
            ended if ended >= count => Ok(()),
            ended => Err(format!("{ended} of {count}")),
        })
        .await;
    }
}

/// With a hundred orders under way all the time, one of two requestors, one of two providers and one of three brokers are
/// killed at once.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_requestors_and_providers_and_one_of_three_brokers_may_be_killed_under_load() {
    const ORDERS: usize = 1000;
    let cluster = Cluster::start().await.unwrap();
    let host = cluster.virtual_host().await;
    let (folder, database) = (tempfile::tempdir().unwrap(), Postgres::shared().await.database().await);
    let (url, store) = (cluster.url(&host), database.url.expose());
    // What was lost with a node that was killed is sent again sooner than people would want.
    let services = ["a", "b"].map(|name| {
        requestor(name, &url, store, folder.path())
            .with("REQUESTOR_REDRIVE__WAITING", "10s")
            .with("REQUESTOR_REDRIVE__WAITING_MAX", "20s")
            .with("REQUESTOR_REDRIVE__QUIET", "15s")
    });
    let providers = ["c", "d"].map(|name| provider(name, &url, store, folder.path()));
    let [mut killed, mut left] = [services[0].start().await, services[1].start().await];
    let [mut killed_provider, mut left_provider] = [providers[0].start().await, providers[1].start().await];
    for service in &services {
        caller(service).ready().await;
    }
    let bases = services.each_ref().map(|service| format!("http://127.0.0.1:{}", service.port()));
    let callers = Callers { bases, http: http_client(), ended: AtomicUsize::new(0) };
    let next = AtomicUsize::new(0);
    let asking = join_all((0..100).map(|_| async {
        let mut ids = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= ORDERS {
                return ids;
            }
            ids.push(callers.place(number).await);
        }
    }));
    let harm = async {
        callers.have_ended(ORDERS / 5).await;
        let node = cluster.leader(&host, &topology::request_queue("order.place")).await;
        killed.kill();
        killed_provider.kill();
        cluster.inflict(Fault::Kill, node).await;
        callers.have_ended(ORDERS / 2).await;
        cluster.heal(Fault::Kill, node).await;
    };
    let (ids, ()) = tokio::join!(asking, harm);
    let mut ids = ids.concat();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), ORDERS, "each was accepted once");
    let count = i64::try_from(ORDERS).unwrap();
    let ledger = StoreOfTest::Database(database);
    assert_eq!(taken(&ledger).await, (count, count), "stock taken and orders stored");
    assert!(left.terminate().await.success());
    assert!(left_provider.terminate().await.success());
}
