//! A load: closed, where the next request begins when one has ended, or open, where requests are due at a rate.

use super::cost::{Cost, Meter};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Failures whose reasons are shown.
const REASONS_MAX: usize = 3;

/// One of those who ask.
pub(super) trait Worker: Send + 'static {
    /// Asks once, and returns when what is to be learnt is known.
    fn once(&mut self) -> impl Future<Output = anyhow::Result<Answer>> + Send;
}

/// How a request was answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Done,
    /// Nothing was accepted, and it was said when to ask again.
    Refused,
}

/// How to ask.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
    /// Requests a second; none: as many as there are.
    pub(super) rate: Option<f64>,
    pub(super) quiet: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Measured {
    /// In nanoseconds. Those of an open load count from when the request was due, so that one that was held up by those
    /// before it is not taken for a quick one (coordinated omission).
    pub(super) latencies: Histogram<u64>,
    /// The same of those that were refused.
    pub(super) refusals: Histogram<u64>,
    pub(super) failed: u64,
    pub(super) reasons: Vec<String>,
    pub(super) elapsed: Duration,
    pub(super) cost: Cost,
}

/// When what begins and ends.
#[derive(Clone, Copy, Debug)]
struct Times {
    begin: Instant,
    from: Instant,
    until: Instant,
    rate: Option<f64>,
}

impl Load {
    /// Lets all workers ask, until the time is over and what is under way has ended.
    pub(super) async fn run<W: Worker>(&self, workers: Vec<W>, meter: Meter) -> anyhow::Result<Measured> {
        let begin = Instant::now();
        let from = begin + self.warm_up;
        let times = Times { begin, from, until: from + self.measured, rate: self.rate };
        let due = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for worker in workers {
            tasks.spawn(ask(worker, times, Arc::clone(&due)));
        }
        let bar = self.bar();
        sleep_until(from).await;
        let before = meter.read();
        while Instant::now() < times.until {
            let left = times.until - Instant::now();
            bar.set_position(self.measured.saturating_sub(left).as_millis().try_into().unwrap_or(u64::MAX));
            sleep_until(times.until.min(Instant::now() + Duration::from_millis(100))).await;
        }
        let cost = meter.since(&before);
        bar.finish_and_clear();
        let mut measured = Measured {
            latencies: histogram()?,
            refusals: histogram()?,
            failed: 0,
            reasons: Vec::new(),
            elapsed: self.measured,
            cost,
        };
        while let Some(one) = tasks.join_next().await {
            measured.add(one??)?;
        }
        Ok(measured)
    }

    fn bar(&self) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(self.measured.as_millis().try_into().unwrap_or(u64::MAX));
        let style = ProgressStyle::with_template("measuring {bar:40} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    }
}

impl Times {
    /// When the next request is due; none if the time is over.
    fn next(&self, due: &AtomicU64) -> Option<Instant> {
        let next = match self.rate {
            None => Instant::now(),
            Some(rate) => {
                let number = due.fetch_add(1, Ordering::Relaxed);
                self.begin + Duration::try_from_secs_f64(number as f64 / rate).ok()?
            }
        };
        (next < self.until).then_some(next)
    }
}

/// What one worker has seen.
struct Asked {
    latencies: Histogram<u64>,
    refusals: Histogram<u64>,
    failed: u64,
    reasons: Vec<String>,
}

async fn ask<W: Worker>(mut worker: W, times: Times, due: Arc<AtomicU64>) -> anyhow::Result<Asked> {
    let mut asked = Asked { latencies: histogram()?, refusals: histogram()?, failed: 0, reasons: Vec::new() };
    while let Some(due) = times.next(&due) {
        // Not for one that is due now: a timer has steps of a millisecond.
        if times.rate.is_some() {
            sleep_until(due).await;
        }
        let result = worker.once().await;
        let ended = Instant::now();
        match result {
            // Those that ended within the time, so that their number and the cost are of the same time.
            Ok(answer) if ended >= times.from && ended < times.until => {
                let nanoseconds = (ended - due).as_nanos().try_into().unwrap_or(u64::MAX);
                match answer {
                    Answer::Done => asked.latencies.saturating_record(nanoseconds),
                    Answer::Refused => asked.refusals.saturating_record(nanoseconds),
                }
            }
            Ok(_) => {}
            Err(error) => {
                asked.failed += 1;
                if asked.reasons.len() < REASONS_MAX {
                    asked.reasons.push(format!("{error:#}"));
                }
            }
        }
    }
    Ok(asked)
}

/// From 1 µs to 2 minutes, within a hundredth.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1_000, 120_000_000_000, 2)?)
}

impl Measured {
    fn add(&mut self, asked: Asked) -> anyhow::Result<()> {
        self.latencies.add(&asked.latencies)?;
        self.refusals.add(&asked.refusals)?;
        self.failed += asked.failed;
        let room = REASONS_MAX - self.reasons.len();
        self.reasons.extend(asked.reasons.into_iter().take(room));
        Ok(())
    }

    /// How many of these there were a second.
    pub(super) fn per_second(&self, of: &Histogram<u64>) -> f64 {
        of.len() as f64 / self.elapsed.as_secs_f64()
    }
}
