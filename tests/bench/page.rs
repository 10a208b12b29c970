//! `docs/performance.md` and its plots, from the results.

use crate::matrix::figures;
use crate::plot::{bars, lines};
use anyhow::Context;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Where the part of the page begins and ends that is written from results; the rest is by hand.
const BEGIN: &str = "<!-- results -->";
const END: &str = "<!-- end of results -->";
const BEGIN_GROWTH: &str = "<!-- growth -->";
const END_GROWTH: &str = "<!-- end of growth -->";

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
pub(crate) fn write(results: &Path, growth: &Path, docs: &Path) -> anyhow::Result<()> {
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
    let mut page = fill(&page, [BEGIN, END], &tables(&document)?)?;
    if let Ok(measured) = std::fs::read(growth) {
        let measured: Value = serde_json::from_slice(&measured).with_context(|| growth.display().to_string())?;
        for (name, plot) in growth_plots(&measured) {
            std::fs::write(plots.join(name), plot)?;
        }
        page = fill(&page, [BEGIN_GROWTH, END_GROWTH], &growth_tables(&measured).join("\n"))?;
    }
    std::fs::write(&path, page)?;
    println!("written: {}", path.display());
    Ok(())
}

/// The page with `text` between two marks.
fn fill(page: &str, [begin, end]: [&str; 2], text: &str) -> anyhow::Result<String> {
    let (before, rest) = page.split_once(begin).with_context(|| format!("the page has no {begin}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("the page has no {end}"))?;
    Ok(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

fn rows<'a>(measured: &'a Value, name: &str) -> &'a [Value] {
    measured[name].as_array().map_or(&[], Vec::as_slice)
}

fn number(row: &Value, path: &str) -> f64 {
    row.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

/// A number with its thousands apart.
fn apart(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

fn milliseconds(row: &Value, path: &str) -> String {
    format!("{:.2} ms", number(row, path) / 1000.0)
}

fn table(measured: &[Value], head: &str, row: impl Fn(&Value) -> Vec<String>) -> String {
    let mut text = format!("{head}\n{}|\n", "|---".repeat(head.matches('|').count() - 1));
    for measured in measured {
        let _ = writeln!(text, "| {} |", row(measured).join(" | "));
    }
    text
}

/// What grows, a table each.
pub(crate) fn growth_tables(measured: &Value) -> Vec<String> {
    let table = |head: &str, name: &str, row: &dyn Fn(&Value) -> Vec<String>| table(rows(measured, name), head, row);
    vec![
        table("| operations in the store | submit p50 | p99 | status p50 | p99 |", "store", &|row| {
            let at = |path| milliseconds(row, path);
            let operations = apart(number(row, "/operations"));
            vec![operations, at("/submit/p50"), at("/submit/p99"), at("/status/p50"), at("/status/p99")]
        }),
        table("| open operations of 256 bytes | most memory of the requestor |", "memory", &|row| {
            vec![apart(number(row, "/open")), format!("{:.0} MiB", number(row, "/peakBytes") / 1_048_576.0)]
        }),
        table(
            "| providers, 8 jobs of 1 s each at once | jobs a second | of the ideal | of linear |",
            "providers",
            &|row| {
                let [providers, rate, part] = ["/providers", "/perSecond", "/ofIdeal"].map(|path| number(row, path));
                let one = rows(measured, "providers").first().map_or(f64::NAN, |first| number(first, "/perSecond"));
                let linear = rate / one / providers;
                vec![providers.to_string(), format!("{rate:.1}"), format!("{part:.3}"), format!("{linear:.3}")]
            },
        ),
        table("| requestors on one PostgreSQL | operations a second |", "requestors", &|row| {
            vec![number(row, "/requestors").to_string(), apart(number(row, "/perSecond"))]
        }),
        table(
            "| bytes of a request, and of its result | operations a second | MiB a second, each way | p50 | p99 |",
            "payload",
            &|row| {
                let (bytes, rate) = (number(row, "/bytes"), number(row, "/perSecond"));
                let megabytes = format!("{:.1}", bytes * rate / 1_048_576.0);
                vec![
                    apart(bytes),
                    apart(rate),
                    megabytes,
                    milliseconds(row, "/latency/p50"),
                    milliseconds(row, "/latency/p99"),
                ]
            },
        ),
        table(
            "| 200,000 operations, 100 submits a second | forgotten | submit p50 | p99 | longest |",
            "purge",
            &|row| {
                let at = |path| milliseconds(row, path);
                let what = row["what"].as_str().unwrap_or_default().to_owned();
                vec![what, apart(number(row, "/forgotten")), at("/submit/p50"), at("/submit/p99"), at("/submit/max")]
            },
        ),
        saturation_table(rows(measured, "saturation")),
    ]
}

fn saturation_table(measured: &[Value]) -> String {
    let head = "| times what can be done | due a second | accepted | p50 | p99 | refused | p99 | ended | memory |";
    table(measured, head, |row| {
        let (count, at) = (|path| apart(number(row, path)), |path| milliseconds(row, path));
        vec![
            number(row, "/times").to_string(),
            count("/due"),
            count("/measured/perSecond"),
            at("/measured/latencyMicroseconds/p50"),
            at("/measured/latencyMicroseconds/p99"),
            count("/measured/refusedPerSecond"),
            at("/measured/refusalMicroseconds/p99"),
            count("/endedPerSecond"),
            format!("{:.0} MiB", number(row, "/measured/peakBytes/requestor") / 1_048_576.0),
        ]
    })
}

fn growth_plots(measured: &Value) -> Vec<(&'static str, String)> {
    let places = |name: &str, label: &str, of: [(&str, f64); 2]| -> Vec<(String, [f64; 2])> {
        let place = |row| (apart(number(row, label)), of.map(|(path, unit)| number(row, path) / unit));
        rows(measured, name).iter().map(place).collect()
    };
    let store = places("store", "/operations", [("/submit/p50", 1000.0), ("/status/p50", 1000.0)]);
    let memory = places("memory", "/open", [("/peakBytes", 1_048_576.0), ("/peakBytes", 1_048_576.0)]);
    let providers = places("providers", "/providers", [("/perSecond", 1.0), ("/providers", 0.125)]);
    let payload = places("payload", "/bytes", [("/perSecond", 1.0), ("/perSecond", 1.0)]);
    let saturation = places(
        "saturation",
        "/due",
        [("/measured/latencyMicroseconds/p50", 1000.0), ("/measured/latencyMicroseconds/p99", 1000.0)],
    );
    vec![
        ("growth-store.svg", lines("ms at the median, by operations in the store", ["submit", "status"], &store)),
        ("growth-memory.svg", lines("MiB of the requestor, by open operations", ["requestor", ""], &memory)),
        ("growth-providers.svg", lines("jobs of 1 s a second, by providers", ["reached", "ideal"], &providers)),
        ("growth-payload.svg", lines("operations a second, by bytes", ["http, wait", ""], &payload)),
        ("growth-saturation.svg", lines("ms to a 202, by requests due a second", ["p50", "p99"], &saturation)),
    ]
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
