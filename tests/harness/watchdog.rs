use anyhow::Context;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A shell that cleans up when this process is gone, even by kill -9: then its standard input ends.
#[derive(Debug)]
pub(crate) struct Watchdog(Child);

impl Watchdog {
    pub(crate) fn new(clean: &str) -> anyhow::Result<Self> {
        let script = format!("read line; [ \"$line\" = off ] || {{ {clean}; }}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self(shell.spawn().context("cannot start sh")?))
    }

    pub(crate) fn call_off(mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _ = input.write_all(b"off\n");
        }
        let _ = self.0.wait();
    }
}
