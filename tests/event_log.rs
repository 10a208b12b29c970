//! Each operation tells what has happened to it.

use crate::stand_in::StandIn;
use harness::eventually;
use harness::pair::Pair;
use harness::process::command;
use serde_json::{Value, json};
use shared::problem::Problem;
use std::time::Duration;

async fn events(pair: &Pair, id: &str) -> Vec<Value> {
    let mut log = pair.get_json(&format!("/v1/operations/{id}/events")).await;
    log["events"].as_array_mut().map(std::mem::take).unwrap()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

async fn output(pair: &Pair, arguments: &[&str]) -> String {
    let mut command = command("requestor", &[("ARR_URL".into(), pair.base.clone())]);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_the_whole_story_in_pages_and_on_the_command_line() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.retries.pause = Duration::from_millis(1);
    pair.requestor_config.retries.attempts = 2;
    pair.requestor_config.operations.events_max = 2;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("echo", &json!(1)).await;
    let first = provider.request("echo").await;
    for percent in [10.0, 20.0, 30.0] {
        provider.report(&first, percent, None).await;
        eventually("the report is shown", async || {
            let operation = pair.operation(&id).await;
            if operation["percentComplete"] == percent { Ok(()) } else { Err(operation.to_string()) }
        })
        .await;
    }
    provider.be_busy(&first, None).await;
    provider.fail(&provider.request("echo").await, Problem::new("broken", 500, "Broken", "no")).await;
    pair.ended(&id).await;
    assert!(output(&pair, &["retry", &id, "--timeout", "50s"]).await.contains("Running"));
    let third = provider.request("echo").await;
    assert!(output(&pair, &["cancel", &id]).await.contains("cancelRequested"));
    provider.fail(&third, Problem::canceled()).await;
    pair.ended(&id).await;
    provider.fail(&third, Problem::new("other", 500, "Other", "no")).await;

    let log = events(&pair, &id).await;
    let told = ["created", "progress", "attempt-failed", "failed", "retried", "cancel-requested", "canceled"];
    assert_eq!(types(&log), told, "the log has room for one report");
    let numbers: Vec<_> = log.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=told.len() as u64).collect::<Vec<_>>());
    assert_eq!(log[2]["data"]["problem"]["title"], "Busy");
    assert_eq!((log[1]["data"]["percent"].as_f64(), log[4]["data"]["attempt"].as_u64()), (Some(10.0), Some(3)));

    let page = pair.get(&format!("/v1/operations/{id}/events?after=2&pageSize=3")).await;
    let next = page.headers()["link"].to_str().unwrap().to_owned();
    assert_eq!(page.headers()["content-type"], "application/json");
    assert!(next.contains("after=5&pageSize=3") && next.ends_with("rel=\"next\""), "{next}");
    assert_eq!(page.json::<Value>().await.unwrap()["events"], json!(log[2..5]));
    let last = pair.get(&format!("/v1/operations/{id}/events?after=5&pageSize=3")).await;
    assert!(last.headers().get("link").is_none());

    let table = output(&pair, &["events", &id]).await;
    assert_eq!(table.lines().count(), 1 + told.len(), "{table}");
    let document: Value = serde_json::from_str(&output(&pair, &["events", &id, "--json"]).await).unwrap();
    assert_eq!(document["events"], json!(log));
    assert!(output(&pair, &["list", "--status", "Canceled"]).await.contains(&id));
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_forgotten_with_its_operation() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.operations.retention = Duration::from_millis(500);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let id = pair.submit("echo", &json!(1)).await;
    eventually("the operation is forgotten", async || {
        let status = pair.get(&format!("/v1/operations/{id}/events")).await.status();
        if status == 410 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    for table in ["operations", "requests", "results", "events"] {
        assert_eq!(pair.store.numbers(&format!("select count(*) from {table}")).await, [0], "{table}");
    }
    pair.finish().await;
}
