//! A service that is started again whenever it ends, armed with a crash point or not.

use harness::process::{Process, Service};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often a process is looked after.
const EVERY: Duration = Duration::from_millis(5);
/// How long an armed process may live without reaching its crash point; then the next point has its turn.
const REACHED_WITHIN: Duration = Duration::from_secs(20);
/// Turns in which a crash point may not be reached before it is given up.
const MISSES_MAX: u64 = 10;

/// A crash point, and when it strikes: an action of the crate `fail`.
pub(crate) type Point = (&'static str, &'static str);

/// One of the two services.
#[derive(Clone, Debug)]
pub(crate) struct Kept(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: Service,
    running: Mutex<Running>,
    record: Mutex<Record>,
    stop: CancellationToken,
    keeper: TaskTracker,
}

#[derive(Debug, Default)]
struct Running {
    process: Option<Process>,
    next: Arm,
}

/// What the next process is started with.
#[derive(Clone, Copy, Debug, Default)]
enum Arm {
    #[default]
    Nothing,
    /// This point, once.
    Once(Point),
    /// Each of these points in turn, until each was hit that often.
    Hunt(&'static [Point], u64),
}

/// What has become of the service's processes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// How many were started.
    pub(crate) starts: u64,
    /// How often each crash point ended one.
    pub(crate) hits: BTreeMap<String, u64>,
    /// How often each crash point was waited for in vain.
    pub(crate) misses: BTreeMap<String, u64>,
    /// Those that ended though nobody killed them: none should.
    pub(crate) failures: Vec<String>,
    /// How much of the log was read.
    read: u64,
}

impl Kept {
    /// Starts `service`, and keeps it running.
    pub(crate) fn start(service: Service) -> Self {
        let (running, record) = (Mutex::default(), Mutex::default());
        let (stop, keeper) = (CancellationToken::new(), TaskTracker::new());
        let kept = Self(Arc::new(Inner { service, running, record, stop, keeper }));
        kept.0.keeper.spawn(kept.clone().keep());
        kept
    }

    /// Sends a signal to the process that runs now.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(process) = &mut self.running().process {
            process.signal(signal);
        }
    }

    /// Kills the process that runs now; the next one ends at `point`.
    pub(crate) fn arm(&self, point: Point) {
        self.running().next = Arm::Once(point);
        self.signal(Signal::SIGKILL);
    }

    /// Ends process after process at `points`, until each was hit `times` or could not be reached.
    pub(crate) fn hunt(&self, points: &'static [Point], times: u64) {
        self.running().next = Arm::Hunt(points, times);
        self.signal(Signal::SIGKILL);
    }

    /// Whether that is still going on.
    pub(crate) fn hunts(&self) -> bool {
        matches!(self.running().next, Arm::Hunt(..))
    }

    /// Waits until it listens.
    pub(crate) async fn listening(&self) {
        self.0.service.listening().await;
    }

    /// What has become of its processes so far.
    pub(crate) fn record(&self) -> Record {
        self.lock_record().clone()
    }

    /// Ends it as SIGTERM does, for good.
    pub(crate) async fn stop(&self) {
        self.0.stop.cancel();
        self.0.keeper.close();
        self.0.keeper.wait().await;
        let process = self.running().process.take();
        if let Some(mut process) = process {
            process.signal(Signal::SIGCONT);
            let status = process.terminate().await;
            self.ended(status, None, !status.success());
        }
    }

    async fn keep(self) {
        while !self.0.stop.is_cancelled() {
            let point = self.next();
            self.lock_record().starts += 1;
            let process = match point {
                Some((name, action)) => self.0.service.clone().with("FAILPOINTS", &format!("{name}={action}")).spawn(),
                None => self.0.service.spawn(),
            };
            self.running().process = Some(process);
            let Some(status) = self.watch(point).await else { return };
            let killed = status.signal() == Some(Signal::SIGKILL as i32);
            self.ended(status, point, !killed);
        }
    }

    /// Waits until the process has ended; none if it need not be replaced.
    async fn watch(&self, point: Option<Point>) -> Option<ExitStatus> {
        let started = Instant::now();
        let mut in_vain = false;
        loop {
            if let Some(status) = self.running().process.as_mut()?.status() {
                return Some(status);
            }
            if self.0.stop.is_cancelled() {
                return None;
            }
            if let Some((name, _)) = point
                && self.hunts()
                && !in_vain
                && started.elapsed() > REACHED_WITHIN
            {
                in_vain = true;
                *self.lock_record().misses.entry(name.into()).or_default() += 1;
                self.signal(Signal::SIGKILL);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// The crash point of the next process.
    fn next(&self) -> Option<Point> {
        let next = self.running().next;
        let point = match next {
            Arm::Nothing => None,
            Arm::Once(point) => Some(point),
            Arm::Hunt(points, times) => self.lock_record().next(points, times),
        };
        if point.is_none() || matches!(next, Arm::Once(_)) {
            self.running().next = Arm::Nothing;
        }
        point
    }

    /// Notes how a process ended; `unasked` unless it was killed or told to.
    fn ended(&self, status: ExitStatus, point: Option<Point>, unasked: bool) {
        let mut record = self.lock_record();
        let text = read_from(self.0.service.log_file(), &mut record.read);
        let hit = text.lines().filter_map(|line| line.strip_prefix("crash point ")).next_back().map(str::to_owned);
        match hit {
            Some(name) => *record.hits.entry(name).or_default() += 1,
            None if unasked => record.failures.push(format!("{status}, armed with {point:?}")),
            None => {}
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_record(&self) -> MutexGuard<'_, Record> {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// The point whose turn it is: the one that was hit the least.
    fn next(&self, points: &[Point], times: u64) -> Option<Point> {
        let count = |counts: &BTreeMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or_default();
        let open = points.iter().filter(|(name, _)| count(&self.hits, name) < times);
        let open = open.filter(|(name, _)| count(&self.misses, name) < MISSES_MAX);
        open.min_by_key(|(name, _)| count(&self.hits, name) + count(&self.misses, name)).copied()
    }
}

/// What was appended to a file since `read` bytes.
fn read_from(path: &std::path::Path, read: &mut u64) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = std::fs::File::open(path)
        && file.seek(SeekFrom::Start(*read)).is_ok()
        && file.read_to_end(&mut text).is_ok()
    {
        *read += text.len() as u64;
    }
    String::from_utf8_lossy(&text).into_owned()
}
