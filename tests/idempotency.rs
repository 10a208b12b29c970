//! A request that is repeated with its `Idempotency-Key` is accepted once.

use crate::stand_in::StandIn;
use futures_util::future::join_all;
use harness::caller::Caller;
use harness::eventually;
use harness::pair::Pair;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use std::time::Duration;

fn keyed(caller: &Caller, key: &str, body: &str) -> RequestBuilder {
    caller.post("echo").header("idempotency-key", key).body(body.to_owned())
}

async fn id(response: Response) -> String {
    assert_eq!(response.status(), 202);
    response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

async fn problem(response: Response, status: u16, name: &str) {
    assert_eq!(response.status(), status);
    assert_eq!(response.json::<Value>().await.unwrap()["type"], format!("urn:problem-type:arr:{name}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_is_answered_with_the_same_operation() {
    let mut pair = Pair::start().await;
    let first = keyed(&pair, "\"a-1\"", "[1]").send().await.unwrap();
    let location = first.headers()["location"].clone();
    let first = id(first).await;
    pair.ended(&first).await;
    let again = keyed(&pair, "a-1", "[1]").send().await.unwrap();
    assert_eq!((again.status().as_u16(), &again.headers()["location"]), (202, &location));
    let again: Value = again.json().await.unwrap();
    assert_eq!((again["id"].as_str(), again["status"].as_str()), (Some(first.as_str()), Some("Succeeded")));
    let waited = keyed(&pair, "\"a-1\"", "[1]").header("prefer", "wait=10").send().await.unwrap();
    assert_eq!(waited.status(), 200);
    assert_eq!(waited.text().await.unwrap(), "[1]");

    // Known also to a requestor that has started since.
    pair.stop_requestor().await;
    pair.start_requestor();
    pair.ready().await;
    assert_eq!(id(keyed(&pair, "\"a-1\"", "[1]").send().await.unwrap()).await, first);
    assert_eq!(pair.get_json("/v1/operations").await["operations"].as_array().unwrap().len(), 1);
    let second = id(keyed(&pair, "\"a-2\"", "[1]").send().await.unwrap()).await;
    assert_ne!(second, first);
    pair.ended(&second).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_for_one_request_and_only_what_is_accepted_takes_it() {
    let pair = Pair::start().await;
    let key = "\"8e03978e-40d5-43e8-bc93-6894a57f9324\"";
    problem(keyed(&pair, key, "{").send().await.unwrap(), 400, "not-json").await;
    let first = id(keyed(&pair, key, "1").send().await.unwrap()).await;
    let order = r#"{"customer":"Ada","items":[{"sku":"mouse","quantity":1,"unitPriceCents":1999}]}"#;
    let others = [
        keyed(&pair, key, "2"),
        keyed(&pair, key, " 1"),
        keyed(&pair, key, "1").header("operation-timeout", "30s"),
        pair.request("POST", "/v1/requests/echo?priority=3")
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body("1"),
        pair.post("order.place").header("idempotency-key", key).body(order),
    ];
    for other in others {
        problem(other.send().await.unwrap(), 422, "idempotency-key-reused").await;
    }
    // What says how to answer, and not what to do, may differ.
    let traced =
        keyed(&pair, key, "1").header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(id(traced.header("prefer", "respond-async").send().await.unwrap()).await, first);
    let long = "x".repeat(256);
    for bad in ["\"\"", "\"a", "a b", &long, "\"a\", \"b\""] {
        problem(keyed(&pair, bad, "1").send().await.unwrap(), 400, "bad-request").await;
    }
    let two = keyed(&pair, "\"a\"", "1").header("idempotency-key", "\"b\"");
    problem(two.send().await.unwrap(), 400, "bad-request").await;
    pair.ended(&first).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_is_being_answered_others_are_refused() {
    let mut pair = Pair::prepare().await;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let waiting = keyed(&pair, "\"a\"", "1").header("prefer", "wait=40").send();
    let meanwhile = async {
        let request = provider.request("echo").await;
        let refused = keyed(&pair, "\"a\"", "1").send().await.unwrap();
        assert_eq!(refused.headers()["retry-after"], "1");
        problem(refused, 409, "idempotency-key-in-flight").await;
        provider.succeed(&request, "1").await;
        request.correlation_id.to_string()
    };
    let (waited, operation) = tokio::join!(waiting, meanwhile);
    assert_eq!(waited.unwrap().status(), 200);
    assert_eq!(id(keyed(&pair, "\"a\"", "1").send().await.unwrap()).await, operation);

    // Who has given up is answered no longer.
    let given_up = keyed(&pair, "\"b\"", "1").header("prefer", "wait=50").send();
    let request = tokio::select! {
        _ = given_up => panic!("nothing has answered it"),
        request = provider.request("echo") => request,
    };
    let free = eventually("the key is free", async || {
        let response = keyed(&pair, "\"b\"", "1").send().await.unwrap();
        if response.status() == 202 { Ok(id(response).await) } else { Err(response.status().to_string()) }
    });
    let same = tokio::time::timeout(Duration::from_secs(20), free).await.expect("long before the wait is over");
    assert_eq!(same, request.correlation_id.to_string());
    provider.succeed(&request, "1").await;
    pair.ended(&same).await;
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_is_accepted() {
    let pair = Pair::start().await;
    let all = join_all((0..32).map(|_| keyed(&pair, "\"a\"", "1").send())).await;
    let mut accepted = Vec::new();
    for response in all {
        let response = response.unwrap();
        match response.status().as_u16() {
            202 => accepted.push(id(response).await),
            409 => {}
            other => panic!("{other}"),
        }
    }
    accepted.dedup();
    assert_eq!(accepted.len(), 1);
    assert_eq!(pair.get_json("/v1/operations").await["operations"].as_array().unwrap().len(), 1);
    pair.ended(&accepted[0]).await;
    pair.finish().await;
}
