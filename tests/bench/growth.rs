//! How cost grows: with the operations in the store, those that are open, the instances and the bytes.

mod fill;

use anyhow::{Context, ensure};
use clap::Args;
use futures_util::future::try_join_all;
use harness::broker::Broker;
use harness::caller::Caller;
use harness::http_client;
use harness::postgres::Postgres;
use harness::process::{Process, Service, command};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use requestor::cli::bench::cost;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How much to measure.
#[derive(Clone, Debug, Args)]
pub(crate) struct Settings {
    /// A hundredth of all, to see that it works.
    #[arg(long)]
    small: bool,
    /// Only measurements whose name contains this.
    #[arg(long, env = "ONLY", default_value = "")]
    only: String,
}

/// What each measurement needs.
struct Bench {
    broker: Broker,
    http: reqwest::Client,
    /// What all amounts are divided by.
    part: usize,
    bar: ProgressBar,
}

/// What one size costs a caller who asks one thing after another.
const ASKED: usize = 3000;
/// Requests a second while old operations are forgotten.
const EVEN_RATE: u32 = 100;
/// Connections of those who ask at a rate: more than there may be creates in the store's queue, so that it gets full.
const ASKERS: &str = "6000";
/// What a sleeping job takes, and how many one provider works on.
const SLEEP: Duration = Duration::from_secs(1);
const SLOTS: usize = 8;

/// Measures everything, prints the tables and writes the results.
///
/// # Errors
/// What keeps it from measuring.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let bar = ProgressBar::new(7);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {elapsed}")?);
    bar.enable_steady_tick(Duration::from_secs(1));
    let part = if settings.small { 100 } else { 1 };
    let bench = Bench { broker: Broker::obtain().await?, http: http_client(), part, bar };
    let file = Path::new("target/bench/growth.json");
    // Measurements that are left out now stay as they were.
    let mut results: Value =
        std::fs::read(file).ok().and_then(|old| serde_json::from_slice(&old).ok()).unwrap_or(json!({}));
    for name in ["store", "memory", "providers", "requestors", "payload", "purge", "saturation"] {
        bench.bar.set_message(name);
        if name.contains(&settings.only) {
            results[name] = match name {
                "store" => Box::pin(bench.store()).await,
                "memory" => bench.memory().await,
                "providers" => bench.providers().await,
                "requestors" => bench.requestors().await,
                "payload" => bench.payload().await,
                "saturation" => bench.saturation().await,
                _ => Box::pin(bench.purge()).await,
            }
            .context(name)?;
            std::fs::create_dir_all(file.parent().context("a folder")?)?;
            std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
        }
        bench.bar.inc(1);
    }
    bench.bar.finish_and_clear();
    for table in crate::page::growth_tables(&results) {
        println!("{table}");
    }
    println!("written: {}", file.display());
    Ok(())
}

impl Bench {
    fn requestor(&self, folder: &Path) -> Service {
        let none = "1000000000";
        Service::requestor(self.broker.url(), folder)
            // Nothing that is measured is to be refused.
            .with("REQUESTOR_QUOTAS__RATE_REQUESTS", none)
            .with("REQUESTOR_QUOTAS__OPEN_MAX", none)
            .with("REQUESTOR_QUOTAS__BYTES_MAX", "1000000000000")
            .with("REQUESTOR_LOG__FILTER", "error")
    }

    fn provider(&self, folder: &Path) -> Service {
        Service::provider(self.broker.url(), folder)
            .with("PROVIDER_KINDS", "echo")
            .with("PROVIDER_LOG__FILTER", "error")
    }

    /// Latency of submits and of statuses, by how many operations there are.
    async fn store(&self) -> anyhow::Result<Value> {
        let folder = tempfile::tempdir()?;
        let (requestor, provider) = (self.requestor(folder.path()), self.provider(folder.path()));
        let _provider = provider.start().await;
        fill::first(&requestor, &self.http).await?;
        let (mut there, mut rows) = (0, Vec::new());
        for operations in [1_000, 10_000, 100_000, 1_000_000] {
            self.bar.set_message(format!("store: {operations} operations"));
            let operations = operations / self.part;
            let ids = fill::more(folder.path(), operations - there, Duration::ZERO).await?;
            there = operations;
            let mut process = requestor.start().await;
            let url = url(&requestor);
            ready(&url).await;
            let (submits, statuses) = (self.submits(&url).await?, self.statuses(&url, &ids).await?);
            end(&mut process).await?;
            rows.push(json!({ "operations": operations, "submit": latency(&submits), "status": latency(&statuses) }));
        }
        Ok(json!(rows))
    }

