//! `docs/performance.md` and its plots, from the results.

use crate::matrix::figures;
use crate::plot::bars;
use anyhow::Context;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Where the part of the page begins and ends that is written from results; the rest is by hand.
const BEGIN: &str = "<!-- results -->";
const END: &str = "<!-- end of results -->";

/// One row of the table of goals.
struct Goal {
    what: &'static str,
    work: &'static str,
    in_flight: u32,
    /// From ours and the baseline's: a second, p50, CPU.
    reached: fn([f64; 3], [f64; 3]) -> f64,
    goal: f64,
    at_least: bool,
}

fn rate(ours: [f64; 3], bare: [f64; 3]) -> f64 {
    ours[0] / bare[0]
}

fn latency(ours: [f64; 3], bare: [f64; 3]) -> f64 {
    ours[1] / bare[1]
}

fn cpu(ours: [f64; 3], _bare: [f64; 3]) -> f64 {
    ours[2]
}

const GOALS: [Goal; 7] = [
    Goal { what: "calls a second", work: "rpc", in_flight: 64, reached: rate, goal: 1.0, at_least: true },
    Goal { what: "calls a second", work: "rpc", in_flight: 1024, reached: rate, goal: 1.1, at_least: true },
    Goal { what: "p50 of a call", work: "rpc", in_flight: 1, reached: latency, goal: 1.05, at_least: false },
    Goal { what: "operations a second", work: "tracked", in_flight: 1024, reached: rate, goal: 0.8, at_least: true },
    Goal { what: "operations a second", work: "http, wait", in_flight: 1024, reached: rate, goal: 0.6, at_least: true },
    Goal {
        what: "p50 of an operation",
        work: "http, wait",
        in_flight: 1,
        reached: latency,
        goal: 1.5,
        at_least: false,
    },
    Goal {
        what: "CPU s of requestor and provider for 10,000",
        work: "http, wait",
        in_flight: 1024,
        reached: cpu,
        goal: 2.0,
        at_least: false,
    },
];

/// Writes the part of the page that is of results, and the plots.
///
/// # Errors
/// When the results cannot be read, or the page not be written.
pub(crate) fn write(results: &Path, docs: &Path) -> anyhow::Result<()> {
    let document: Value = serde_json::from_slice(&std::fs::read(results).context("run `make bench` first")?)?;
    let plots = docs.join("performance");
    std::fs::create_dir_all(&plots)?;
    for work in ["rpc", "tracked", "http, wait", "http, events"] {
        let groups: Vec<_> = of(&document, work)
            .map(|result| {
                let values = ["ours", "bare"].map(|side| figures(result, side)[0]);
                (format!("{} in flight", result["inFlight"]), values)
            })
            .collect();
        let name = work.replace(", ", "-");
        std::fs::write(
            plots.join(format!("{name}.svg")),
            bars(&format!("{work}: a second"), ["ours", "by hand"], &groups),
        )?;
    }
    let path = docs.join("performance.md");
    let page = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = page.split_once(BEGIN).context("the page has no place for results")?;
    let (_, after) = rest.split_once(END).context("the place for results has no end")?;
    std::fs::write(&path, format!("{before}{BEGIN}\n\n{}\n{END}{after}", tables(&document)?))?;
    println!("written: {}", path.display());
    Ok(())
}

fn of<'a>(document: &'a Value, work: &str) -> impl Iterator<Item = &'a Value> {
    let results = document["results"].as_array().into_iter().flatten();
    results.filter(move |result| result["work"] == work)
}

fn tables(document: &Value) -> anyhow::Result<String> {
    let mut text = format!(
        "RabbitMQ {}, {} cores for everything, {} bytes, medians of {} rounds of {} s each.\n\n",
        document["broker"].as_str().context("broker")?,
        document["cores"],
        document["payloadBytes"],
        document["rounds"],
        document["seconds"]
    );
    text += "| work | measure | goal | reached |\n|---|---|---|---|\n";
    for goal in &GOALS {
        let Some(result) = of(document, goal.work).find(|result| result["inFlight"] == goal.in_flight) else {
            continue;
        };
        let reached = (goal.reached)(figures(result, "ours"), figures(result, "bare"));
        let met = if goal.at_least { reached >= goal.goal } else { reached <= goal.goal };
        let sign = if goal.at_least { "≥" } else { "≤" };
        let _ = writeln!(
            text,
            "| {}, {} in flight | {} | {sign} {} | {}{reached:.2} |",
            goal.work,
            goal.in_flight,
            goal.what,
            goal.goal,
            if met { "**yes**: " } else { "no: " }
        );
    }
    text += "\n| work | in flight | ours a second | by hand | ours p50 | by hand | ours CPU s for 10,000 | by hand |\n";
    text += "|---|---|---|---|---|---|---|---|\n";
    for result in document["results"].as_array().into_iter().flatten() {
        let ([ours, p50, cpu], [bare, bare_p50, bare_cpu]) = (figures(result, "ours"), figures(result, "bare"));
        let _ = writeln!(
            text,
            "| {} | {} | {ours:.0} | {bare:.0} | {:.2} ms | {:.2} ms | {cpu:.2} | {bare_cpu:.2} |",
            result["work"].as_str().unwrap_or_default(),
            result["inFlight"],
            p50 / 1000.0,
            bare_p50 / 1000.0
        );
    }
    Ok(text)
}
