//! What came of a measurement, for people and for machines.

use super::load::Measured;
use super::{Arguments, Mode};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::fmt::Write;

/// Which share of all was at least so quick.
const QUANTILES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

#[expect(clippy::print_stdout, reason = "the output of a command")]
pub(super) fn show(arguments: &Arguments, measured: &Measured, as_json: bool) -> anyhow::Result<()> {
    let document = document(arguments, measured);
    println!("{}", if as_json { document.to_string() } else { table(&document, measured) });
    Ok(())
}

fn document(arguments: &Arguments, measured: &Measured) -> Value {
    let microseconds = |of: &Histogram<u64>| -> Value {
        QUANTILES.iter().map(|(name, at)| ((*name).to_owned(), of.value_at_quantile(*at) as f64 / 1000.0)).collect()
    };
    let done = measured.latencies.len();
    let cost = measured.cost.cpu.iter().map(|(name, used)| {
        let each = if done == 0 { 0.0 } else { used.as_secs_f64() * 10_000.0 / done as f64 };
        (name.clone(), Value::from((each * 1000.0).round() / 1000.0))
    });
    json!({
        "mode": arguments.mode.to_possible_value().map(|value| value.get_name().to_owned()),
        "inFlight": arguments.in_flight,
        "seconds": arguments.seconds,
        "payloadBytes": arguments.payload,
        "rate": arguments.rate,
        "learn": matches!(arguments.mode, Mode::Http)
            .then(|| arguments.learn.to_possible_value().map(|value| value.get_name().to_owned())),
        "done": done,
        "failed": measured.failed,
        "reasons": measured.reasons,
        "perSecond": measured.per_second(&measured.latencies).round(),
        "latencyMicroseconds": microseconds(&measured.latencies),
        "refused": measured.refusals.len(),
        "refusedPerSecond": measured.per_second(&measured.refusals).round(),
        "refusalMicroseconds": microseconds(&measured.refusals),
        "cpuSecondsPer10000": cost.collect::<serde_json::Map<_, _>>(),
        "peakBytes": measured.cost.peak_bytes,
    })
}

fn table(document: &Value, measured: &Measured) -> String {
    let mut text = format!("{} in {:.1} s: ", document["done"], measured.elapsed.as_secs_f64());
    let _ = write!(text, "{} a second, {} failed", document["perSecond"], document["failed"]);
    let _ = match measured.refusals.is_empty() {
        true => writeln!(text),
        false => writeln!(text, ", {} refused, {} a second", document["refused"], document["refusedPerSecond"]),
    };
    for reason in &measured.reasons {
        let _ = writeln!(text, "  failed: {reason}");
    }
    let latencies = [("latency", "latencyMicroseconds"), ("of refusals", "refusalMicroseconds")];
    for (what, key) in latencies.into_iter().take(if measured.refusals.is_empty() { 1 } else { 2 }) {
        let _ = write!(text, "\n{what:<12}");
        for (name, _) in QUANTILES {
            let milliseconds = document[key][name].as_f64().unwrap_or_default() / 1000.0;
            let _ = write!(text, "{name:>7} {milliseconds:.2} ms");
        }
    }
    let _ = write!(text, "\n\n{:<14}{:>22}{:>16}", "process", "CPU s for 10,000", "peak MiB");
    for (name, each) in document["cpuSecondsPer10000"].as_object().into_iter().flatten() {
        let peak = document["peakBytes"][name].as_f64().unwrap_or_default() / 1024.0 / 1024.0;
        let _ = write!(text, "\n{name:<14}{:>22.3}{peak:>16.1}", each.as_f64().unwrap_or_default());
    }
    text
}
