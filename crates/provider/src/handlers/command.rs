//! Handlers in any language: a command line that reads a request and writes JSON lines.
//!
//! `docs/handlers.md` is the contract.

use crate::config::{CommandConfig, Effect};
use crate::context::Context;
use crate::handler::Failure;
use crate::handlers::child::{self, Ended, Limits, Program, Stopped};
use anyhow::{Context as _, ensure};
use jsonschema::Validator;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shared::message::Content;
use shared::problem::Problem;
use shared::schema::Schemas;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

/// Violations that are told at most; a body of many small mistakes must not make a large answer.
const VIOLATIONS_MAX: usize = 50;
/// Bytes of a line that is no message of ours, in the problem that says so.
const QUOTED_MAX: usize = 200;

/// A kind that is served by a command.
#[derive(Debug)]
pub(crate) struct Command {
    kind: String,
    config: CommandConfig,
    schema: Option<(Value, Validator)>,
    environment: Vec<(OsString, OsString)>,
}

/// What a command has said so far.
#[derive(Debug, Default)]
struct Said {
    /// Its last word.
    outcome: Option<Result<Content, Failure>>,
    /// The first line that is none of what it may say.
    nonsense: Option<String>,
}

impl Command {
    /// # Errors
    /// Which key of the section is wrong, and why.
    pub(crate) fn open(kind: &str, config: &CommandConfig) -> anyhow::Result<Arc<Self>> {
        let key = format!("commands.{kind:?}");
        let program = config.command.first().with_context(|| format!("{key}.command: name a program"))?;
        ensure!(is_there(program), "{key}.command: there is no program {program:?}: install it or give its path");
        ensure!(!config.timeout.is_zero(), "{key}.timeout must be more than 0");
        let schema = match &config.schema {
            None => None,
            Some(path) => {
                let text = std::fs::read(path).with_context(|| format!("{key}.schema: {}", path.display()))?;
                let schema = serde_json::from_slice(&text).with_context(|| format!("{key}.schema"))?;
                let validator =
                    jsonschema::validator_for(&schema).map_err(|error| anyhow::anyhow!("{key}.schema: {error}"))?;
                Some((schema, validator))
            }
        };
        // Ours may hold the broker's password.
        let environment = shared::config::environment_for_child(|name| !name.starts_with("PROVIDER_"));
        Ok(Arc::new(Self { kind: kind.to_owned(), config: config.clone(), schema, environment }))
    }

    /// What requests look like, if the section says so.
    pub(crate) fn schemas(&self) -> Schemas {
        Schemas { request: self.schema.as_ref().map(|(schema, _)| schema.clone()), result: None }
    }

    /// Runs the command for one request.
    pub(crate) async fn handle(self: Arc<Self>, request: Content, context: Context) -> Result<Content, Failure> {
        self.validate(&request)?;
        let key = match self.config.effect {
            Effect::Pure => context.identity().to_owned(),
            // Where in its work the command has the effect is not known here.
            Effect::External => context.intent().await?,
        };
        let program = self.program(&context, key);
        let input = [request.body.as_ref(), b"\n"].concat();
        let mut said = Said::default();
        let ended = child::run(&program, &input, context.cancelled(), |line| said.take(line, &context)).await;
        match ended {
            Ok(ended) => said.outcome_after(&ended),
            Err(Stopped::Cancelled) => Err(Failure::stopped("the command was stopped before its end")),
            Err(reason @ Stopped::NotStarted { .. }) => Err(Failure::Transient(failed(503, reason.to_string()))),
            Err(reason) => Err(Failure::Permanent(failed(500, format!("stopped, since {reason}")))),
        }
    }