    /// One after the other, over one connection.
    async fn submits(&self, url: &str) -> anyhow::Result<Histogram<u64>> {
        let mut latencies = Histogram::new(3)?;
        let url = format!("{url}/v1/requests/echo");
        for number in 0..ASKED + ASKED / 10 {
            let started = Instant::now();
            let response = self.http.post(&url).json(&payload(256)).send().await?;
            ensure!(response.status() == StatusCode::ACCEPTED, "{response:?}");
            response.bytes().await?;
            // The first ones warm up.
            if number >= ASKED / 10 {
                latencies.record(started.elapsed().as_micros().try_into()?)?;
            }
        }
        Ok(latencies)
    }

    async fn statuses(&self, url: &str, ids: &[String]) -> anyhow::Result<Histogram<u64>> {
        let mut latencies = Histogram::new(3)?;
        // Spread over all, so that no page is asked for twice in a row.
        for number in 0..ASKED {
            let id = &ids[number * 7919 % ids.len()];
            let started = Instant::now();
            let response = self.http.get(format!("{url}/v1/operations/{id}?redirect=false")).send().await?;
            ensure!(response.status() == StatusCode::OK, "{response:?}");
            response.bytes().await?;
            latencies.record(started.elapsed().as_micros().try_into()?)?;
        }
        Ok(latencies)
    }

    /// The most memory of a requestor, by how many operations are open.
    async fn memory(&self) -> anyhow::Result<Value> {
        let folder = tempfile::tempdir()?;
        // No provider: they stay open.
        let requestor = self.requestor(folder.path());
        let mut process = requestor.start().await;
        let (url, mut open, mut rows) = (url(&requestor), 0, Vec::new());
        ready(&url).await;
        for operations in [0, 10_000, 50_000, 100_000] {
            let operations = operations / self.part;
            self.submit_all(&url, "echo", operations - open, 256).await?;
            open = operations;
            rows.push(json!({ "open": operations, "peakBytes": peak_bytes(process.id())? }));
        }
        end(&mut process).await?;
        self.forget_queue("echo").await?;
        Ok(json!(rows))
    }

    /// Sixty-four at a time.
    async fn submit_all(&self, url: &str, kind: &str, count: usize, bytes: usize) -> anyhow::Result<()> {
        let (next, url) = (std::sync::atomic::AtomicUsize::new(0), format!("{url}/v1/requests/{kind}"));
        let submitter = async || {
            while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < count {
                let response = self.http.post(&url).json(&payload(bytes)).send().await?;
                ensure!(response.status() == StatusCode::ACCEPTED, "{}", response.text().await?);
                response.bytes().await?;
            }
            anyhow::Ok(())
        };
        try_join_all((0..64).map(|_| submitter())).await.map(drop)
    }

    /// What nobody will ask for any more must not keep the next measurement's provider busy.
    async fn forget_queue(&self, kind: &str) -> anyhow::Result<()> {
        let connection = lapin::Connection::connect(self.broker.url(), Default::default()).await?;
        let channel = connection.create_channel().await?;
        let queue = shared::topology::request_queue(kind);
        channel.queue_purge(queue.as_str().into(), Default::default()).await?;
        Ok(connection.close(200, "done".into()).await?)
    }

