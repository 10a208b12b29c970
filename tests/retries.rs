//! What failed may be attempted again: by policy, by somebody else, or by hand.

use crate::stand_in::StandIn;
use harness::eventually;
use harness::pair::Pair;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::problem::Problem;
use std::time::Duration;

async fn retry(pair: &Pair, id: &str) -> (u16, Value) {
    let response = pair.request("POST", &format!("/v1/operations/{id}/retry")).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn broken() -> Problem {
    Problem::new("broken", 500, "Broken", "it does not work")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_says_when_to_come_back_and_then_the_fallback_is_asked() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.retries.pause = Duration::from_millis(1);
    pair.requestor_config.retries.attempts = 2;
    pair.requestor_config.kinds.get_mut("echo").unwrap().fallback = Some("order.place".into());
    let provider = StandIn::join(&pair, &["echo", "order.place"]).await;
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("echo", &json!(1)).await;
    let first = provider.request("echo").await;
    let asked = Timestamp::now();
    provider.be_busy(&first, Some(Duration::from_secs(2))).await;
    let waiting = eventually("the next attempt is known", async || {
        let operation = pair.operation(&id).await;
        if operation["nextAttemptAt"].is_string() { Ok(operation) } else { Err(operation.to_string()) }
    })
    .await;
    assert_eq!(waiting["lastProblem"]["title"], "Busy");
    let second = provider.request("echo").await;
    assert_eq!((second.attempt, second.identity()), (2, first.identity()));
    assert!(Timestamp::now().duration_since(asked).as_millis() >= 2000, "it came too early");

    provider.be_busy(&second, None).await;
    let other = provider.request("order.place").await;
    assert_eq!((other.step, other.attempt, &other.content), (2, 1, &first.content));
    // The first provider changes its mind, too late.
    provider.succeed(&second, "1").await;
    provider.succeed(&other, "2").await;
    assert_eq!(pair.result(&id).await, 2);
    let operation = pair.operation(&id).await;
    assert_eq!((operation["kind"].as_str(), operation["stepKind"].as_str()), (Some("echo"), Some("order.place")));
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_turns_the_same_url_green() {
    let mut pair = Pair::prepare().await;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("echo", &json!(1)).await;
    assert_eq!(retry(&pair, &id).await.1["type"], "urn:problem-type:arr:not-failed", "it has not ended");
    let first = provider.request("echo").await;
    provider.fail(&first, broken()).await;
    assert_eq!(pair.ended(&id).await["error"]["title"], "Broken");

    let (status, operation) = retry(&pair, &id).await;
    assert_eq!((status, operation["status"].as_str(), operation["attempt"].as_u64()), (202, Some("Running"), Some(2)));
    assert!(operation.get("expiresAt").is_none() && operation.get("error").is_none(), "{operation}");
    let second = provider.request("echo").await;
    assert_eq!((second.identity(), second.attempt), (first.identity(), 2));
    // What the first attempt said may come again.
    provider.fail(&first, broken()).await;
    provider.succeed(&second, "3").await;
    assert_eq!(pair.result(&id).await, 3);
    let (status, problem) = retry(&pair, &id).await;
    assert_eq!((status, problem["type"].as_str()), (409, Some("urn:problem-type:arr:not-failed")));
    assert_eq!(retry(&pair, "01a2076b-5594-7450-ab5f-b6f5ebe0fa56").await.0, 404);
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_succeeded_late_or_failed_long_ago_is_not_retried() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.operations.retry_window = Duration::ZERO;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let failed = pair.submit("echo", &json!(1)).await;
    provider.fail(&provider.request("echo").await, broken()).await;
    pair.ended(&failed).await;
    let (status, problem) = retry(&pair, &failed).await;
    assert_eq!((status, problem["type"].as_str()), (409, Some("urn:problem-type:arr:too-late-to-retry")));

    let late = pair.post("echo").header("operation-timeout", "1s").body("1").send().await.unwrap();
    let late: Value = late.json().await.unwrap();
    let late = late["id"].as_str().unwrap();
    let request = provider.request("echo").await;
    pair.ended(late).await;
    provider.succeed(&request, "1").await;
    eventually("the late outcome is there", async || {
        let (_, problem) = retry(&pair, late).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        if detail.contains("lateOutcome") { Ok(()) } else { Err(problem.to_string()) }
    })
    .await;
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_runs_out_has_the_request_sent_again() {
    let mut pair = Pair::prepare().await;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("echo", &json!(1)).await;
    let first = provider.request("echo").await;
    provider.report(&first, 10.0, Some(Duration::from_secs(1))).await;
    let again = provider.request("echo").await;
    assert_eq!((again.identity(), again.attempt), (first.identity(), 1), "the same attempt, for somebody else");
    provider.report(&again, 20.0, Some(Duration::ZERO)).await;
    let once_more = provider.request("echo").await;
    provider.succeed(&once_more, "1").await;
    assert_eq!(pair.result(&id).await, 1);
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_sent_fails_alone() {
    let mut pair = Pair::prepare().await;
    // Accepted over HTTP, but more than a message may have.
    pair.requestor_config.broker.message_bytes_max = 1000;
    pair.requestor_config.redrive.unroutable_max = Duration::from_millis(100);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let huge = pair.submit("echo", &json!("x".repeat(2000))).await;
    let fine = pair.submit("echo", &json!("fine")).await;
    assert_eq!(pair.result(&fine).await, "fine");
    let operation = pair.ended(&huge).await;
    assert_eq!(operation["error"]["type"], "urn:problem-type:arr:unpublishable");
    pair.finish().await;
}
