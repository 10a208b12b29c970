//! `make chaos`: thousands of requests under random faults and at every crash point, an independent record of what
//! happened in the world, and a check of what was promised.
#![forbid(unsafe_code)]

mod check;
mod crash_points;
mod evidence;
mod history;
mod journal;
mod kept;
mod load;
mod nemesis;
mod report;
mod sink;
mod stack;

use anyhow::{bail, ensure};
use check::Facts;
use clap::Parser;
use harness::broker::Broker;
use history::History;
use indicatif::{ProgressBar, ProgressStyle};
use load::Load;
use report::Run;
use stack::{Side, Stack};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Does harm to the requestor, the provider and the broker under load, and checks that every promise is kept.
#[derive(Debug, Parser)]
enum Arguments {
    /// Everything: crash points, random faults, and the check.
    Run(Options),
    /// The payment server alone, as `run` starts it.
    Sink(sink::Arguments),
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Requests under random faults.
    #[arg(long, env = "REQUESTS", default_value_t = 2000)]
    requests: usize,
    /// How often each crash point is hit before that.
    #[arg(long, env = "CRASH_POINTS", default_value_t = 100)]
    crash_points: u64,
    /// What all that is random comes from; another each time unless given.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Requests a second.
    #[arg(long, default_value_t = 25.0)]
    rate: f64,
    /// As in continuous integration: 2,000 requests, and each crash point 50 times.
    #[arg(long)]
    ci: bool,
}

/// Requests after all harm, each of which must succeed.
const PROBES: usize = 50;
/// How long what is left in queues may take to be gone.
const QUEUES_EMPTY_WITHIN: Duration = Duration::from_secs(30);

