//! Handlers in another language: a command line of the provider's configuration.

use harness::eventually;
use harness::pair::Pair;
use provider::config::{CommandConfig, Effect};
use requestor::config::KindConfig;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const KIND: &str = "test.command";

/// A pair whose provider serves [`KIND`] by `tests/command.py`.
async fn pair() -> Pair {
    let mut pair = prepare().await;
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    pair
}

async fn prepare() -> Pair {
    let mut pair = Pair::prepare().await;
    let schema = pair.folder.path().join("schema.json");
    std::fs::write(&schema, json!({"type": "object", "required": ["do"]}).to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/command.py");
    let command = CommandConfig {
        command: ["python3", script].map(str::to_owned).into(),
        schema: Some(schema),
        effect: Effect::Pure,
        timeout: Duration::from_secs(60),
        line_bytes_max: 10_000,
        output_bytes_max: 100_000,
    };
    pair.provider_config.commands.insert(KIND.into(), command);
    pair.provider_config.kinds = vec![KIND.into()];
    pair.requestor_config.kinds.insert(KIND.into(), KindConfig::default());
    pair
}

/// The problem of an operation that must fail.
async fn problem(pair: &Pair, body: &Value) -> Value {
    let id = pair.submit(KIND, body).await;
    let operation = pair.ended(&id).await;
    assert_eq!(operation["status"], "Failed", "{operation}");
    pair.get_json(&format!("/v1/operations/{id}/result")).await
}

/// The processes whose ids the script has written.
async fn started(file: &Path) -> Vec<PathBuf> {
    let ids =
        eventually("the script has started", async || std::fs::read_to_string(file).map_err(|error| error.to_string()));
    ids.await.split(' ').map(|id| Path::new("/proc").join(id)).collect()
}

async fn gone(processes: &[PathBuf]) {
    eventually("nothing is left running", async || {
        let left: Vec<_> = processes.iter().filter(|process| runs(process)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// Whether a process runs; one that has ended and was left to process 1, which may not ask for it, does not.
fn runs(process: &Path) -> bool {
    std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reports_progress_and_a_result() {
    let pair = pair().await;
    let file = pair.folder.path().join("go");
    let id = pair.submit(KIND, &json!({"do": "progress", "file": file, "numbers": [1, 2, 3]})).await;
    eventually("its progress is seen", async || {
        let operation = pair.operation(&id).await;
        let seen = operation["percentComplete"] == 40.0 && operation["message"] == "half way, nearly";
        if seen { Ok(()) } else { Err(operation.to_string()) }
    })
    .await;
    std::fs::write(&file, "").unwrap();
    assert_eq!(pair.result(&id).await, json!({"sum": 6}));
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_of_its_request_and_of_no_secret() {
    let pair = pair().await;
    let id = pair.submit(KIND, &json!({"do": "environment"})).await;
    let variables = pair.result(&id).await;
    assert_eq!(variables["ARR_OPERATION"], id.as_str());
    assert_eq!(variables["ARR_IDEMPOTENCY_KEY"], id.as_str());
    assert_eq!(variables["ARR_ATTEMPT"], "1");
    let deadline: jiff::Timestamp = variables["ARR_DEADLINE"].as_str().unwrap().parse().unwrap();
    assert!(deadline > jiff::Timestamp::now());
    let told = variables.as_object().unwrap();
    assert!(told.contains_key("PATH") && !told.keys().any(|name| name.starts_with("PROVIDER_")), "{variables}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_error_is_the_outcome_and_what_may_pass_is_attempted_again() {
    let pair = pair().await;
    let error = problem(&pair, &json!({"do": "error"})).await;
    assert_eq!(error, json!({"type": "urn:example:too-wide", "title": "Too wide", "status": 409, "width": 3}));
    let id = pair.submit(KIND, &json!({"do": "second attempt"})).await;
    assert_eq!(pair.result(&id).await, Value::Null);
    assert_eq!(pair.operation(&id).await["attempt"], 2);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_that_it_asks_for_is_made() {
    let pair = pair().await;
    let id = pair.submit(KIND, &json!({"do": "later"})).await;
    assert_eq!(pair.result(&id).await, "done");
    let operation = pair.operation(&id).await;
    let at = |key: &str| operation[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let took = at("lastUpdatedAt").duration_since(at("createdAt"));
    // The policy alone would pause for 2 s at most.
    assert!(took >= jiff::SignedDuration::from_millis(2500), "{operation}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_one_is_killed_unless_its_effect_is_elsewhere() {
    let pair = pair().await;
    let file = pair.folder.path().join("pids");
    let id = pair.submit(KIND, &json!({"do": "stay", "file": file})).await;
    let processes = started(&file).await;
    cancel(&pair, &id).await;
    assert_eq!(pair.ended(&id).await["status"], "Canceled");
    gone(&processes).await;
    pair.finish().await;

    let mut pair = prepare().await;
    pair.provider_config.commands.get_mut(KIND).unwrap().effect = Effect::External;
    pair.start_requestor();
    pair.start_provider();
    let file = pair.folder.path().join("go");
    let id = pair.submit(KIND, &json!({"do": "progress", "file": file, "numbers": [1]})).await;
    eventually("it has begun", async || {
        let operation = pair.operation(&id).await;
        if operation["percentComplete"] == 40.0 { Ok(()) } else { Err(operation.to_string()) }
    })
    .await;
    cancel(&pair, &id).await;
    std::fs::write(&file, "").unwrap();
    assert_eq!(pair.result(&id).await, json!({"sum": 1}));
    pair.finish().await;
}

async fn cancel(pair: &Pair, id: &str) {
    let response = pair.request("DELETE", &format!("/v1/operations/{id}")).send().await.unwrap();
    assert_eq!(response.status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_nonsense_and_a_flood_are_failures_that_say_what_happened() {
    let pair = pair().await;
    let crash = problem(&pair, &json!({"do": "crash"})).await;
    assert_eq!(crash["type"], "urn:problem-type:arr:command-failed");
    assert!(crash["detail"].as_str().unwrap().contains("exit status: 3"), "{crash}");
    assert_eq!(crash["standardError"], "no such table: images");
    for (what, says) in [("nonsense", "Hello!"), ("line", "more than 10000 bytes"), ("flood", "more than 100000 bytes")]
    {
        let problem = problem(&pair, &json!({"do": what})).await;
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    let invalid = problem(&pair, &json!({"go": 1})).await;
    assert_eq!(invalid["status"], 422, "{invalid}");
    assert!(invalid["errors"][0]["detail"].as_str().unwrap().contains("do"), "{invalid}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ignores_sigterm_is_killed_with_what_it_has_started() {
    let mut pair = prepare().await;
    pair.provider_config.commands.get_mut(KIND).unwrap().timeout = Duration::from_secs(2);
    pair.start_requestor();
    pair.start_provider();
    let file = pair.folder.path().join("pids");
    let id = pair.submit(KIND, &json!({"do": "stay", "file": file})).await;
    let processes = started(&file).await;
    assert_eq!(processes.len(), 2);
    let operation = pair.ended(&id).await;
    assert!(operation["error"]["detail"].as_str().unwrap().contains("longer than 2s"), "{operation}");
    gone(&processes).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_it_after_the_deadline() {
    let pair = pair().await;
    let file = pair.folder.path().join("pids");
    let request = pair.post(KIND).header("operation-timeout", "3s");
    let accepted = request.body(json!({"do": "stay", "file": file}).to_string()).send().await.unwrap();
    let accepted: Value = accepted.json().await.unwrap();
    let processes = started(&file).await;
    let operation = pair.ended(accepted["id"].as_str().unwrap()).await;
    assert_eq!(operation["error"]["type"], "urn:problem-type:arr:deadline-exceeded", "{operation}");
    gone(&processes).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_documentation_works() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/handlers.md")).unwrap();
    let block = |language: &str| {
        let (_, after) = text.split_once(&format!("\n```{language}\n")).unwrap();
        after.split_once("\n```").unwrap().0.to_owned()
    };
    let mut pair = prepare().await;
    let (script, schema) = (pair.folder.path().join("resize.py"), pair.folder.path().join("image.resize.json"));
    std::fs::write(&script, block("python")).unwrap();
    std::fs::write(&schema, block("json")).unwrap();
    let command = pair.provider_config.commands.get_mut(KIND).unwrap();
    command.command = vec!["python3".into(), script.to_str().unwrap().into()];
    command.schema = Some(schema.clone());
    pair.requestor_config.kinds.insert(KIND.into(), KindConfig { schema: Some(schema), ..KindConfig::default() });
    pair.start_requestor();
    pair.start_provider();
    for (request, attempt) in [(json!({"width": 300}), 1), (json!({"width": 300, "clumsy": true}), 2)] {
        let id = pair.submit(KIND, &request).await;
        assert_eq!(pair.result(&id).await, json!({"width": 300, "height": 150}));
        assert_eq!(pair.operation(&id).await["attempt"], attempt);
    }
    assert_eq!(problem(&pair, &json!({"width": 0})).await["title"], "No width");
    assert_eq!(pair.try_submit(KIND, &json!({"width": "wide"})).await.unwrap().status(), 422);
    pair.finish().await;
}

#[test]
fn a_program_that_is_not_there_is_said_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("provider.toml");
    std::fs::write(&file, "[commands.\"image.resize\"]\ncommand = [\"no-such-program\"]\n").unwrap();
    let variables = [("PROVIDER_HTTP__LISTEN".to_owned(), "127.0.0.1:0".to_owned())];
    let mut command = harness::process::command("provider", &variables);
    let output = command.args(["serve", "--config"]).arg(&file).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("commands.\"image.resize\".command") && error.contains("no-such-program"), "{error}");
}
