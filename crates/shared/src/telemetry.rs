use anyhow::Context;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use tracing_subscriber::EnvFilter;

/// The section `[log]` of both configuration files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged, as `tracing`'s directives: `info,requestor=debug`.
    pub filter: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Starts logging to standard error, unless something in this process has started logging already.
///
/// lapin's own log is left out: it calls handled failures errors.
///
/// # Errors
/// When the filter is not well formed.
pub fn init_logs(config: &LogConfig) -> anyhow::Result<()> {
    let directives = format!("{},lapin=off", config.filter);
    let filter = EnvFilter::try_new(&directives).with_context(|| format!("log.filter {:?}", config.filter))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// The process's metrics in Prometheus's text format.
#[must_use]
pub fn render_metrics() -> String {
    recorder().map(PrometheusHandle::render).unwrap_or_default()
}

/// Folds what was measured since the last call into the histograms; without it every sample is kept.
pub fn upkeep_metrics() {
    if let Some(handle) = recorder() {
        handle.run_upkeep();
    }
}

/// Starts counting. Called once in each process; further calls change nothing.
pub fn init_metrics() {
    let _ = recorder();
}

fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().ok()).as_ref()
}