#[tokio::main]
#[expect(clippy::print_stderr, reason = "for the person who runs it")]
async fn main() -> ExitCode {
    // Not lapin's: a broker that is killed is nothing to tell of.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_env_filter("chaos=warn").init();
    let result = match Arguments::parse() {
        Arguments::Sink(arguments) => sink::run(arguments).await.map(|()| true),
        Arguments::Run(options) => interruptible(options).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interruptible(options: Options) -> anyhow::Result<bool> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // What is dropped here ends the processes that it stands for.
    tokio::select! {
        result = run(options) => result,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("interrupted"),
    }
}

#[expect(clippy::print_stderr, reason = "for the person who runs it")]
async fn run(mut options: Options) -> anyhow::Result<bool> {
    if options.ci {
        (options.requests, options.crash_points) = (2000, 50);
    }
    let seed = options.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    let folder = tempfile::Builder::new().prefix("chaos-").tempdir()?.keep();
    eprintln!("chaos: seed {seed}; files in {}", folder.display());
    let mut broker = Broker::start().await?;
    ensure!(!broker.is_given(), "a broker that was given is not ours to kill");
    let good = trial(&options, seed, &folder, &mut broker).await?;
    if good {
        std::fs::remove_dir_all(&folder)?;
    } else {
        eprintln!("chaos: seed {seed} fails; its files are kept in {}", folder.display());
    }
    Ok(good)
}

/// Does harm, heals, waits, gathers and judges.
async fn trial(options: &Options, seed: u64, folder: &Path, broker: &mut Broker) -> anyhow::Result<bool> {
    let version = broker.version().await?;
    let stack = Stack::start(broker, folder).await?;
    let history = Arc::new(History::create(folder)?);
    let load = Load::new(stack.caller.clone(), Arc::clone(&history), seed);
    if options.crash_points > 0 {
        hunt(&stack, &load, options.crash_points).await;
    }
    let faults = nemesis::Faults::create(folder)?;
    harm(options, seed, &stack, &load, &history, broker, &faults).await?;
    nemesis::heal(&stack);
    for side in [Side::Requestor, Side::Provider] {
        stack.service(side).listening().await;
    }
    let open = drain(&stack, &load).await?;
    let alive = (load.plain(PROBES).await, PROBES);
    let told = evidence::operations(&stack.caller).await?;
    stack.service(Side::Provider).stop().await;
    let mut left = emptied(&stack, false).await;
    stack.service(Side::Requestor).stop().await;
    left.extend(emptied(&stack, true).await);
    let facts = Facts {
        memory: history.snapshot(),
        told,
        ledger: evidence::ledger(folder)?,
        payments: evidence::payments(&stack)?,
        resent: evidence::resent(folder)?,
        events: evidence::events(folder)?,
    };
    let records = [Side::Requestor, Side::Provider].map(|side| stack.service(side).record());
    let run = Run {
        seed,
        broker: version,
        requests: options.requests,
        crash_points: options.crash_points,
        hits: [Side::Requestor, Side::Provider]
            .into_iter()
            .flat_map(|side| crash_points::hits(side, stack.service(side)))
            .collect(),
        faults: faults.counts(),
        starts: records.iter().map(|record| record.starts).sum(),
        failures: records.into_iter().flat_map(|record| record.failures).collect(),
        alive,
        left,
        open,
    };
    Ok(report::print(&run, &facts, &check::judge(&facts)))
}

/// Ends both services at each crash point.
async fn hunt(stack: &Stack, load: &Load, times: u64) {
    let points = crash_points::of(Side::Requestor).len() + crash_points::of(Side::Provider).len();
    let bar = bar("crash points", points as u64 * times);
    crash_points::hunt(stack, load, times, |hits| bar.set_position(hits)).await;
    bar.finish();
}

/// Does random harm for as long as requests are made.
async fn harm(
    options: &Options,
    seed: u64,
    stack: &Stack,
    load: &Load,
    history: &History,
    broker: &mut Broker,
    faults: &nemesis::Faults,
) -> anyhow::Result<()> {
    let before = history.accepted();
    let (bar, enough) = (bar("requests", options.requests as u64), CancellationToken::new());
    let asking = async {
        let show = async {
            loop {
                bar.set_position((history.accepted() - before) as u64);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            () = load.paced(options.requests, options.rate) => {}
            () = show => {}
        }
        enough.cancel();
        bar.finish();
    };
    let ((), processes, wires) = tokio::join!(
        asking,
        nemesis::harm_processes(stack, seed, faults, &enough),
        nemesis::harm_wires(stack, broker, seed, faults, &enough)
    );
    processes.and(wires)
}

/// Waits until all operations have ended and all callers know it; how many operations have not ended in time.
async fn drain(stack: &Stack, load: &Load) -> anyhow::Result<usize> {
    let until = Instant::now() + load::TIMEOUT + load::GRACE;
    let bar = bar("callers to come home", load.under_way() as u64);
    loop {
        let open = evidence::open(&stack.caller).await;
        bar.set_position(bar.length().unwrap_or_default().saturating_sub(load.under_way() as u64));
        match open {
            Ok(0) if load.under_way() == 0 => break,
            _ if Instant::now() < until => tokio::time::sleep(Duration::from_millis(200)).await,
            _ => break,
        }
    }
    bar.finish();
    load.dismiss().await;
    evidence::open(&stack.caller).await
}

/// What is still in queues when they had time to be emptied.
async fn emptied(stack: &Stack, unattended: bool) -> Vec<String> {
    let until = Instant::now() + QUEUES_EMPTY_WITHIN;
    loop {
        match harness::pair::empty(&stack.host, unattended).await {
            Ok(()) => return Vec::new(),
            Err(left) if Instant::now() > until => return vec![left],
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// A progress bar on a terminal, and one line elsewhere.
#[expect(clippy::print_stderr, reason = "for the person who runs it")]
fn bar(what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed:>5} {wide_bar} {pos}/{len} {msg}");
    let bar = ProgressBar::new(length).with_message(what);
    if bar.is_hidden() {
        eprintln!("chaos: {length} {what}");
    }
    style.map_or(bar.clone(), |style| bar.with_style(style))
}
