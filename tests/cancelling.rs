//! An operation is canceled only by the proof that its effect has not happened.

use crate::stand_in::StandIn;
use harness::eventually;
use harness::pair::Pair;
use requestor::config::PipelineConfig;
use serde_json::{Value, json};
use shared::problem::Problem;
use std::time::Duration;

async fn pair_with_stand_in() -> (Pair, StandIn) {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.cancel.resend = Duration::from_millis(200);
    let stand_in = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    (pair, stand_in)
}

async fn cancel(pair: &Pair, method: &str, path: &str) -> (u16, Value) {
    let response = pair.request(method, path).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_providers_answer_makes_it_canceled() {
    let (pair, provider) = pair_with_stand_in().await;
    let id = pair.submit("echo", &json!(1)).await;
    let request = provider.request("echo").await;
    let response = pair.request("DELETE", &format!("/v1/operations/{id}")).send().await.unwrap();
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["location"], format!("{}/v1/operations/{id}", pair.base).as_str());
    let operation: Value = response.json().await.unwrap();
    assert_eq!(
        (operation["cancelRequested"].as_bool(), operation["status"].as_str()),
        (Some(true), Some("NotStarted"))
    );
    let wish = provider.cancel().await;
    assert_eq!(wish.identity(), request.identity().unwrap());
    assert_eq!((wish.kind.as_str(), wish.attempt), ("echo", 1));
    assert_eq!(pair.operation(&id).await["status"], "NotStarted", "it is not canceled yet");

    provider.fail(&request, Problem::canceled()).await;
    let operation = pair.ended(&id).await;
    assert_eq!(operation["status"], "Canceled");
    let result = pair.get(&format!("/v1/operations/{id}/result")).await;
    assert_eq!(result.status(), 409);
    let problem: Value = result.json().await.unwrap();
    assert_eq!((&problem["type"], &problem), (&json!("urn:problem-type:arr:canceled"), &operation["error"]));
    let (status, again) = cancel(&pair, "POST", &format!("/v1/operations/{id}/cancel")).await;
    assert_eq!((status, again["status"].as_str()), (200, Some("Canceled")));
    let unknown = "/v1/operations/01a2076b-5594-7450-ab5f-b6f5ebe0fa56";
    assert_eq!(cancel(&pair, "DELETE", unknown).await.0, 404);
    assert_eq!(cancel(&pair, "POST", &format!("{unknown}/cancel")).await.0, 404);
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wish_is_sent_until_it_is_answered_and_an_effect_that_happened_counts() {
    let (mut pair, provider) = pair_with_stand_in().await;
    let id = pair.submit("echo", &json!(1)).await;
    let request = provider.request("echo").await;
    assert_eq!(cancel(&pair, "POST", &format!("/v1/operations/{id}/cancel")).await.0, 202);
    let first = provider.cancel().await;
    assert_eq!(provider.cancel().await, first, "it is sent again");
    pair.stop_requestor().await;
    pair.start_requestor();
    assert_eq!(provider.cancel().await, first, "and a requestor that was away still knows");
    provider.succeed(&request, "2").await;
    assert_eq!(pair.result(&id).await, 2);
    assert_eq!(pair.operation(&id).await["cancelRequested"], true);
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attempt_follows_what_is_to_be_canceled() {
    let (pair, provider) = pair_with_stand_in().await;
    let id = pair.submit("echo", &json!(1)).await;
    let request = provider.request("echo").await;
    cancel(&pair, "DELETE", &format!("/v1/operations/{id}")).await;
    provider.be_busy(&request, None).await;
    eventually("the failure is known", async || {
        let operation = pair.operation(&id).await;
        if operation["lastProblem"]["title"] == "Busy" { Ok(()) } else { Err(operation.to_string()) }
    })
    .await;
    provider.fail(&request, Problem::canceled()).await;
    let operation = pair.ended(&id).await;
    assert_eq!((operation["status"].as_str(), operation["attempt"].as_u64()), (Some("Canceled"), Some(1)));
    assert_eq!(provider.waiting("echo").await, 0, "nothing was sent again");
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_is_to_be_canceled_begins_no_other_step() {
    let mut pair = Pair::prepare().await;
    let steps = vec!["echo".into(), "echo".into()];
    pair.requestor_config.pipelines.insert("twice".into(), PipelineConfig { steps, timeout: None });
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("twice", &json!(1)).await;
    let request = provider.request("echo").await;
    cancel(&pair, "DELETE", &format!("/v1/operations/{id}")).await;
    provider.succeed(&request, "2").await;
    let operation = pair.ended(&id).await;
    assert_eq!((operation["status"].as_str(), &operation["error"]["stepsDone"]), (Some("Canceled"), &json!(1)));
    assert_eq!(provider.waiting("echo").await, 0);
    provider.leave().await;
    pair.finish().await;
}
