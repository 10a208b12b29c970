//! The run as people read it: what was done, what was seen, and whether every rule holds.

use crate::check::{Facts, Verdict};
use crate::load::is_terminal;
use std::collections::BTreeMap;

/// Violations of a rule that are shown; all are in the folder of the run.
const SHOWN_MAX: usize = 5;
/// The least share of operations that succeed, of those that have no reason not to.
const GOOD_SHARE: f64 = 0.9;
/// Requests for each time that a fault must have been done.
const REQUESTS_A_FAULT: usize = 2000;

/// What a run was, apart from operations and effects.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) broker: String,
    pub(crate) requests: usize,
    pub(crate) crash_points: u64,
    /// How often each crash point was hit in the hunt and after it.
    pub(crate) hits: BTreeMap<&'static str, u64>,
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) starts: u64,
    /// Services that ended by themselves.
    pub(crate) failures: Vec<String>,
    /// Of how many requests after all harm how many succeeded.
    pub(crate) alive: (usize, usize),
    /// What is left in queues.
    pub(crate) left: Vec<String>,
    /// Operations that were open when the time was up.
    pub(crate) open: usize,
}

/// Prints everything; whether all is well.
#[expect(clippy::print_stdout, reason = "the report is what the run is for")]
pub(crate) fn print(run: &Run, facts: &Facts, verdicts: &[Verdict]) -> bool {
    println!(
        "\nchaos: seed {}, RabbitMQ {}, {} {}",
        run.seed,
        run.broker,
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION")
    );
    table("fault", run.faults.iter().map(|(name, count)| (name.as_str(), *count)));
    table("crash point", run.hits.iter().map(|(name, count)| (*name, *count)));
    let calls: Vec<_> =
        facts.memory.calls.iter().map(|((call, came), count)| (format!("{call}: {came:?}"), *count)).collect();
    table("calls", calls.iter().map(|(name, count)| (name.as_str(), *count)));
    let statuses = statuses(facts);
    table("operations", statuses.iter().map(|(name, count)| (name.as_str(), *count)));
    println!(
        "\n{} processes started; {} calls of the payment server, {} of them repeats; {} requests sent more than once",
        run.starts,
        facts.payments.len(),
        repeated_payments(facts),
        facts.resent
    );
    println!("\nrules");
    let all: Vec<_> =
        verdicts.iter().map(|verdict| (verdict.rule, verdict.violations.clone())).chain(others(run, facts)).collect();
    for (rule, violations) in &all {
        println!("  {:<4} {rule}", if violations.is_empty() { "ok" } else { "FAIL" });
        for violation in violations.iter().take(SHOWN_MAX) {
            println!("         {violation}");
        }
        if violations.len() > SHOWN_MAX {
            println!("         … and {} more", violations.len() - SHOWN_MAX);
        }
    }
    println!("\n{}", line(facts, verdicts));
    all.iter().all(|(_, violations)| violations.is_empty())
}

/// The run in one line.
fn line(facts: &Facts, verdicts: &[Verdict]) -> String {
    let count = |rule: &str| {
        let verdict = verdicts.iter().find(|verdict| verdict.rule == rule);
        format!("{rule} {}", verdict.map_or(0, |verdict| verdict.violations.len()))
    };
    let accepted = &facts.memory.accepted;
    let ended =
        |id: &&String| facts.told.get(*id).and_then(|told| told.operation["status"].as_str()).is_some_and(is_terminal);
    let rules = ["lost", "double effects", "flips", "canceled with effect"].map(count).join(", ");
    format!("accepted {}, terminal {}, {rules}", accepted.len(), accepted.keys().filter(ended).count())
}

/// The rules about the run itself: it must have ended well, and must have been no walk in the park.
fn others(run: &Run, facts: &Facts) -> Vec<(&'static str, Vec<String>)> {
    let fault_times = (run.requests / REQUESTS_A_FAULT) as u64;
    let rare = run.faults.iter().filter(|(_, count)| **count < fault_times);
    let rare = rare.map(|(name, count)| format!("{name}: {count} times, not {fault_times}")).collect();
    let unhit = run.hits.iter().filter(|(_, hits)| **hits < run.crash_points);
    let unhit = unhit.map(|(name, hits)| format!("{name}: {hits} times, not {}", run.crash_points)).collect();
    let (good, asked) = good(facts);
    let poor = (good as f64) < GOOD_SHARE * asked as f64;
    let no_repeats = repeated_payments(facts) == 0 || facts.resent == 0;
    let only = |violated: bool, what: String| if violated { vec![what] } else { Vec::new() };
    vec![
        ("queues are empty", run.left.clone()),
        ("all ends by its deadline", only(run.open > 0, format!("{} operations are open", run.open))),
        (
            "requests after all harm succeed",
            only(run.alive.0 < run.alive.1, format!("{} of {}", run.alive.0, run.alive.1)),
        ),
        ("services end only when they are killed", run.failures.clone()),
        ("most requests succeed", only(poor, format!("{good} of {asked}"))),
        ("requests were repeated", only(no_repeats, "none was".into())),
        ("each fault was done often enough", rare),
        ("each crash point was hit often enough", unhit),
    ]
}

/// Of how many operations that have no reason to fail how many succeeded.
fn good(facts: &Facts) -> (usize, usize) {
    let asked = facts.memory.accepted.iter().filter(|(_, accepted)| accepted.should_succeed);
    let good =
        asked.clone().filter(|(id, _)| facts.told.get(*id).is_some_and(|told| told.operation["status"] == "Succeeded"));
    (good.count(), asked.count())
}

/// Calls with a key that the payment server had charged before.
fn repeated_payments(facts: &Facts) -> usize {
    facts.payments.iter().filter(|call| !call.effect && call.status == 200).count()
}

fn statuses(facts: &Facts) -> BTreeMap<String, u64> {
    let mut statuses = BTreeMap::new();
    for (id, told) in &facts.told {
        let [kind, status] = ["kind", "status"].map(|key| told.operation[key].as_str().unwrap_or_default());
        let problem = told.operation["error"]["type"].as_str().and_then(|problem| problem.rsplit(':').next());
        let problem = problem.map(|problem| format!(" ({problem})")).unwrap_or_default();
        *statuses.entry(format!("{kind}: {status}{problem}")).or_default() += 1;
        if told.operation.get("lateOutcome").is_some() {
            *statuses.entry("with a late outcome".into()).or_default() += 1;
        }
        if !facts.memory.accepted.contains_key(id) {
            *statuses.entry("accepted, though the 202 was lost".into()).or_default() += 1;
        }
    }
    statuses
}

#[expect(clippy::print_stdout, reason = "the report is what the run is for")]
fn table<'a>(title: &str, rows: impl Iterator<Item = (&'a str, u64)>) {
    println!("\n{title}");
    for (name, count) in rows {
        println!("  {count:>6}  {name}");
    }
}
