//! The facade for callers who know synchronous calls only.

use crate::stand_in::StandIn;
use harness::pair::Pair;
use reqwest::RequestBuilder;
use serde_json::Value;
use shared::message::{Content, Outcome, Reply};

fn call(pair: &Pair, kind: &str, body: &str) -> RequestBuilder {
    let request = pair.request("POST", &format!("/v1/call/{kind}"));
    request.header("content-type", "application/json").body(body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_answered_with_the_bare_result_or_its_problem() {
    let pair = Pair::start().await;
    let answered = call(&pair, "echo", r#"{"a":1}"#).send().await.unwrap();
    assert_eq!(answered.status(), 200);
    assert_eq!(answered.headers()["content-type"], "application/json");
    assert!(answered.headers().contains_key("ratelimit"));
    let result = answered.headers()["content-location"].to_str().unwrap().to_owned();
    assert_eq!(result, format!("{}/result", answered.headers()["operation-location"].to_str().unwrap()));
    assert_eq!(answered.text().await.unwrap(), r#"{"a":1}"#);

    let order = r#"{"customer":"Ada","items":[{"sku":"unicorn","quantity":1,"unitPriceCents":999999}]}"#;
    let failed = call(&pair, "order.place", order).send().await.unwrap();
    assert_eq!(failed.status(), 409);
    assert_eq!(failed.headers()["content-type"], "application/problem+json");
    assert_eq!(failed.json::<Value>().await.unwrap()["title"], "Out of stock");

    for (kind, body, status) in [("nope", "1", 404), ("echo", "{", 400), ("order.place", "{}", 422)] {
        assert_eq!(call(&pair, kind, body).send().await.unwrap().status(), status, "{kind} {body}");
    }
    assert_eq!(pair.get("/v1/call/echo").await.status(), 405);
    let keyed = |path: &str| {
        let request = pair.request("POST", path).header("content-type", "application/json");
        request.header("idempotency-key", "\"k\"").body("7").send()
    };
    let called = keyed("/v1/call/echo").await.unwrap();
    let location = called.headers()["operation-location"].clone();
    assert_eq!(keyed("/v1/requests/echo").await.unwrap().headers()["location"], location, "it is the same request");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_too_long_is_told_where_its_outcome_will_be() {
    let mut pair = Pair::prepare().await;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let late = call(&pair, "echo", "1").header("prefer", "wait=1").send().await.unwrap();
    assert_eq!(late.status(), 504);
    assert_eq!(late.headers()["content-type"], "application/problem+json");
    assert_eq!(late.headers()["preference-applied"], "wait=1");
    assert!(late.headers().contains_key("retry-after"));
    let url = late.headers()["operation-location"].to_str().unwrap().to_owned();
    assert_eq!(late.headers()["link"], format!("<{url}>; rel=\"status\"").as_str());
    let problem: Value = late.json().await.unwrap();
    assert_eq!(
        (problem["type"].as_str(), problem["operation"].as_str()),
        (Some("urn:problem-type:arr:not-in-time"), Some(&*url))
    );
    let request = provider.request("echo").await;
    let content = Content { content_type: "text/plain".into(), body: "late".into() };
    provider.reply(&request, Reply::new(request.step, request.attempt, Outcome::Succeeded(content))).await;
    let path = url.strip_prefix(&pair.base).unwrap();
    let id = path.rsplit('/').next().unwrap();
    pair.ended(id).await;
    let result = pair.get(&format!("{path}/result")).await;
    assert_eq!(result.headers()["content-type"], "text/plain");
    assert_eq!(result.text().await.unwrap(), "late");
    provider.leave().await;
    pair.finish().await;
}
