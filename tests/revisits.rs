//! Asking again: what has not changed, what is forgotten, and the next page.

use crate::callers::add;
use crate::stand_in::StandIn;
use harness::eventually;
use harness::pair::Pair;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn who_has_seen_an_operation_as_it_is_gets_304() {
    let mut pair = Pair::prepare().await;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("echo", &json!(1)).await;
    let request = provider.request("echo").await;
    let path = format!("/v1/operations/{id}");
    let if_none_match = |tag: &str| pair.request("GET", &path).header("if-none-match", tag).send();
    let first = pair.get(&path).await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 20, "{tag} is strong");
    for known in [tag.clone(), format!("\"x\", W/{tag}"), "*".into()] {
        let response = if_none_match(&known).await.unwrap();
        assert_eq!(response.status(), 304);
        assert_eq!(response.headers()["etag"], tag.as_str());
        assert!(response.headers().contains_key("retry-after"));
        assert!(!response.headers().contains_key("content-type"));
        assert!(response.bytes().await.unwrap().is_empty());
    }
    provider.report(&request, 10.0, None).await;
    let next = eventually("the change is shown", async || {
        let response = if_none_match(&tag).await.unwrap();
        if response.status() == 200 { Ok(response) } else { Err(response.status().to_string()) }
    })
    .await;
    assert_ne!(next.headers()["etag"], tag.as_str());
    assert_eq!(next.json::<Value>().await.unwrap()["percentComplete"], 10.0);
    provider.succeed(&request, "1").await;
    pair.ended(&id).await;
    let redirect = if_none_match("*").await.unwrap();
    assert_eq!(redirect.status(), 303, "a redirect has no precondition");
    let ended = pair.get(&format!("{path}?redirect=false")).await;
    let request = pair.request("GET", &format!("{path}?redirect=false"));
    assert_eq!(request.header("if-none-match", &ended.headers()["etag"]).send().await.unwrap().status(), 304);
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_gone_for_its_owner_and_never_was_for_others() {
    let mut pair = Pair::prepare().await;
    let (ada, bob) = (add(&mut pair, "ada", false), add(&mut pair, "bob", false));
    pair.requestor_config.operations.retention = Duration::from_millis(500);
    pair.requestor_config.operations.forgotten_max = 2;
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let keyed = ada.post("echo").header("idempotency-key", "\"k\"").body(number.to_string());
        let id = keyed.send().await.unwrap().json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
        eventually("the operation is forgotten", async || {
            let status = ada.get(&format!("/v1/operations/{id}")).await.status();
            if status == 410 { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        ids.push(id);
    }
    let [beyond, _, last] = &ids[..] else { panic!("a key is free once its operation is forgotten: {ids:?}") };
    for (method, path) in [("GET", ""), ("GET", "/result"), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")]
    {
        let path = format!("/v1/operations/{last}{path}");
        let gone = ada.request(method, &path).send().await.unwrap();
        assert_eq!((gone.status().as_u16(), &gone.headers()["cache-control"]), (410, &"no-store".parse().unwrap()));
        assert_eq!(gone.json::<Value>().await.unwrap()["type"], "urn:problem-type:arr:gone");
        assert_eq!(bob.request(method, &path).send().await.unwrap().status(), 404);
    }
    let status = ada.get(&format!("/v1/operations/{beyond}")).await.status();
    assert_eq!(status, 404, "only so many are remembered");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_their_own_query_only() {
    let pair = Pair::start().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(pair.submit("echo", &json!(number)).await);
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut path = "/v1/operations?kind=echo&pageSize=2".to_owned();
    let mut token = String::new();
    loop {
        let response = pair.get(&path).await;
        let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = response.json().await.unwrap();
        let on_page = page["operations"].as_array().unwrap().iter();
        seen.extend(on_page.map(|operation| operation["id"].as_str().unwrap().to_owned()));
        let Some(link) = link else { break };
        token = page["nextPageToken"].as_str().unwrap().to_owned();
        assert!(!seen.iter().any(|id| token.contains(id)), "{token}");
        path = link.split(['<', '>']).nth(1).unwrap().strip_prefix(&pair.base).unwrap().to_owned();
    }
    assert_eq!(seen, ids);
    for other in ["", "&kind=order.place", "&kind=echo&status=Failed"] {
        let refused = pair.get(&format!("/v1/operations?pageToken={token}{other}")).await;
        assert_eq!(refused.status(), 400, "{other}");
        let problem: Value = refused.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains("another query"), "{problem}");
    }
    let larger = pair.get_json(&format!("/v1/operations?kind=echo&pageSize=3&pageToken={token}")).await;
    assert_eq!(larger["operations"].as_array().unwrap().len(), 1, "the size of a page may change");
    for id in &ids {
        pair.ended(id).await;
    }
    pair.finish().await;
}
