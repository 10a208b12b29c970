use super::process::binaries;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The client library of the examples in Python, and that of receivers of webhooks.
const PACKAGES: [&str; 2] = ["pika==1.3.2", "standardwebhooks==1.0.0"];
/// For a bare Debian, whose Python has no `venv`.
const INSTALL: &str = "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && \
    apt-get -o DPkg::Lock::Timeout=300 install -yqq --no-install-recommends python3-venv";

/// A Python with what the examples and the tests need, in a virtual environment beside the binaries; made once.
///
/// # Panics
/// When there is none and none can be made.
#[must_use]
pub fn python() -> &'static PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = binaries().join("python");
        let python = folder.join("bin/python");
        if run(Command::new(&python).args(["-c", "import pika, standardwebhooks"])).is_err() {
            let venv = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
            if venv().is_err() {
                let root = nix::unistd::geteuid().is_root();
                let line: &[&str] = if root { &["sh", "-c", INSTALL] } else { &["sudo", "sh", "-c", INSTALL] };
                run(Command::new(line[0]).args(&line[1..])).unwrap();
                venv().unwrap();
            }
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES)).unwrap();
        }
        python
    })
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
