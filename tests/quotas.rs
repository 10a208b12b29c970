//! What each caller may have at once.

use crate::callers::add;
use crate::stand_in::StandIn;
use harness::eventually;
use harness::pair::Pair;
use requestor::callers::OwnQuotas;
use requestor::config::PipelineConfig;
use reqwest::Response;
use serde_json::{Value, json};
use shared::problem::Problem;
use std::num::NonZeroU32;
use std::time::Duration;

async fn refused(response: Response, quota: &str) {
    assert_eq!(response.status(), 429);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(problem["violated-policies"], json!([quota]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_to_a_submit_tells_what_is_left_of_the_rate() {
    let mut pair = Pair::prepare().await;
    let (ada, bob) = (add(&mut pair, "ada", false), add(&mut pair, "bob", false));
    pair.requestor_config.quotas.rate_requests = NonZeroU32::new(3).unwrap();
    pair.requestor_config.quotas.rate_window = Duration::from_secs(3600);
    pair.requestor_config.callers.get_mut("bob").unwrap().quotas =
        OwnQuotas { rate_requests: NonZeroU32::new(4), open_max: Some(7), ..Default::default() };
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    // A request that is not accepted counts as well.
    for (body, status, left) in [("1", 202, 2), ("{", 400, 1), ("2", 202, 0)] {
        let response = ada.post("echo").body(body).send().await.unwrap();
        assert_eq!(response.status(), status);
        let policy = "\"rate\";q=3;w=3600, \"open\";q=100000;qu=\"concurrent-requests\"";
        assert_eq!(response.headers()["ratelimit-policy"], policy);
        let limit = response.headers()["ratelimit"].to_str().unwrap();
        assert!(limit.starts_with(&format!("\"rate\";r={left};t=")), "{limit}");
    }
    for path in ["/v1/requests/echo", "/v1/call/echo"] {
        let response = ada.request("POST", path).header("content-type", "application/json").body("3").send();
        let response = response.await.unwrap();
        let wait = response.headers()["retry-after"].to_str().unwrap().to_owned();
        assert_eq!(response.headers()["ratelimit"], format!("\"rate\";r=0;t={wait}").as_str());
        assert!((1100..=1200).contains(&wait.parse::<u32>().unwrap()), "{wait}: until there is a third of the hour's");
        refused(response, "rate").await;
    }
    let response = bob.post("echo").body("1").send().await.unwrap();
    assert_eq!(response.status(), 202, "another caller's rate is another");
    let policy = response.headers()["ratelimit-policy"].to_str().unwrap();
    assert!(policy.contains("q=4;") && policy.contains("q=7;"), "{policy}");
    for caller in [&ada, &bob] {
        for operation in caller.get_json("/v1/operations").await["operations"].as_array().unwrap() {
            caller.ended(operation["id"].as_str().unwrap()).await;
        }
    }
    pair.finish().await;
}

/// Whether what is counted is what is there.
async fn counted_right(pair: &Pair) {
    let there = "select (select count(*) from operations where status < 2),
        (select 1024 * count(*) from operations) + (select coalesce(sum(length(body)), 0) from requests)
        + (select coalesce(sum(length(body)), 0) from results)";
    assert_eq!(pair.store.numbers::<2>("select open, bytes from used").await, pair.store.numbers(there).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_operations_are_counted_across_restarts_and_retries() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.quotas.open_max = 2;
    let steps = PipelineConfig { steps: vec!["echo".into(), "echo".into()], timeout: None };
    pair.requestor_config.pipelines.insert("twice".into(), steps);
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let known = async || pair.post("echo").header("idempotency-key", "k").body("1").send().await.unwrap().status();
    assert_eq!(known().await, 202);
    pair.submit("echo", &json!(2)).await;
    refused(pair.try_submit("echo", &json!(3)).await.unwrap(), "open").await;
    assert_eq!(known().await, 202, "what was accepted before takes no room");
    pair.stop_requestor().await;
    pair.start_requestor();
    pair.ready().await;
    refused(pair.try_submit("echo", &json!(3)).await.unwrap(), "open").await;

    let first = provider.request("echo").await;
    provider.succeed(&first, "1").await;
    pair.ended(&first.correlation_id.to_string()).await;
    pair.submit("echo", &json!(3)).await;
    let second = provider.request("echo").await;
    provider.fail(&second, Problem::new("broken", 500, "Broken", "no")).await;
    let failed = second.correlation_id.to_string();
    pair.ended(&failed).await;
    pair.request("POST", &format!("/v1/operations/{failed}/retry")).send().await.unwrap();
    refused(pair.try_submit("echo", &json!(3)).await.unwrap(), "open").await;
    counted_right(&pair).await;
    for _ in 0..2 {
        let request = provider.request("echo").await;
        provider.succeed(&request, "1").await;
        pair.ended(&request.correlation_id.to_string()).await;
    }
    // The result of a step takes the place of its request.
    let steps = pair.submit("twice", &json!("a long request")).await;
    for result in ["1", "123"] {
        provider.succeed(&provider.request("echo").await, result).await;
    }
    pair.ended(&steps).await;
    counted_right(&pair).await;
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_free_again_once_their_operations_are_forgotten() {
    let mut pair = Pair::prepare().await;
    // Room for one operation whose request and result have 1,002 bytes each.
    pair.requestor_config.quotas.bytes_max = 1024 + 2 * 1002;
    pair.requestor_config.operations.retention = Duration::from_secs(2);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let body = json!("x".repeat(1000));
    let id = pair.submit("echo", &body).await;
    pair.ended(&id).await;
    refused(pair.try_submit("echo", &json!(1)).await.unwrap(), "bytes").await;
    let next = eventually("there is room again", async || {
        let response = pair.try_submit("echo", &body).await.unwrap();
        let status = response.status();
        let accepted: Value = response.json().await.unwrap();
        if status == 202 { Ok(accepted["id"].as_str().unwrap().to_owned()) } else { Err(accepted.to_string()) }
    })
    .await;
    assert_eq!(pair.get(&format!("/v1/operations/{id}")).await.status(), 410);
    pair.ended(&next).await;
    counted_right(&pair).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_all_places_to_wait_is_answered_at_once() {
    let mut pair = Pair::prepare().await;
    let (ada, bob) = (add(&mut pair, "ada", false), add(&mut pair, "bob", false));
    pair.requestor_config.callers.get_mut("ada").unwrap().quotas =
        OwnQuotas { waiters_max: Some(1), ..Default::default() };
    pair.requestor_config.http.waiters_max = 2;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let call = |caller: &harness::caller::Caller| {
        caller.request("POST", "/v1/call/echo").header("content-type", "application/json").body("1").send()
    };
    let waiting = ada.post("echo").header("prefer", "wait=40").body("1").send();
    let meanwhile = async {
        let first = provider.request("echo").await;
        let at_once = ada.post("echo").header("prefer", "wait=40").body("2").send().await.unwrap();
        assert_eq!(at_once.status(), 202);
        assert!(!at_once.headers().contains_key("preference-applied"), "it was not waited for");
        refused(call(&ada).await.unwrap(), "waiters").await;
        let second = provider.request("echo").await;
        let (called, ()) = tokio::join!(call(&bob), async {
            let third = provider.request("echo").await;
            let overloaded = call(&bob).await.unwrap();
            assert_eq!(
                (overloaded.status().as_u16(), &overloaded.headers()["retry-after"]),
                (503, &"1".parse().unwrap())
            );
            provider.succeed(&third, "3").await;
        });
        assert_eq!(called.unwrap().text().await.unwrap(), "3");
        provider.succeed(&first, "1").await;
        provider.succeed(&second, "2").await;
    };
    let (waited, ()) = tokio::join!(waiting, meanwhile);
    assert_eq!(waited.unwrap().status(), 200);
    provider.leave().await;
    pair.finish().await;
}