    /// The time for as many sleeping jobs as providers have slots, six times over, by how many providers there are.
    async fn providers(&self) -> anyhow::Result<Value> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("provider.toml");
        let sleep = format!("sleep {}; echo '{{\"result\": 1}}'", SLEEP.as_secs());
        std::fs::write(&file, format!("[commands.\"sleep\"]\ncommand = [\"sh\", \"-c\", '''{sleep}''']\n"))?;
        let requestor = self.requestor(folder.path());
        let mut process = requestor.start().await;
        let url = url(&requestor);
        ready(&url).await;
        let (rounds, mut rows) = (6, Vec::new());
        let mut running: Vec<Process> = Vec::new();
        for providers in [1, 2, 4] {
            while running.len() < providers {
                let own = folder.path().join(running.len().to_string());
                std::fs::create_dir(&own)?;
                let provider = self.provider(&own).with_config(file.clone()).with("PROVIDER_KINDS", "sleep");
                running.push(provider.with("PROVIDER_CONCURRENCY", &SLOTS.to_string()).start().await);
            }
            Caller::new(url.clone()).knows("sleep").await;
            let jobs = providers * SLOTS * rounds;
            let started = Instant::now();
            self.submit_all(&url, "sleep", jobs, 16).await?;
            Caller::new(url.clone()).none_open().await;
            let (took, ideal) = (started.elapsed().as_secs_f64(), (SLEEP * u32::try_from(rounds)?).as_secs_f64());
            rows.push(json!({ "providers": providers, "perSecond": jobs as f64 / took, "ofIdeal": ideal / took }));
        }
        for mut provider in running {
            end(&mut provider).await?;
        }
        end(&mut process).await?;
        Ok(json!(rows))
    }

    /// Operations a second by one and by two requestors on one PostgreSQL database.
    async fn requestors(&self) -> anyhow::Result<Value> {
        let database = Postgres::shared().await.database().await;
        let folder = tempfile::tempdir()?;
        let mut provider = self.provider(folder.path()).start().await;
        let (mut running, mut urls, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for requestors in [1_usize, 2] {
            let own = folder.path().join(requestors.to_string());
            std::fs::create_dir(&own)?;
            let requestor = self.requestor(&own).with("REQUESTOR_STORE__URL", database.url.expose());
            running.push(requestor.start().await);
            urls.push(url(&requestor));
            ready(&urls[requestors - 1]).await;
            let each = 128 / requestors;
            let measured = try_join_all(urls.iter().map(|url| self.rate(url, each, 256))).await?;
            let rate: f64 = measured.iter().filter_map(|measured| measured["perSecond"].as_f64()).sum();
            rows.push(json!({ "requestors": requestors, "perSecond": rate }));
        }
        for mut requestor in running {
            end(&mut requestor).await?;
        }
        end(&mut provider).await?;
        Ok(json!(rows))
    }

    /// Operations a second, by their bytes.
    async fn payload(&self) -> anyhow::Result<Value> {
        let rows = self.with_pair(async |url, _| {
            let mut rows = Vec::new();
            for bytes in [256, 4096, 65_536, 262_144] {
                let measured = self.rate(url, 64, bytes).await?;
                rows.push(json!({
                    "bytes": bytes, "perSecond": measured["perSecond"], "latency": measured["latencyMicroseconds"],
                }));
            }
            Ok(json!(rows))
        });
        rows.await
    }

    /// As fast as it goes, with so many in flight.
    async fn rate(&self, url: &str, in_flight: usize, bytes: usize) -> anyhow::Result<Value> {
        self.load(url, &["--in-flight", &in_flight.to_string(), "--payload", &bytes.to_string()]).await
    }

    /// What `requestor bench http` measures.
    async fn load(&self, url: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let seconds = if self.part == 1 { "5" } else { "1" };
        let mut program = command("requestor", &[("REQUESTOR_LOG__FILTER".to_owned(), "error".to_owned())]);
        program.args(["bench", "http", "--json", "--url", url, "--seconds", seconds]).args(arguments);
        let output = tokio::process::Command::from(program).stderr(Stdio::inherit()).output().await?;
        ensure!(output.status.success(), "requestor bench ended with {}", output.status);
        let measured: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(measured["failed"] == 0, "{measured}");
        Ok(measured)
    }

    /// What becomes of requests that are due at an even rate, by how many times as many are due as can be carried out.
    async fn saturation(&self) -> anyhow::Result<Value> {
        let mut rows = Vec::new();
        let can = self.with_pair(async |url, _| self.rate(url, 256, 256).await).await?;
        let can = can["perSecond"].as_f64().context("a rate")?;
        for times in [0.5, 1.0, 2.0, 3.0] {
            let rate = (can * times).round();
            // Each with a store and with memory of its own.
            let row = self.with_pair(async |url, requestor| {
                let (due, pid) = (rate.to_string(), format!("requestor={requestor}"));
                let open = ["--learn", "nothing", "--in-flight", ASKERS, "--rate", &due, "--pid", &pid];
                let started = Instant::now();
                // Longer to warm up than it takes to connect all.
                let measured = self.load(url, &[&open[..], &["--warm-up", "3"]].concat()).await?;
                let took = started.elapsed().as_secs_f64();
                let ended = Caller::new(url.to_owned()).metric("arr_operations_ended_total", "").await / took;
                Ok(json!({ "times": times, "due": rate, "measured": measured, "endedPerSecond": ended }))
            });
            rows.push(row.await?);
        }
        Ok(json!(rows))
    }

    /// Measures at the URL of a new requestor of this process id, which has a provider.
    async fn with_pair(&self, measure: impl AsyncFnOnce(&str, u32) -> anyhow::Result<Value>) -> anyhow::Result<Value> {
        let folder = tempfile::tempdir()?;
        let (requestor, provider) = (self.requestor(folder.path()), self.provider(folder.path()));
        let (mut process, mut worker) = (requestor.start().await, provider.start().await);
        let url = url(&requestor);
        ready(&url).await;
        let measured = measure(&url, process.id()).await?;
        end(&mut worker).await?;
        end(&mut process).await?;
        self.forget_queue("echo").await?;
        Ok(measured)
    }

    /// Latency of submits at an even rate, with nothing to forget, and while operations past their retention are forgotten.
    async fn purge(&self) -> anyhow::Result<Value> {
        let mut rows = Vec::new();
        for (what, age) in [("nothing to forget", Duration::ZERO), ("while forgetting", Duration::from_hours(1000))] {
            let folder = tempfile::tempdir()?;
            let requestor = self.requestor(folder.path());
            let mut worker = self.provider(folder.path()).start().await;
            fill::first(&requestor, &self.http).await?;
            fill::more(folder.path(), 200_000 / self.part, age).await?;
            let mut process = requestor.start().await;
            let url = url(&requestor);
            ready(&url).await;
            let before = fill::count(folder.path())?;
            let latencies = self.even_submits(&url, if self.part == 1 { 20 } else { 2 }).await?;
            let forgotten = before.saturating_sub(fill::count(folder.path())?);
            end(&mut process).await?;
            end(&mut worker).await?;
            rows.push(json!({ "what": what, "forgotten": forgotten, "submit": latency(&latencies) }));
        }
        Ok(json!(rows))
    }

    /// Each is due at its time, whatever became of those before, and its latency counts from then.
    async fn even_submits(&self, url: &str, seconds: u32) -> anyhow::Result<Histogram<u64>> {
        let (url, started) = (format!("{url}/v1/requests/echo"), Instant::now());
        let asked = (0..EVEN_RATE * seconds).map(|number| {
            let due = started + Duration::from_secs(1) * number / EVEN_RATE;
            let url = &url;
            async move {
                tokio::time::sleep_until(due.into()).await;
                let response = self.http.post(url).json(&payload(256)).send().await?;
                ensure!(response.status() == StatusCode::ACCEPTED, "{response:?}");
                response.bytes().await?;
                anyhow::Ok(due.elapsed())
            }
        });
        let mut latencies = Histogram::new(3)?;
        for latency in try_join_all(asked).await? {
            latencies.record(latency.as_micros().try_into()?)?;
        }
        Ok(latencies)
    }
}

fn payload(bytes: usize) -> Value {
    json!({ "payload": "x".repeat(bytes.saturating_sub(14)) })
}

fn url(requestor: &Service) -> String {
    format!("http://127.0.0.1:{}", requestor.port())
}

async fn ready(url: &str) {
    Caller::new(url.to_owned()).ready().await;
}

async fn end(process: &mut Process) -> anyhow::Result<()> {
    let status = process.terminate().await;
    ensure!(status.success(), "a service ended with {status}");
    Ok(())
}

fn latency(of: &Histogram<u64>) -> Value {
    json!({ "p50": of.value_at_quantile(0.5), "p99": of.value_at_quantile(0.99), "max": of.max() })
}

fn peak_bytes(pid: u32) -> anyhow::Result<u64> {
    cost::peak(pid).context("the requestor has ended")
}
