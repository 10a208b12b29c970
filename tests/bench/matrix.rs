//! What is measured, and the table of it.

use crate::bare::Way;
use crate::runs::{Against, Amount};
use anyhow::Context;
use clap::{Args, ValueEnum};
use harness::broker::Broker;
use harness::process::{Process, Service};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// How much to measure.
#[derive(Clone, Debug, Args)]
pub(crate) struct Settings {
    /// Seconds of each measurement, after one to warm up.
    #[arg(long, env = "SECONDS_EACH", default_value_t = 4.0)]
    seconds: f64,
    /// How often each is measured; medians count.
    #[arg(long, env = "ROUNDS", default_value_t = 5)]
    rounds: usize,
    /// Bytes of each request.
    #[arg(long, env = "PAYLOAD", default_value_t = 256)]
    payload: u32,
    /// Only work whose name contains this.
    #[arg(long, env = "ONLY", default_value = "")]
    only: String,
}

/// One kind of work, and what it is held against.
struct Work {
    name: &'static str,
    arguments: &'static [&'static str],
    baseline: Way,
    in_flight: &'static [u32],
}

const WORK: [Work; 4] = [
    Work { name: "rpc", arguments: &["rpc"], baseline: Way::Rpc, in_flight: &[1, 64, 1024] },
    Work { name: "tracked", arguments: &["tracked"], baseline: Way::Durable, in_flight: &[1, 64, 1024] },
    Work { name: "http, wait", arguments: &["http"], baseline: Way::Durable, in_flight: &[1, 64, 1024] },
    Work {
        name: "http, events",
        arguments: &["http", "--learn", "sse"],
        baseline: Way::Durable,
        in_flight: &[1, 64, 1024],
    },
];

/// What stays while all is measured.
struct Stack {
    against: Against,
    _processes: Vec<Process>,
}

/// Measures everything, a baseline and ours in turn, prints the table and writes the results.
///
/// # Errors
/// What keeps it from measuring.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let broker = Broker::obtain().await?;
    let stack = Stack::start(&broker, folder.path()).await?;
    let work: Vec<_> = WORK.iter().filter(|work| work.name.contains(&settings.only)).collect();
    let all: usize = work.iter().map(|work| work.in_flight.len() * settings.rounds * 2).sum();
    let bar = ProgressBar::new(all.try_into()?);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}")?);
    let mut results = Vec::new();
    for work in work {
        for &in_flight in work.in_flight {
            bar.set_message(format!("{}, {in_flight} in flight", work.name));
            let amount = Amount { in_flight, seconds: settings.seconds, payload: settings.payload };
            let (mut bare, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..settings.rounds {
                bare.push(stack.against.bare(work.baseline, amount)?);
                bar.inc(1);
                ours.push(stack.against.ours(work.arguments, amount)?);
                bar.inc(1);
            }
            let name = work.baseline.to_possible_value().context("a way has a name")?.get_name().to_owned();
            results.push(json!({
                "work": work.name, "baseline": name, "inFlight": in_flight, "bare": bare, "ours": ours,
            }));
        }
    }
    bar.finish_and_clear();
    let document = json!({
        "broker": broker.version().await?, "cores": std::thread::available_parallelism()?.get(),
        "rounds": settings.rounds, "seconds": settings.seconds, "payloadBytes": settings.payload, "results": results,
    });
    println!("{}", table(&document));
    let file = Path::new("target/bench/results.json");
    std::fs::create_dir_all(file.parent().context("a folder")?)?;
    std::fs::write(file, serde_json::to_string_pretty(&document)?)?;
    println!("written: {}", file.display());
    Ok(())
}

