#![expect(clippy::print_stdout, reason = "the output of commands")]

use super::client::Client;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How often the progress bar is brought up to date, in seconds.
const FOLLOW_SECONDS: u32 = 1;

/// One operation.
pub(super) fn operation(operation: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return document(operation);
    }
    let shown = [
        "id",
        "owner",
        "kind",
        "status",
        "percentComplete",
        "message",
        "createdAt",
        "lastUpdatedAt",
        "attempt",
        "nextAttemptAt",
        "deadline",
        "resultLocation",
    ];
    for name in shown {
        if let Some(value) = operation.get(name) {
            println!("{name:<16} {}", text(value));
        }
    }
    if let Some(step) = step(operation) {
        println!("{:<16} {step}", "step");
    }
    if operation["cancelRequested"] == true {
        println!("{:<16} true", "cancelRequested");
    }
    for name in ["lastProblem", "error"] {
        if let Some(error) = operation.get(name) {
            println!("{name:<16} {}", problem(error));
        }
    }
    Ok(())
}

/// A key, and what the configuration holds of it.
pub(super) fn key(key: &str) -> anyhow::Result<()> {
    println!("key   {key}\nhash  {}", crate::callers::key::hash(key));
    Ok(())
}

/// How far a pipeline is: `2 of 3: video.compress`.
fn step(operation: &Value) -> Option<String> {
    let (position, steps) = (operation["position"].as_u64()?, operation["steps"].as_array()?.len());
    Some(format!("{position} of {steps}: {}", text(&operation["stepKind"])))
}

/// An event log as a table.
pub(super) fn events(events: Vec<Value>, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return document(&json!({ "events": events }));
    }
    println!("{:>4}  {:<30}  {:<16}  data", "n", "at", "type");
    events.iter().try_for_each(event_row)
}

fn event_row(event: &Value) -> anyhow::Result<()> {
    let column = |name: &str| text(&event[name]);
    let (number, at, event_type) = (column("number"), column("at"), column("type"));
    say(&format!("{number:>4}  {at:<30}  {event_type:<16}  {}", members(event)))
}

/// What belongs to an event; of a snapshot, how its operation is.
fn members(event: &Value) -> String {
    let shown = ["status", "percentComplete", "message"];
    let snapshot = event["type"] == "snapshot";
    match event["data"].as_object() {
        Some(members) => {
            let members = members.iter().filter(|(name, _)| !snapshot || shown.contains(&name.as_str()));
            members.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
        }
        None => text(&event["data"]),
    }
}

/// The next event of an operation.
pub(super) fn event(event: &Value, as_json: bool) -> anyhow::Result<()> {
    match as_json {
        true => say(&event.to_string()),
        false => event_row(event),
    }
}

/// The next event of all operations, or those that are open.
pub(super) fn event_of_all(event: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return say(&event.to_string());
    }
    if event["type"] != "snapshot" {
        return row_of_all([&event["at"], &event["operation"], &event["kind"], &event["type"]], &members(event));
    }
    event["data"]["operations"].as_array().into_iter().flatten().try_for_each(|operation| {
        let data = json!({ "type": "snapshot", "data": operation });
        row_of_all([&event["at"], &operation["id"], &operation["kind"], &event["type"]], &members(&data))
    })
}

fn row_of_all(columns: [&Value; 4], data: &str) -> anyhow::Result<()> {
    let [at, id, kind, event_type] = columns.map(text);
    say(&format!("{at:<30}  {id:<36}  {kind:<20}  {event_type:<16}  {data}"))
}

/// Prints a line of what may go on for long; an error when nobody reads it any more.
fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Operations as a table.
pub(super) fn list(page: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return document(page);
    }
    println!("{:<36}  {:<20}  {:<10}  {:>5}  {:<30}  step", "id", "kind", "status", "%", "created");
    for operation in page["operations"].as_array().into_iter().flatten() {
        let column = |name: &str| operation.get(name).map(text).unwrap_or_default();
        let percent = operation["percentComplete"].as_f64().map(|percent| format!("{percent:.0}")).unwrap_or_default();
        println!(
            "{:<36}  {:<20}  {:<10}  {percent:>5}  {:<30}  {}",
            column("id"),
            column("kind"),
            column("status"),
            column("createdAt"),
            step(operation).unwrap_or_default()
        );
    }
    Ok(())
}

/// Kinds as a table.
pub(super) fn kinds(found: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return document(found);
    }
    println!(
        "{:<24}  {:>9}  {:>5}  {:<10}  {:<13}  {:>8}  steps",
        "kind", "providers", "slots", "version", "effect", "timeout"
    );
    for kind in found["kinds"].as_array().into_iter().flatten() {
        let column = |name: &str| kind.get(name).map(text).unwrap_or_default();
        let steps: Vec<_> = kind["steps"].as_array().into_iter().flatten().map(text).collect();
        println!(
            "{:<24}  {:>9}  {:>5}  {:<10}  {:<13}  {:>7}s  {}",
            column("kind"),
            column("providersSeen"),
            column("concurrency"),
            column("version"),
            column("effect"),
            column("timeoutSeconds"),
            steps.join(", ")
        );
    }
    Ok(())
}

/// Follows an operation to its end and shows its outcome; an error if it failed.
pub(super) async fn outcome(client: &Client, accepted: &Value, as_json: bool) -> anyhow::Result<()> {
    let id = text(&accepted["id"]);
    let bar = bar(&id);
    let ended = loop {
        let operation = client.operation(&id, FOLLOW_SECONDS).await?;
        let message = operation.get("message").unwrap_or(&operation["status"]);
        let step = step(&operation).map(|step| format!("step {step}: ")).unwrap_or_default();
        bar.set_message(format!("{step}{}", text(message)));
        bar.set_position(operation["percentComplete"].as_f64().unwrap_or_default() as u64);
        if !matches!(operation["status"].as_str(), Some("NotStarted" | "Running")) {
            break operation;
        }
    };
    bar.finish_and_clear();
    if ended["status"] != "Succeeded" {
        if as_json {
            document(&json!({ "operation": ended }))?;
        }
        anyhow::bail!("{id} {}: {}", text(&ended["status"]), problem(&ended["error"]));
    }
    let (headers, body) = client.result(&id).await?;
    let result = serde_json::from_slice::<Value>(&body);
    match (as_json, result) {
        (true, Ok(result)) => document(&json!({ "operation": ended, "result": result })),
        (true, Err(_)) => {
            let content_type = headers.get("content-type").and_then(|value| value.to_str().ok());
            document(
                &json!({ "operation": ended, "contentType": content_type, "text": String::from_utf8_lossy(&body) }),
            )
        }
        (false, Ok(result)) => document(&result),
        (false, Err(_)) => Ok(std::io::stdout().write_all(&body)?),
    }
}

/// A problem in one line for people.
pub(super) fn problem(problem: &Value) -> String {
    let mut line = problem["title"].as_str().unwrap_or("failed").to_owned();
    if let Some(detail) = problem["detail"].as_str() {
        line.push_str(": ");
        line.push_str(detail);
    }
    for error in problem["errors"].as_array().into_iter().flatten() {
        line.push_str(&format!("; {}: {}", text(&error["pointer"]), text(&error["detail"])));
    }
    line
}

/// A bar on a terminal; elsewhere nothing, so that logs and pipes stay readable.
fn bar(id: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(100).with_prefix(id.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {elapsed_precise} [{bar:30}] {pos:>3} % {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn document(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
