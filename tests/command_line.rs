//! The requestor's command line as a caller.

use harness::pair::Pair;
use harness::process::command;
use serde_json::{Value, json};
use std::process::Output;

async fn requestor(pair: &Pair, arguments: &[&str]) -> Output {
    let mut command = command("requestor", &[("ARR_URL".into(), pair.base.clone())]);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_waits_and_tells_by_its_exit_code() {
    let pair = Pair::start().await;
    let output = requestor(&pair, &["submit", "echo", r#"{"a":1}"#, "--wait"]).await;
    assert!(output.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), json!({"a": 1}));
    assert!(output.stderr.is_empty(), "no progress bar where there is no terminal");

    let order = r#"{"customer":"Ada","items":[{"sku":"unicorn","quantity":1,"unitPriceCents":999999}]}"#;
    let output = requestor(&pair, &["submit", "order.place", order, "--wait", "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["operation"]["error"]["title"], "Out of stock");

    let output = requestor(&pair, &["submit", "order.place", "{}", "--wait"]).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("422") && error.contains("customer"), "{error}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_can_be_looked_at() {
    let pair = Pair::start().await;
    let output = requestor(&pair, &["submit", "echo", "1", "--json"]).await;
    let accepted: Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = accepted["id"].as_str().unwrap();
    pair.ended(id).await;
    let output = requestor(&pair, &["status", id]).await;
    assert!(String::from_utf8(output.stdout).unwrap().contains("Succeeded"));
    let output = requestor(&pair, &["list", "--kind", "echo"]).await;
    assert!(String::from_utf8(output.stdout).unwrap().contains(id));
    let output = requestor(&pair, &["status", "nope"]).await;
    assert_eq!(output.status.code(), Some(1));
    pair.finish().await;
}