impl Stack {
    async fn start(broker: &Broker, folder: &Path) -> anyhow::Result<Self> {
        let requestor = Service::requestor(broker.url(), folder)
            // Nothing that is measured is to be refused.
            .with("REQUESTOR_QUOTAS__RATE_REQUESTS", "100000000")
            .with("REQUESTOR_QUOTAS__WAITERS_MAX", "4000")
            .with("REQUESTOR_HTTP__WAITERS_MAX", "4100");
        let provider = Service::provider(broker.url(), folder)
            .with("PROVIDER_KINDS", "echo")
            .with("PROVIDER_CALLS__PREFETCH", "2048");
        let mut processes = vec![requestor.start().await, provider.start().await];
        let mut pids = vec![("requestor".to_owned(), processes[0].id()), ("provider".to_owned(), processes[1].id())];
        for way in ["rpc", "durable"] {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["bare-server", way, broker.url()]).stdin(Stdio::null());
            processes.push(Process::spawn(&mut command));
        }
        pids.extend(processes[2..].iter().map(|process| ("bare".to_owned(), process.id())));
        pids.extend(broker_process().map(|pid| ("broker".to_owned(), pid)));
        let url = format!("http://127.0.0.1:{}", requestor.port());
        let caller = harness::caller::Caller::new(url.clone());
        caller.ready().await;
        Ok(Self { against: Against { broker: broker.url().into(), requestor: url, pids }, _processes: processes })
    }
}

/// The one broker on this machine, in a container or not; none if there are several, since which is ours is not known.
fn broker_process() -> Option<u32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_broker =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "beam.smp");
    let mut brokers = pids.filter(is_broker);
    brokers.next().filter(|_| brokers.next().is_none())
}

/// The middle one of what `of` says of each round.
pub(crate) fn median(rounds: &Value, of: impl Fn(&Value) -> f64) -> f64 {
    let mut values: Vec<_> = rounds.as_array().into_iter().flatten().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of both sides: how many a second, the median latency in µs, CPU seconds for 10,000 without the broker and without who
/// asks over HTTP.
pub(crate) fn figures(result: &Value, side: &str) -> [f64; 3] {
    let of_cpu = |round: &Value| {
        let counts = |name: &str| name != "broker" && !(name == "bench" && side == "ours" && is_http(result));
        let used = round["cpuSecondsPer10000"].as_object();
        used.into_iter().flatten().filter(|(name, _)| counts(name)).filter_map(|(_, used)| used.as_f64()).sum()
    };
    [
        median(&result[side], |round| round["perSecond"].as_f64().unwrap_or(f64::NAN)),
        median(&result[side], |round| round["latencyMicroseconds"]["p50"].as_f64().unwrap_or(f64::NAN)),
        median(&result[side], of_cpu),
    ]
}

/// Whether ours is asked over HTTP, so that who asks is none of ours.
fn is_http(result: &Value) -> bool {
    result["work"].as_str().is_some_and(|work| work.starts_with("http"))
}

fn table(document: &Value) -> String {
    let head = format!(
        "{:<14}{:>10}{:>12}{:>12}{:>8}{:>12}{:>12}{:>8}{:>10}{:>10}",
        "work", "in flight", "ours /s", "bare /s", "ratio", "ours p50", "bare p50", "ratio", "ours CPU", "bare CPU"
    );
    let rows = document["results"].as_array().into_iter().flatten().map(|result| {
        let ([ours, ours_p50, ours_cpu], [bare, bare_p50, bare_cpu]) =
            (figures(result, "ours"), figures(result, "bare"));
        let milliseconds = |microseconds: f64| format!("{:.2} ms", microseconds / 1000.0);
        format!(
            "{:<14}{:>10}{ours:>12.0}{bare:>12.0}{:>8.2}{:>12}{:>12}{:>8.2}{ours_cpu:>10.2}{bare_cpu:>10.2}",
            result["work"].as_str().unwrap_or_default(),
            result["inFlight"].to_string(),
            ours / bare,
            milliseconds(ours_p50),
            milliseconds(bare_p50),
            ours_p50 / bare_p50,
        )
    });
    let about = format!(
        "RabbitMQ {}, {} cores for all, {} bytes, medians of {} rounds of {} s; CPU: seconds for 10,000, both sides, \
         without the broker",
        document["broker"].as_str().unwrap_or_default(),
        document["cores"],
        document["payloadBytes"],
        document["rounds"],
        document["seconds"]
    );
    std::iter::once(about).chain([String::new(), head]).chain(rows).collect::<Vec<_>>().join("\n")
}
