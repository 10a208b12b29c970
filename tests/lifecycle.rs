//! From the request to its result, and every answer on the way.

use harness::pair::Pair;
use provider::{Context, Failure, Provider};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Notify;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_accepted_followed_and_answered() {
    let pair = Pair::start().await;
    let response = pair.try_submit("echo", &json!({"hello": "world"})).await.unwrap();
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(response.headers()["operation-location"], location.as_str());
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.headers()["cache-control"], "no-store");
    let operation: Value = response.json().await.unwrap();
    let id = operation["id"].as_str().unwrap();
    assert_eq!(location, format!("{}/v1/operations/{id}", pair.base));
    assert_eq!(operation["status"], "NotStarted");

    let ended = pair.ended(id).await;
    assert_eq!(ended["createdAt"], operation["createdAt"]);
    let response = pair.get(&format!("/v1/operations/{id}")).await;
    assert_eq!(response.status(), 303);
    assert_eq!(response.headers()["location"], format!("{location}/result").as_str());
    assert!(!response.headers().contains_key("retry-after"), "it would delay the redirect");
    let response = pair.get(&format!("/v1/operations/{id}/result")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.text().await.unwrap(), r#"{"hello":"world"}"#);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_wait_for_the_result() {
    let pair = Pair::start().await;
    let request = pair.post("echo");
    let response = request.header("prefer", "respond-async, wait=30").body("[1,2]").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["preference-applied"], "wait=30", "this was no asynchronous answer");
    let result = response.headers()["content-location"].to_str().unwrap().to_owned();
    let operation = response.headers()["operation-location"].to_str().unwrap();
    assert_eq!(result, format!("{operation}/result"));
    assert_eq!(response.text().await.unwrap(), "[1,2]");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_short_gets_202_and_who_does_not_wait_asks_again() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    let request = pair.post("echo");
    let response = request.header("prefer", "wait=1").body("1").send().await.unwrap();
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["preference-applied"], "wait=1");
    let operation: Value = response.json().await.unwrap();
    let id = operation["id"].as_str().unwrap();
    let status = pair.get(&format!("/v1/operations/{id}")).await;
    assert_eq!(status.status(), 200);
    assert!(status.headers().contains_key("retry-after"));
    let result = pair.get(&format!("/v1/operations/{id}/result")).await;
    assert_eq!(result.status(), 404);
    assert!(result.headers().contains_key("retry-after"));
    assert_eq!(result.headers()["content-type"], "application/problem+json");
    // Nobody has ever served the kind: the request is sent again until somebody does.
    pair.start_provider();
    assert_eq!(pair.result(id).await, 1);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_takes_stock_and_an_impossible_one_takes_none() {
    let pair = Pair::start().await;
    let items = json!([{"sku": "keyboard", "quantity": 3, "unitPriceCents": 4999}]);
    let id = pair.submit("order.place", &json!({"customer": "Ada", "items": items})).await;
    let confirmation = pair.result(&id).await;
    assert_eq!(confirmation["totalCents"], 3 * 4999);
    assert_eq!(confirmation["items"][0]["stockLeft"], 997);

    let items = json!([
        {"sku": "keyboard", "quantity": 1, "unitPriceCents": 4999},
        {"sku": "unicorn", "quantity": 1, "unitPriceCents": 999_999}]);
    let id = pair.submit("order.place", &json!({"customer": "Bob", "items": items})).await;
    let operation = pair.ended(&id).await;
    assert_eq!(operation["status"], "Failed");
    assert_eq!(operation["error"]["type"], "urn:problem-type:arr:out-of-stock");
    assert_eq!(operation["error"]["shortages"], json!([{"sku": "unicorn", "requested": 1, "available": 0}]));
    let status = pair.get(&format!("/v1/operations/{id}")).await;
    assert_eq!(status.status(), 200, "a failure is no redirect");
    let result = pair.get(&format!("/v1/operations/{id}/result")).await;
    assert_eq!(result.status(), 409);
    assert_eq!(result.json::<Value>().await.unwrap(), operation["error"]);

    let items = json!([{"sku": "keyboard", "quantity": 1, "unitPriceCents": 1}]);
    let id = pair.submit("order.place", &json!({"customer": "Eve", "items": items})).await;
    assert_eq!(pair.ended(&id).await["error"]["priceCents"], 4999);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_visible_while_a_handler_works() {
    let mut pair = Pair::prepare().await;
    let finish = Arc::new(Notify::new());
    let wait = Arc::clone(&finish);
    let provider = Provider::builder(pair.provider_config.clone())
        .handle("echo", move |request: Value, context: Context| {
            let wait = Arc::clone(&wait);
            async move {
                context.progress(42.0, "half way");
                wait.notified().await;
                Ok::<_, Failure>(request)
            }
        })
        .build()
        .unwrap();
    pair.start_provider_with(provider);
    pair.start_requestor();
    let id = pair.submit("echo", &json!(1)).await;
    let running = pair.reached(&id, &["Running"]).await;
    assert_eq!((running["percentComplete"].as_f64(), running["message"].as_str()), (Some(42.0), Some("half way")));
    finish.notify_one();
    assert_eq!(pair.result(&id).await, 1);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_analysis_agrees_with_the_closed_form_and_stops_at_its_deadline() {
    let pair = Pair::start().await;
    let mut portfolio = json!({
        "weights": [0.6, 0.4], "means": [0.0, 0.0], "covariance": [[0.0001, 0.0], [0.0, 0.0001]],
        "horizonDays": 5, "paths": 1_000_000, "seed": 1});
    let id = pair.submit("risk.analyze", &portfolio).await;
    let report = pair.result(&id).await;
    let (simulated, exact) = (&report["valueAtRisk"], &report["closedForm"]["valueAtRisk"]);
    let difference = simulated.as_f64().unwrap() - exact.as_f64().unwrap();
    assert!(difference.abs() < 5.0 * report["standardError"].as_f64().unwrap(), "{report}");

    portfolio["paths"] = 20_000_000.into();
    portfolio["horizonDays"] = 2520.into();
    let request = pair.post("risk.analyze");
    let request = request.header("operation-timeout", "2s").header("prefer", "wait=30").body(portfolio.to_string());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 504);
    assert_eq!(response.json::<Value>().await.unwrap()["type"], "urn:problem-type:arr:deadline-exceeded");
    // The cores are free again: an analysis that went on would hold them for hours.
    portfolio["horizonDays"] = 1.into();
    portfolio["paths"] = 1000.into();
    let id = pair.submit("risk.analyze", &portfolio).await;
    pair.result(&id).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_listed_in_pages_newest_first() {
    let pair = Pair::start().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(pair.submit("echo", &json!(n)).await);
    }
    for id in &ids {
        pair.ended(id).await;
    }
    ids.reverse();
    let mut found = Vec::new();
    let mut path = "/v1/operations?kind=echo&status=Succeeded&pageSize=2".to_owned();
    loop {
        let response = pair.get(&path).await;
        let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = response.json().await.unwrap();
        let operations = page["operations"].as_array().unwrap();
        found.extend(operations.iter().map(|operation| operation["id"].as_str().unwrap().to_owned()));
        let Some(link) = link else {
            assert_eq!(page["nextPageToken"], Value::Null);
            break;
        };
        let next = link.strip_prefix('<').unwrap().split_once(">; rel=\"next\"").unwrap().0;
        path = next.strip_prefix(&pair.base).unwrap().to_owned();
    }
    assert_eq!(found, ids);
    assert_eq!(pair.get_json("/v1/operations?kind=order.place").await["operations"], json!([]));
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_retention_is_forgotten() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.operations.retention = std::time::Duration::from_millis(500);
    pair.start_requestor();
    pair.start_provider();
    let id = pair.submit("echo", &json!(1)).await;
    harness::eventually("the operation is forgotten", async || {
        let status = pair.get(&format!("/v1/operations/{id}")).await.status();
        if status == 410 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    pair.finish().await;
}
