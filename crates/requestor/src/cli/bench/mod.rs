//! `requestor bench`: how fast the pair is, as its callers see it.

/// What processes cost.
pub mod cost;
mod http;
mod load;
mod report;
mod told;

use super::Remote;
use crate::config::Config;
use crate::library::{Requestor, SubmitOptions};
use crate::rpc;
use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use cost::Meter;
use load::{Answer, Load, Worker};
use shared::config::SecretUrl;
use shared::message::{Content, Outcome};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long one request may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to measure, and how.
#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// What is asked: the HTTP interface; the library with a store of its own (tracked); calls without a record (rpc).
    #[arg(value_enum)]
    mode: Mode,
    /// Requests under way at once.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// For how long to measure, after the time to warm up.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// For how long to do the same without measuring.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Bytes of each request.
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Requests a second, due at even intervals whatever became of those before: their time counts from when they were
    /// due. Otherwise the next begins when one has ended.
    #[arg(long)]
    rate: Option<f64>,
    /// How outcomes are learnt over HTTP.
    #[arg(long, value_enum, default_value_t = Learn::Wait)]
    learn: Learn,
    /// What to ask for; its provider must take any JSON.
    #[arg(long, default_value = "echo")]
    kind: String,
    /// Also measure what this process costs, such as provider=1234; may be given several times.
    #[arg(long = "pid", value_name = "NAME=PID", value_parser = cost::named)]
    pids: Vec<(String, u32)>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Http,
    Tracked,
    Rpc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Learn {
    /// `Prefer: wait`.
    Wait,
    /// 202, then a stream of server-sent events.
    Sse,
    /// Not at all: 202 is what is measured.
    Nothing,
}

/// Measures, and prints what came of it.
///
/// # Errors
/// What keeps it from measuring.
pub(super) async fn run(arguments: Arguments, config: Config, remote: &Remote) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.in_flight > 0, "--in-flight must be more than 0");
    anyhow::ensure!(arguments.rate.is_none_or(|rate| rate > 0.0), "--rate must be more than 0");
    let room = shared::descriptors::make_room(arguments.in_flight)?;
    anyhow::ensure!(room >= arguments.in_flight, "--in-flight: only {room} connections can be open here (ulimit -n)");
    let load = Load {
        warm_up: seconds(arguments.warm_up).context("--warm-up")?,
        measured: seconds(arguments.seconds).context("--seconds")?,
        rate: arguments.rate,
        quiet: remote.json,
    };
    let meter = Meter::new(&arguments.pids);
    let body = body(arguments.payload);
    let measured = match arguments.mode {
        Mode::Http => {
            let workers = http::workers(&arguments, &config, remote, body).await?;
            load.run(workers, meter).await?
        }
        Mode::Tracked => tracked(&arguments, config, body, (&load, meter)).await?,
        Mode::Rpc => {
            let client = rpc::Client::connect(rpc::Config::from(&config)).await?;
            let caller = Caller { client, kind: arguments.kind.clone(), body };
            load.run(vec![caller; arguments.in_flight], meter).await?
        }
    };
    report::show(&arguments, &measured, remote.json)
}

fn seconds(given: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(given).context("is no length of time in seconds")
}

/// JSON of about so many bytes.
fn body(bytes: usize) -> Bytes {
    format!("{{\"payload\":\"{}\"}}", "x".repeat(bytes.saturating_sub(14))).into()
}

/// With a store and a group of its own, which go when it has ended.
async fn tracked(
    arguments: &Arguments,
    mut config: Config,
    body: Bytes,
    (load, meter): (&Load, Meter),
) -> anyhow::Result<load::Measured> {
    let folder = std::env::temp_dir().join(format!("arr-bench-{}", std::process::id()));
    config.store.url = SecretUrl::new(format!("sqlite://{}/requestor.db", folder.display()));
    config.group = format!("bench-{}", std::process::id());
    config.quotas.open_max = config.quotas.open_max.max(arguments.in_flight as u64);
    let shutdown = CancellationToken::new();
    let requestor = Requestor::start(config, shutdown.clone()).await?;
    let mut submitter = Submitter { requestor: requestor.clone(), kind: arguments.kind.clone(), body };
    // What is submitted before there is a connection waits for `redrive.unconfirmed`, which is not to be measured.
    submitter.once().await?;
    let measured = load.run(vec![submitter; arguments.in_flight], meter).await;
    shutdown.cancel();
    requestor.ended().await?;
    drop(requestor);
    let _ = std::fs::remove_dir_all(folder);
    measured
}

#[derive(Clone, Debug)]
struct Submitter {
    requestor: Requestor,
    kind: String,
    body: Bytes,
}

impl Worker for Submitter {
    async fn once(&mut self) -> anyhow::Result<Answer> {
        let content = Content::json(self.body.clone());
        let options = SubmitOptions::default();
        let (_, outcome) = self.requestor.submit_and_wait(&self.kind, content, options, PATIENCE).await?;
        match outcome {
            Some(Outcome::Succeeded(_)) => Ok(Answer::Done),
            other => anyhow::bail!("no success: {other:?}"),
        }
    }
}

#[derive(Clone, Debug)]
struct Caller {
    client: rpc::Client,
    kind: String,
    body: Bytes,
}

impl Worker for Caller {
    async fn once(&mut self) -> anyhow::Result<Answer> {
        self.client.call(&self.kind, Content::json(self.body.clone()), PATIENCE).await?;
        Ok(Answer::Done)
    }
}
