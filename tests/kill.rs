//! Processes are killed without notice, and end in order when they are told to.

use futures_util::future::join_all;
use harness::orders::{order, taken};
use harness::pair::drained;
use harness::services::{Services, analysis};
use serde_json::Value;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_killed_in_mid_job_is_replaced_by_redelivery() {
    let mut stack = Services::prepare("").await;
    // The requestor does not send again, so only the broker can.
    for pause in ["QUIET", "WAITING", "WAITING_MAX"] {
        stack.requestor = stack.requestor.with(&format!("REQUESTOR_REDRIVE__{pause}"), "1h");
    }
    let (mut provider, mut requestor) = (stack.provider.start().await, stack.requestor.start().await);
    let id = stack.caller.submit("risk.analyze", &analysis()).await;
    stack.caller.reached(&id, &["Running"]).await;
    provider.kill();
    provider = stack.provider.start().await;
    stack.caller.result(&id).await;
    assert!(provider.terminate().await.success());
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_killed_straight_after_a_202_still_keeps_its_word() {
    let stack = Services::prepare("").await;
    let mut provider = stack.provider.start().await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        let mut requestor = stack.requestor.start().await;
        ids.push(stack.caller.submit("order.place", &order()).await);
        requestor.kill();
    }
    let mut requestor = stack.requestor.start().await;
    for id in &ids {
        stack.caller.result(id).await;
    }
    assert_eq!(taken(&stack.ledger).await, (10, 10));
    assert!(provider.terminate().await.success());
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_both_in_order_and_loses_nothing() {
    let stack = Services::prepare("").await;
    let (mut provider, mut requestor) = (stack.provider.start().await, stack.requestor.start().await);
    let mut ids = Vec::new();
    for round in 0..4 {
        let batch = join_all((0..50).map(|_| async { stack.caller.try_submit("order.place", &order()).await }));
        let half = async {
            if round % 2 == 0 {
                assert!(provider.terminate().await.success());
                provider = stack.provider.start().await;
            } else {
                assert!(requestor.terminate().await.success());
                requestor = stack.requestor.start().await;
            }
        };
        let (answers, ()) = tokio::join!(batch, half);
        for response in answers.into_iter().flatten().filter(|response| response.status() == 202) {
            ids.push(response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned());
        }
    }
    assert!(ids.len() >= 100, "only {} were accepted", ids.len());
    for id in &ids {
        stack.caller.result(id).await;
    }
    // What was sent once more after a restart is still to be answered, and the answer to be taken.
    drained(&stack.host).await;
    assert!(provider.terminate().await.success());
    drained(&stack.host).await;
    assert!(requestor.terminate().await.success());
    for log in [stack.provider.log(), stack.requestor.log()] {
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
    stack.finish().await;
}

/// Five redeliveries are the limit of a request queue, so the sixth provider is the last.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_provider_survives_is_given_up() {
    let stack = Services::prepare("").await;
    let mut requestor = stack.requestor.start().await;
    let mut long = analysis();
    long["paths"] = 20_000_000.into();
    let id = stack.caller.submit("risk.analyze", &long).await;
    let (mut providers, mut seen) = (0, stack.caller.operation(&id).await);
    while seen["status"] != "Failed" {
        let mut provider = stack.provider.start().await;
        seen = harness::eventually("there is news of the request", async || {
            let now = stack.caller.operation(&id).await;
            if now["lastUpdatedAt"] == seen["lastUpdatedAt"] { Err(now.to_string()) } else { Ok(now) }
        })
        .await;
        provider.kill();
        providers += 1;
    }
    // The last provider finds nothing to do; a report of one that was killed may count as news of the next.
    assert!((6..20).contains(&providers), "{providers}");
    let operation = stack.caller.ended(&id).await;
    assert_eq!(operation["error"]["type"], "urn:problem-type:arr:poison", "{operation}");
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}

/// 2,000 orders from 16 callers, while the provider is killed ten times and the requestor five times.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "the figures are what this test is for")]
async fn two_thousand_orders_survive_fifteen_kills() {
    const ORDERS: usize = 2000;
    const CALLERS: usize = 16;
    let stack = Services::prepare("").await;
    let mut provider = stack.provider.start().await;
    let mut requestor = stack.requestor.start().await;
    let accepted = std::sync::Mutex::new(Vec::new());
    let count = || accepted.lock().unwrap().len();
    let callers = join_all((0..CALLERS).map(|_| async {
        while count() < ORDERS {
            // A requestor that was killed answers nothing, or resets; only a whole 202 counts.
            let Ok(response) = stack.caller.try_submit("order.place", &order()).await else {
                stack.requestor.listening().await;
                continue;
            };
            let accepting = response.status() == 202;
            if let Ok(operation) = response.json::<Value>().await
                && accepting
            {
                accepted.lock().unwrap().push(operation["id"].as_str().unwrap().to_owned());
            }
        }
    }));
    let killer = async {
        for kill in 1..=15 {
            // Spread over the whole load, so that each kill hits work in flight.
            harness::eventually("the load goes on", async || {
                let now = count();
                if now >= kill * ORDERS / 16 { Ok(()) } else { Err(now.to_string()) }
            })
            .await;
            if kill % 3 == 0 {
                requestor.kill();
                requestor = stack.requestor.start().await;
            } else {
                provider.kill();
                provider = stack.provider.start().await;
            }
        }
    };
    tokio::join!(callers, killer);
    let ids = accepted.into_inner().unwrap();
    let mut succeeded = 0;
    for id in &ids {
        stack.caller.result(id).await;
        succeeded += 1;
    }
    // Orders whose 202 was lost with the requestor are placed as well, and must have ended before stock is counted.
    stack.caller.none_open().await;
    let [recorded] = stack.store.numbers("select count(*) from operations where status = 2").await;
    let (stock, orders) = taken(&stack.ledger).await;
    eprintln!(
        "accepted {}, succeeded {succeeded}, recorded {recorded}, orders {orders}, stock taken {}",
        ids.len(),
        stock
    );
    assert!(ids.len() >= ORDERS);
    assert_eq!((recorded, stock), (orders, orders));
    assert!(provider.terminate().await.success());
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}

/// Nothing else could bring such a reply back: the request is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn replies_that_were_taken_and_not_stored_come_again() {
    let stack = Services::prepare("").await;
    let (mut provider, mut requestor) = (stack.provider.start().await, stack.requestor.start().await);
    stack.caller.result(&stack.caller.submit("order.place", &order()).await).await;
    assert!(requestor.terminate().await.success());
    let mut patient = stack.requestor.clone();
    for pause in ["UNCONFIRMED", "QUIET", "WAITING", "WAITING_MAX"] {
        patient = patient.with(&format!("REQUESTOR_REDRIVE__{pause}"), "1h");
    }
    let dying = patient.clone().with("FAILPOINTS", "requestor.received=return");
    let mut requestor = dying.start().await;
    stack.caller.ready().await;
    let id = stack.caller.submit("order.place", &order()).await;
    // What says that the request was begun may be taken before its reply: each round takes one batch of either.
    for round in 0..5 {
        let ended = tokio::time::timeout(Duration::from_secs(30), requestor.ended()).await;
        assert!(!ended.unwrap_or_else(|_| panic!("nothing is left to take in round {round}")).success());
        requestor = dying.spawn();
    }
    requestor.kill();
    let mut requestor = patient.start().await;
    stack.caller.result(&id).await;
    assert_eq!(taken(&stack.ledger).await, (2, 2));
    assert!(provider.terminate().await.success());
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}

/// An autoscaler must neither miss work nor be told of work that is done.
#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_counts_what_is_accepted_and_not_ended() {
    let stack = Services::prepare("").await;
    let mut requestor = stack.requestor.start().await;
    for _ in 0..3 {
        stack.caller.submit("order.place", &order()).await;
    }
    let backlog = async |expected: f64| {
        harness::eventually("the backlog is counted", async || {
            let counted = stack.caller.metric("arr_backlog", "kind=\"order.place\"").await;
            if (counted - expected).abs() < 0.5 { Ok(()) } else { Err(counted.to_string()) }
        })
        .await;
    };
    backlog(3.0).await;
    let mut provider = stack.provider.start().await;
    backlog(0.0).await;
    assert!(provider.terminate().await.success());
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}
