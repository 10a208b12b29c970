//! Keys tell callers apart, and nobody learns of another's operations.

use crate::stand_in::StandIn;
use harness::caller::Caller;
use harness::pair::Pair;
use harness::process::command;
use requestor::callers::CallerConfig;
use reqwest::Response;
use serde_json::{Value, json};
use shared::message::OperationId;
use shared::problem::Problem;
use std::time::{Duration, Instant};

/// A new key and its hash.
fn new_key() -> (String, String) {
    let output = command("requestor", &[]).args(["key", "new"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = |line: usize| text.lines().nth(line).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    (value(0), value(1))
}

/// Adds a caller to the configuration of a requestor that is not started yet.
pub(crate) fn add(pair: &mut Pair, name: &str, admin: bool) -> Caller {
    let (key, hash) = new_key();
    let config =
        CallerConfig { key_hashes: vec![hash], admin, webhook_secrets: Vec::new(), quotas: Default::default() };
    pair.requestor_config.callers.insert(name.into(), config);
    pair.with_key(&key)
}

/// All routes that need a caller, with the verbs they have.
fn routes(id: &str) -> Vec<(&'static str, String)> {
    vec![
        ("GET", format!("/v1/operations/{id}")),
        ("GET", format!("/v1/operations/{id}?redirect=false")),
        ("DELETE", format!("/v1/operations/{id}")),
        ("GET", format!("/v1/operations/{id}/result")),
        ("GET", format!("/v1/operations/{id}/events")),
        ("POST", format!("/v1/operations/{id}/cancel")),
        ("POST", format!("/v1/operations/{id}/retry")),
    ]
}

/// All that an answer tells, but when it was given.
async fn told(response: Response) -> (u16, String, String) {
    let mut headers = response.headers().clone();
    headers.remove("date");
    let (status, headers) = (response.status().as_u16(), format!("{headers:?}"));
    (status, headers, response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keys_nobody_is_served_without_one_but_who_watches_the_service() {
    let mut pair = Pair::prepare().await;
    let ada = add(&mut pair, "ada", false);
    let (new_key, new_hash) = new_key();
    pair.requestor_config.callers.get_mut("ada").unwrap().key_hashes.push(new_hash);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let mut all = routes("00000000-0000-7000-8000-000000000000");
    all.extend([
        ("POST", "/v1/requests/echo".into()),
        ("POST", "/v1/call/echo".into()),
        ("GET", "/v1/operations".into()),
        ("GET", "/v1/events".into()),
    ]);
    for (method, path) in &all {
        for authorization in ["", "Bearer", "Bearer nope", "Basic YWRhOg==", "Bearer ="] {
            let request = pair.request(method, path).header("authorization", authorization);
            let response = request.header("content-type", "application/json").body("1").send().await.unwrap();
            assert_eq!(response.status(), 401, "{method} {path} {authorization:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.json::<Value>().await.unwrap()["type"], "urn:problem-type:arr:unauthorized");
        }
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(pair.get(path).await.status(), 200, "{path}");
    }
    // The old key and the new one are the same caller's.
    let id = ada.submit("echo", &json!(1)).await;
    assert_eq!(pair.with_key(&new_key).result(&id).await, 1);
    let lower = pair.request("GET", "/v1/operations").header("authorization", format!("bearer {new_key}"));
    assert_eq!(lower.send().await.unwrap().status(), 200, "the scheme has no case");

    let run = |key: Option<&str>| {
        let mut variables = vec![("ARR_URL".to_owned(), pair.base.clone())];
        variables.extend(key.map(|key| ("ARR_API_KEY".to_owned(), key.to_owned())));
        command("requestor", &variables).args(["status", &id]).output().unwrap()
    };
    let (with, without) = tokio::task::block_in_place(|| (run(Some(&new_key)), run(None)));
    assert!(String::from_utf8(with.stdout).unwrap().contains("Succeeded"));
    assert!(String::from_utf8(without.stderr).unwrap().contains("401"));
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_anothers_is_visible_on_any_route() {
    let mut pair = Pair::prepare().await;
    let (ada, bob, root) = (add(&mut pair, "ada", false), add(&mut pair, "bob", false), add(&mut pair, "root", true));
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let [succeeded, failed, open] = [ada.submit("echo", &json!(1)).await, ada.submit("echo", &json!(2)).await, {
        let request = ada.post("echo").header("idempotency-key", "\"k\"").body("3").send().await.unwrap();
        request.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }];
    let mut held = Vec::new();
    for _ in 0..3 {
        let request = provider.request("echo").await;
        match request.correlation_id.to_string() {
            id if id == succeeded => provider.succeed(&request, "1").await,
            id if id == failed => provider.fail(&request, Problem::new("broken", 500, "Broken", "no")).await,
            _ => held.push(request),
        }
    }
    ada.ended(&succeeded).await;
    ada.ended(&failed).await;
    let before = ada.get_json("/v1/operations").await;

    let never = OperationId::new().to_string();
    for id in [&succeeded, &failed, &open] {
        for ((method, path), (_, same_path)) in routes(id).into_iter().zip(routes(&never)) {
            let anothers = told(bob.request(method, &path).send().await.unwrap()).await;
            let nobodys = told(bob.request(method, &same_path).send().await.unwrap()).await;
            assert_eq!(anothers.0, 404, "{method} {path}");
            assert_eq!(anothers, nobodys, "{method} {path}");
        }
    }
    assert_eq!(bob.get_json("/v1/operations").await["operations"], json!([]));
    assert_eq!(bob.get_json("/v1/operations?kind=echo&status=Succeeded").await["operations"], json!([]));
    let page = ada.get_json("/v1/operations?pageSize=1").await;
    let token = page["nextPageToken"].as_str().unwrap();
    let theirs = bob.get(&format!("/v1/operations?pageSize=1&pageToken={token}")).await;
    assert_eq!(theirs.status(), 400, "a page token is its caller's");
    let with_their_key = bob.post("echo").header("idempotency-key", "\"k\"").body("3").send().await.unwrap();
    assert_eq!(with_their_key.status(), 202);
    let own = with_their_key.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    assert_ne!(own, open, "a key is its caller's");
    assert_eq!(ada.get_json("/v1/operations").await, before, "and nothing was changed");
    assert_eq!(ada.get(&format!("/v1/operations/{own}")).await.status(), 404);

    let all = root.get_json("/v1/operations").await;
    let owners: Vec<_> = all["operations"].as_array().unwrap().iter().map(|o| o["owner"].as_str().unwrap()).collect();
    assert_eq!(owners, ["bob", "ada", "ada", "ada"], "an admin sees all");
    let retried = root.request("POST", &format!("/v1/operations/{failed}/retry")).send().await.unwrap();
    assert_eq!(retried.status(), 202);
    assert_eq!(root.request("DELETE", &format!("/v1/operations/{open}")).send().await.unwrap().status(), 202);
    for _ in 0..2 {
        let request = provider.request("echo").await;
        provider.succeed(&request, "4").await;
    }
    provider.succeed(&held[0], "3").await;
    assert_eq!(ada.result(&failed).await, 4, "it is still its owner's");
    ada.ended(&open).await;
    bob.ended(&own).await;
    provider.leave().await;
    pair.finish().await;
}

/// Medians of many that take turns, so that whatever else the machine does slows both.
#[tokio::test(flavor = "multi_thread")]
async fn anothers_operation_is_missed_as_fast_as_one_that_never_was() {
    let mut pair = Pair::prepare().await;
    let (ada, bob) = (add(&mut pair, "ada", false), add(&mut pair, "bob", false));
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let id = ada.submit("echo", &json!("x".repeat(10_000))).await;
    ada.ended(&id).await;
    for suffix in ["", "/result", "/events"] {
        let anothers = format!("/v1/operations/{id}{suffix}");
        let (mut of_another, mut of_nobody) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            of_another.push(time(&bob, &anothers).await);
            of_nobody.push(time(&bob, &format!("/v1/operations/{}{suffix}", OperationId::new())).await);
        }
        let (of_another, of_nobody) = (median(of_another), median(of_nobody));
        let ratio = of_another.as_secs_f64() / of_nobody.as_secs_f64();
        assert!((0.67..1.5).contains(&ratio), "{suffix}: {of_another:?} and {of_nobody:?}");
    }
    pair.finish().await;
}

async fn time(caller: &Caller, path: &str) -> Duration {
    let begun = Instant::now();
    assert_eq!(caller.get(path).await.status(), 404);
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
