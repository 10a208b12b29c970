//! What bad input gets.

use harness::pair::Pair;
use reqwest::Response;
use serde_json::{Value, json};

async fn problem(response: Response, status: u16, name: &str) -> Value {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], format!("urn:problem-type:arr:{name}"));
    assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
    problem
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_problem_that_helps_and_leave_nothing() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    let post = |path: &str, content_type: &str, body: &str| {
        pair.request("POST", path).header("content-type", content_type).body(body.to_owned()).send()
    };
    let json_type = "application/json";

    let unknown = problem(post("/v1/requests/nope", json_type, "1").await.unwrap(), 404, "unknown-kind").await;
    let kinds = unknown["kinds"].as_array().unwrap();
    assert!(kinds.contains(&json!("echo")) && kinds.contains(&json!("video.publish")), "{kinds:?}");
    problem(post("/v1/requests/echo", "text/plain", "1").await.unwrap(), 415, "unsupported-media-type").await;
    for bad in ["", "{", "\"\\ud800\"", "1e400", "1 2", "\u{feff}1"] {
        problem(post("/v1/requests/echo", json_type, bad).await.unwrap(), 400, "not-json").await;
    }
    let not_utf8 =
        pair.request("POST", "/v1/requests/echo").header("content-type", json_type).body(vec![b'"', 0xff, b'"']);
    problem(not_utf8.send().await.unwrap(), 400, "not-json").await;
    let large = format!("\"{}\"", "x".repeat(pair.requestor_config.http.body_bytes_max));
    problem(post("/v1/requests/echo", json_type, &large).await.unwrap(), 413, "too-large").await;
    problem(post("/v1/requests/echo?priority=10", json_type, "1").await.unwrap(), 400, "bad-request").await;
    problem(post("/v1/requests/echo?colour=red", json_type, "1").await.unwrap(), 400, "bad-request").await;
    for bad in ["soon", "0s", "25h", "30"] {
        let request = pair.request("POST", "/v1/requests/echo").header("content-type", json_type).body("1");
        let refused = problem(request.header("operation-timeout", bad).send().await.unwrap(), 400, "bad-request").await;
        assert!(refused["detail"].as_str().unwrap().contains("Operation-Timeout"), "{refused}");
    }

    problem(pair.get("/v1/operations/nope").await, 404, "not-found").await;
    problem(pair.get("/v1/operations/00000000-0000-7000-8000-000000000000").await, 404, "not-found").await;
    problem(pair.get("/v1/operations/00000000-0000-7000-8000-000000000000/result").await, 404, "not-found").await;
    problem(pair.get("/v1/operations?status=Done").await, 400, "bad-request").await;
    problem(pair.get("/v1/operations?pageToken=2").await, 400, "bad-request").await;
    problem(pair.get("/nope").await, 404, "not-found").await;
    let response = pair.get("/v1/requests/echo").await;
    assert_eq!(response.headers()["allow"], "POST");
    problem(response, 405, "method-not-allowed").await;

    assert_eq!(pair.get_json("/v1/operations").await["operations"], json!([]), "nothing was accepted");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_violation_of_the_schema_is_told_with_its_pointer() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    let order = json!({"customer": "", "items": [{"sku": "mouse", "quantity": 0, "colour": "red"}]});
    let refused = problem(pair.try_submit("order.place", &order).await.unwrap(), 422, "invalid-request").await;
    let mut pointers: Vec<_> =
        refused["errors"].as_array().unwrap().iter().map(|e| e["pointer"].as_str().unwrap()).collect();
    pointers.sort_unstable();
    // Missing price and unknown colour are both told of the line itself.
    assert_eq!(pointers, ["/customer", "/items/0", "/items/0", "/items/0/quantity"], "{refused}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_the_schema_and_not_the_handler_is_a_failure_with_a_pointer() {
    let pair = Pair::start().await;
    let portfolio = json!({"weights": [1.0], "means": [0.0, 0.0], "covariance": [[0.0001]], "horizonDays": 1, "paths": 1000, "seed": 1});
    let id = pair.submit("risk.analyze", &portfolio).await;
    let failed = pair.ended(&id).await;
    assert_eq!(failed["error"]["status"], 422, "{failed}");
    assert_eq!(failed["error"]["errors"][0]["pointer"], "/means");

    let line = json!({"sku": "mouse", "quantity": 1, "unitPriceCents": 1999});
    let id = pair.submit("order.place", &json!({"customer": "Ada", "items": [line, line]})).await;
    assert_eq!(pair.ended(&id).await["error"]["errors"][0]["pointer"], "/items/1/sku");
    pair.finish().await;
}
