//! A node of a cluster is killed, paused or cut off.

use futures_util::future::join_all;
use harness::broker::cluster::{Cluster, Fault};
use harness::caller::Caller;
use harness::process::Service;
use serde_json::json;
use shared::topology;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

/// Callers that each ask twice a second: enough to have requests in flight all the time, few enough for two cores that
/// also run three brokers.
const CALLERS: usize = 10;
const PACE: Duration = Duration::from_millis(500);

/// What the callers have seen.
#[derive(Default)]
struct Seen {
    /// Operations that were answered 202, or at once.
    accepted: Mutex<Vec<String>>,
    /// When an outcome came.
    outcomes: Mutex<Vec<Instant>>,
}

impl Seen {
    /// Places orders until `done`, each time waiting for the outcome.
    async fn place_orders(&self, caller: &Caller, done: &CancellationToken) {
        let order = json!({"customer": "Ada", "items": [{"sku": "mouse", "quantity": 1, "unitPriceCents": 1999}]});
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while done.run_until_cancelled(pace.tick()).await.is_some() {
            let id = caller.submit("order.place", &order).await;
            self.accepted.lock().unwrap().push(id.clone());
            caller.result(&id).await;
            self.outcomes.lock().unwrap().push(Instant::now());
        }
    }

    /// Waits until outcomes come that were asked for after this call.
    async fn flows(&self) {
        let after = self.outcomes.lock().unwrap().len() + 2 * CALLERS;
        harness::eventually("outcomes come again", async || {
            let now = self.outcomes.lock().unwrap().len();
            if now >= after { Ok(()) } else { Err(format!("{now} of {after}")) }
        })
        .await;
    }

    /// The longest time without any outcome since `start`.
    fn longest_gap(&self, start: Instant) -> Duration {
        let outcomes = self.outcomes.lock().unwrap();
        let mut moments: Vec<_> = outcomes.iter().copied().filter(|moment| *moment >= start).collect();
        moments.extend([start, Instant::now()]);
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }
}

/// Orders are placed all the while. The leader of the requests is killed, that of the replies stands still, and that of
/// the requests is cut off. None is lost, and none is placed twice.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "the figures are what this test is for")]
async fn a_cluster_may_lose_any_one_of_its_nodes_in_any_way() {
    let cluster = Cluster::start().await.unwrap();
    let host = cluster.virtual_host().await;
    let folder = tempfile::tempdir().unwrap();
    let requestor = Service::requestor(&cluster.url(&host), folder.path());
    let provider = Service::provider(&cluster.url(&host), folder.path());
    let caller = Caller::new(format!("http://127.0.0.1:{}", requestor.port()));
    let (mut requestor, mut provider) = (requestor.start().await, provider.start().await);
    let (seen, done) = (Seen::default(), CancellationToken::new());
    let (requests, replies) = (topology::request_queue("order.place"), topology::reply_queue("default"));
    let faults = async {
        seen.flows().await;
        for (fault, queue, lasting) in
            [(Fault::Kill, &requests, 5), (Fault::Pause, &replies, 15), (Fault::Cut, &requests, 25)]
        {
            let [leader, other] = [cluster.leader(&host, &requests).await, cluster.leader(&host, &replies).await];
            let node = if *queue == requests { leader } else { other };
            let start = Instant::now();
            cluster.inflict(fault, node).await;
            sleep(Duration::from_secs(lasting)).await;
            cluster.heal(fault, node).await;
            seen.flows().await;
            eprintln!(
                "{fault:?} of node {node} for {lasting} s (requests led by {leader}, replies by {other}): \
                 longest gap {:.1?}, over after {:.1?}",
                seen.longest_gap(start),
                start.elapsed()
            );
        }
        done.cancel();
    };
    let callers = join_all((0..CALLERS).map(|_| seen.place_orders(&caller, &done)));
    tokio::join!(callers, faults);
    let accepted = seen.accepted.into_inner().unwrap();
    let ledger = rusqlite::Connection::open(folder.path().join("provider.db")).unwrap();
    let ask = |sql| ledger.query_row(sql, [], |row| row.get::<_, usize>(0)).unwrap();
    let (orders, stock) = (ask("select count(*) from orders"), ask("select stock from inventory where sku = 'mouse'"));
    eprintln!("accepted {}, succeeded {}, placed {orders}", accepted.len(), seen.outcomes.into_inner().unwrap().len());
    assert_eq!((orders, 5000 - stock), (accepted.len(), accepted.len()));
    assert!(provider.terminate().await.success());
    assert!(requestor.terminate().await.success());
    harness::pair::nothing_left(&host).await;
}
