//! One measurement after the other, each by a program of its own.

use crate::bare::Way;
use anyhow::{Context, ensure};
use clap::ValueEnum;
use harness::process::command;
use serde_json::Value;
use std::process::{Command, Stdio};

/// What everything runs against.
#[derive(Debug)]
pub(crate) struct Against {
    pub(crate) broker: String,
    pub(crate) requestor: String,
    /// Processes whose cost is measured.
    pub(crate) pids: Vec<(String, u32)>,
}

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) in_flight: u32,
    pub(crate) seconds: f64,
    pub(crate) payload: u32,
}

impl Against {
    /// What `requestor bench` measures.
    pub(crate) fn ours(&self, arguments: &[&str], amount: Amount) -> anyhow::Result<Value> {
        let variables = [
            ("REQUESTOR_BROKER__URL".to_owned(), self.broker.clone()),
            ("REQUESTOR_LOG__FILTER".to_owned(), "error".to_owned()),
        ];
        let mut command = command("requestor", &variables);
        command.arg("bench").args(arguments).args(["--json", "--url", &self.requestor]);
        self.measure(command, amount, &["bench", "requestor", "provider", "broker"])
    }

    /// What a baseline measures.
    pub(crate) fn bare(&self, way: Way, amount: Amount) -> anyhow::Result<Value> {
        let mut command = Command::new(std::env::current_exe()?);
        let name = way.to_possible_value().context("a way has a name")?;
        command.args(["bare-client", name.get_name(), &self.broker]);
        self.measure(command, amount, &["bench", "bare", "broker"])
    }

    fn measure(&self, mut command: Command, amount: Amount, of: &[&str]) -> anyhow::Result<Value> {
        command.args(["--in-flight", &amount.in_flight.to_string(), "--payload", &amount.payload.to_string()]);
        command.args(["--seconds", &amount.seconds.to_string(), "--warm-up", "1"]);
        for (name, pid) in self.pids.iter().filter(|(name, _)| of.contains(&name.as_str())) {
            command.args(["--pid", &format!("{name}={pid}")]);
        }
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{command:?} ended with {}", output.status);
        let measured: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(measured["failed"] == 0, "{command:?}: {measured}");
        Ok(measured)
    }
}
