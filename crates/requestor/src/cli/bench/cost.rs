//! What processes cost: CPU time and memory, from Linux's /proc.

use anyhow::Context;
use std::collections::BTreeMap;
use std::time::Duration;

/// Clock ticks a second in /proc (`sysconf(_SC_CLK_TCK)`): 100 on every Linux that Rust supports.
const TICKS: f64 = 100.0;

/// Reads what named processes have used, among them this one as `bench`.
#[derive(Debug)]
pub struct Meter(Vec<(String, u32)>);

/// CPU time used by each so far.
#[derive(Debug)]
pub struct Used(BTreeMap<String, Duration>);

/// What each has used.
#[derive(Debug, Default)]
pub struct Cost {
    /// CPU time, user and system.
    pub cpu: BTreeMap<String, Duration>,
    /// The most memory that each ever had.
    pub peak_bytes: BTreeMap<String, u64>,
}

/// Reads `NAME=PID`.
///
/// # Errors
/// What is wrong with it.
pub fn named(text: &str) -> anyhow::Result<(String, u32)> {
    let (name, pid) = text.split_once('=').context("write NAME=PID")?;
    Ok((name.to_owned(), pid.parse().context("the part after = is no process id")?))
}

impl Meter {
    /// Of these processes.
    #[must_use]
    pub fn new(pids: &[(String, u32)]) -> Self {
        let own = ("bench".to_owned(), std::process::id());
        Self(pids.iter().cloned().chain([own]).collect())
    }

    /// What each has used so far; those that have ended are left out.
    #[must_use]
    pub fn read(&self) -> Used {
        let mut used = BTreeMap::new();
        for (name, pid) in &self.0 {
            if let Some(cpu) = cpu(*pid) {
                // Several may have one name.
                *used.entry(name.clone()).or_default() += cpu;
            }
        }
        Used(used)
    }

    /// What each has used since.
    #[must_use]
    pub fn since(&self, before: &Used) -> Cost {
        let used = |(name, now): (String, Duration)| {
            let before = before.0.get(&name).copied().unwrap_or_default();
            (name, now.saturating_sub(before))
        };
        let peak_bytes = self.0.iter().filter_map(|(name, pid)| Some((name.clone(), peak(*pid)?))).collect();
        Cost { cpu: self.read().0.into_iter().map(used).collect(), peak_bytes }
    }
}

/// utime and stime, fields 14 and 15 of `proc_pid_stat(5)`.
fn cpu(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may have spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u32 = fields.next()?.parse::<u32>().ok()? + fields.next()?.parse::<u32>().ok()?;
    Some(Duration::from_secs_f64(f64::from(ticks) / TICKS))
}

/// The most memory that a process ever had, in bytes: `VmHWM` of `proc_pid_status(5)`. None if it has ended.
#[must_use]
pub fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let meter = Meter::new(&[]);
        let before = meter.read();
        let started = std::time::Instant::now();
        while meter.since(&before).cpu["bench"].is_zero() {
            assert!(started.elapsed() < Duration::from_secs(10));
        }
        assert!(meter.since(&before).peak_bytes["bench"] > 1024 * 1024);
    }
}
