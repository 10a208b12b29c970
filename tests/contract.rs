//! The documents that the services are held against: what they say of calls is what the router does.

use crate::callers::add;
use harness::pair::Pair;
use serde_json::Value;
use std::collections::BTreeSet;

/// The methods that an answer says its path has.
fn allowed(header: &str) -> BTreeSet<String> {
    // Every path that can be read can be asked for its headers alone.
    header.split(',').map(str::trim).filter(|method| *method != "HEAD").map(str::to_lowercase).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_path_has_the_methods_that_are_documented_and_no_other() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    let document = pair.get_json("/openapi.json").await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let url = path.replace("{kind}", "echo").replace("{id}", "00000000-0000-7000-8000-000000000000");
        let response = pair.request("TRACE", &url).send().await.unwrap();
        assert_eq!(response.status(), 405, "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        let documented = methods.as_object().unwrap().keys().cloned().collect();
        assert_eq!(allowed(response.headers()["allow"].to_str().unwrap()), documented, "{path}");
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_can_read_the_documents_and_the_page_loads_nothing() {
    let mut pair = Pair::prepare().await;
    add(&mut pair, "ada", false);
    pair.start_requestor();
    pair.ready().await;
    for (path, content_type) in [("/", "html"), ("/dashboard.js", "javascript"), ("/dashboard.css", "css")] {
        let page = pair.get(path).await;
        assert_eq!(page.status(), 200, "{path}");
        assert_eq!(page.headers()["content-type"], format!("text/{content_type}; charset=utf-8"));
        let policy = page.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    }

    let page = pair.get("/docs").await;
    assert_eq!(
        (page.status().as_u16(), &page.headers()["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert!(page.text().await.unwrap().contains("/v1/requests/{kind}"));

    let openapi = pair.get_json("/openapi.json").await;
    let submit = &openapi["paths"]["/v1/requests/{kind}"]["post"];
    assert_eq!(submit["security"], serde_json::json!([{ "key": [] }]), "with keys, one is needed");
    let asyncapi = pair.get_json("/asyncapi.json").await;
    assert_eq!(asyncapi["channels"]["requests"]["address"], "arr.request.{kind}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_no_text_and_numbers_beyond_all_events_are_answered_as_documented() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    for path in ["/v1/operations/%ff", "/v1/operations/%ff/result", "/v1/operations/%ff/events", "/v1/kinds/%ff"] {
        let response = pair.get(path).await;
        assert_eq!((response.status().as_u16(), path), (400, path));
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["type"], "urn:problem-type:arr:bad-request");
    }
    let log = pair.get_json(&format!("/v1/events?after={}", u64::MAX)).await;
    assert_eq!(log["events"], serde_json::json!([]));
    assert_eq!(pair.get("/v1/operations?pageSize=4294967296").await.status(), 400);
    pair.finish().await;
}
