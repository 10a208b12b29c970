//! The payment server: a process of its own, whose journal says what happened in the world. Like real ones it takes an
//! idempotency key, and is slow, busy or unwilling at times; the last two digits of an amount decide.

use crate::journal::Journal;
use anyhow::Context;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Amounts that end so are charged slowly.
pub(crate) const SLOW: u64 = 77;
/// Amounts that end so are refused at first, with `Retry-After`.
pub(crate) const BUSY: u64 = 50;
/// Amounts that end so are never charged.
pub(crate) const DECLINED: u64 = 13;
/// How long slow ones take.
const SLOWNESS: Duration = Duration::from_millis(1500);

/// Runs the payment server until it is killed.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// The file that the journal is appended to.
    #[arg(long)]
    journal: PathBuf,
}

/// One line of the journal: a call, and whether money moved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) at: Timestamp,
    /// The `Idempotency-Key`.
    pub(crate) key: String,
    /// What was asked.
    pub(crate) body: Value,
    /// Whether this call moved money; a repeat does not.
    pub(crate) effect: bool,
    /// The status of the answer.
    pub(crate) status: u16,
    /// The answer.
    pub(crate) answer: Value,
}

#[derive(Clone)]
struct Server {
    journal: Journal,
    charges: Arc<Mutex<HashMap<String, Charge>>>,
}

/// What became of a key so far.
#[derive(Clone, Default)]
struct Charge {
    calls: u32,
    answer: Option<Value>,
}

/// Serves.
///
/// # Errors
/// When it cannot listen or write.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let server = Server { journal: Journal::create(&arguments.journal)?, charges: Arc::default() };
    let listener = tokio::net::TcpListener::bind(arguments.listen).await.context("cannot listen")?;
    axum::serve(listener, axum::Router::new().fallback(charge).with_state(server)).await.context("cannot serve")
}

async fn charge(State(server): State<Server>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()) else {
        return (StatusCode::BAD_REQUEST, "Idempotency-Key is missing").into_response();
    };
    let ending = body["amountCents"].as_u64().unwrap_or_default() % 100;
    if ending == SLOW {
        tokio::time::sleep(SLOWNESS).await;
    }
    let (effect, status, answer) = server.decide(key, ending);
    let call =
        Call { at: Timestamp::now(), key: key.into(), body, effect, status: status.as_u16(), answer: answer.clone() };
    if server.journal.record(&call).await.is_err() {
        // What is not on record must not be reported as done; the run ends by its checks.
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    match status {
        StatusCode::SERVICE_UNAVAILABLE => (status, [("retry-after", "1")], Json(answer)).into_response(),
        _ => (status, Json(answer)).into_response(),
    }
}

impl Server {
    /// Whether money moves, and what is answered: the first answer again for a key that was charged already.
    fn decide(&self, key: &str, ending: u64) -> (bool, StatusCode, Value) {
        let mut charges = self.charges.lock().unwrap_or_else(PoisonError::into_inner);
        let charge = charges.entry(key.to_owned()).or_default();
        charge.calls += 1;
        match &charge.answer {
            Some(answer) => (false, StatusCode::OK, answer.clone()),
            None if ending == DECLINED => (false, StatusCode::PAYMENT_REQUIRED, json!({ "error": "declined" })),
            None if ending == BUSY && charge.calls == 1 => {
                (false, StatusCode::SERVICE_UNAVAILABLE, json!({ "error": "busy" }))
            }
            None => {
                let answer = json!({ "id": format!("charge-{}", uuid::Uuid::now_v7().simple()) });
                charge.answer = Some(answer.clone());
                (true, StatusCode::CREATED, answer)
            }
        }
    }
}

/// All calls of the journal at `path`.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn calls(path: &Path) -> anyhow::Result<Vec<Call>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
}