    fn validate(&self, request: &Content) -> Result<(), Failure> {
        let value: Value = serde_json::from_slice(&request.body)
            .map_err(|error| Failure::invalid("", format!("the request is not JSON: {error}")))?;
        let Some((_, schema)) = &self.schema else { return Ok(()) };
        let violations: Vec<Value> = schema
            .iter_errors(&value)
            .take(VIOLATIONS_MAX)
            .map(|error| json!({ "pointer": error.instance_path().to_string(), "detail": error.to_string() }))
            .collect();
        if violations.is_empty() {
            return Ok(());
        }
        let detail = format!("{} violation(s) of the schema; see errors", violations.len());
        let problem = Problem::new("invalid-request", 422, "The request does not fit its schema", detail);
        Err(Failure::Permanent(problem.with("errors", violations)))
    }

    fn program(&self, context: &Context, key: String) -> Program {
        let mut environment = self.environment.clone();
        let mut tell = |name: &str, value: String| environment.push((name.into(), value.into()));
        tell("ARR_OPERATION", context.correlation_id().to_owned());
        tell("ARR_ATTEMPT", context.attempt().to_string());
        tell("ARR_IDEMPOTENCY_KEY", key);
        if let Some(deadline) = context.deadline() {
            tell("ARR_DEADLINE", deadline.to_string());
        }
        Program {
            command: self.config.command.iter().map(OsString::from).collect(),
            folder: None,
            environment,
            timeout: self.config.timeout,
            line_bytes_max: self.config.line_bytes_max,
            output_bytes_max: self.config.output_bytes_max,
            limits: Limits::default(),
            log_as: Some(self.kind.clone()),
        }
    }
}

impl Said {
    /// Takes one line. What follows the outcome changes nothing.
    fn take(&mut self, line: &[u8], context: &Context) {
        if self.outcome.is_some() {
            return;
        }
        let Ok(fields) = serde_json::from_slice::<HashMap<String, &RawValue>>(line) else {
            return self.note_nonsense(line);
        };
        if let Some(result) = fields.get("result") {
            self.outcome = Some(Ok(Content::json(result.get().as_bytes().to_vec())));
        } else if let Some(error) = fields.get("error") {
            let problem = Problem::from_body(error.get().as_bytes());
            let retryable = fields.get("retryable").is_some_and(|retryable| retryable.get() == "true");
            let pause = fields.get("retryAfterSeconds").and_then(|seconds| seconds.get().parse::<f64>().ok());
            self.outcome = Some(Err(match pause.map(Duration::try_from_secs_f64) {
                Some(Ok(pause)) if retryable => Failure::TransientFor(pause, problem),
                _ if retryable => Failure::Transient(problem),
                _ => Failure::Permanent(problem),
            }));
        } else if let Some(Ok(percent)) = fields.get("progress").map(|percent| percent.get().parse::<f64>()) {
            let message = fields.get("message").and_then(|message| serde_json::from_str::<String>(message.get()).ok());
            context.progress(percent.clamp(0.0, 100.0), message.unwrap_or_default());
        } else {
            self.note_nonsense(line);
        }
    }

    fn note_nonsense(&mut self, line: &[u8]) {
        let quoted = || String::from_utf8_lossy(&line[..line.len().min(QUOTED_MAX)]).into_owned();
        self.nonsense.get_or_insert_with(quoted);
    }

    fn outcome_after(self, ended: &Ended) -> Result<Content, Failure> {
        if let Some(outcome) = self.outcome {
            return outcome;
        }
        let nonsense = self.nonsense.map(|line| {
            format!("; on standard output it wrote {line:?}, which is no JSON object with progress, result or error")
        });
        let detail =
            format!("ended with {} and without a result or an error{}", ended.status, nonsense.unwrap_or_default());
        let problem = failed(500, detail).with("standardError", ended.error_tail.as_str());
        // Killed, perhaps for want of memory: it may be better later.
        Err(if ended.status.signal().is_some() { Failure::Transient(problem) } else { Failure::Permanent(problem) })
    }
}

fn failed(status: u16, detail: String) -> Problem {
    Problem::new("command-failed", status, "The command failed", detail)
}

/// Whether a program can be found, as the shell would find it.
fn is_there(program: &str) -> bool {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "command -v \"$0\"", program]).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
