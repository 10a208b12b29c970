//! From the request to its result, and every answer on the way.

use harness::pair::Pair;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_accepted_followed_and_answered() {
    let pair = Pair::start().await;
    let response = pair.try_submit("echo", &json!({"hello": "world"})).await.unwrap();
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(response.headers()["operation-location"], location.as_str());
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.headers()["cache-control"], "no-store");
    let operation: serde_json::Value = response.json().await.unwrap();
    let id = operation["id"].as_str().unwrap();
    assert_eq!(location, format!("{}/v1/operations/{id}", pair.base));
    assert!(["NotStarted", "Running"].contains(&operation["status"].as_str().unwrap()), "{operation}");

    pair.ended(id).await;
    let response = pair.get(&format!("/v1/operations/{id}")).await;
    assert_eq!(response.status(), 303);
    assert_eq!(response.headers()["location"], format!("{location}/result").as_str());
    let response = pair.get(&format!("/v1/operations/{id}/result")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.text().await.unwrap(), r#"{"hello":"world"}"#);
    pair.finish().await;
}
