use super::process::Service;
use std::path::PathBuf;
use std::process::Command;

/// `service` with a clock that is wrong `by` an amount as `+3h` or `-3h`. Durations are not: only the time of day.
///
/// # Panics
/// When libfaketime is not there: see [`install_if_missing`].
#[must_use]
pub fn shifted(service: Service, by: &str) -> Service {
    let library = library().expect("libfaketime is installed");
    service.with("LD_PRELOAD", library.to_str().unwrap()).with("FAKETIME", by).with("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// Installs Debian's libfaketime unless it is there.
///
/// # Panics
/// When it cannot be installed.
pub async fn install_if_missing() {
    if library().is_none() {
        tokio::task::spawn_blocking(install).await.unwrap();
    }
}

fn install() {
    let script = "set -e
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get -o DPkg::Lock::Timeout=300 install -yqq --no-install-recommends libfaketime";
    let root = nix::unistd::geteuid().is_root();
    let mut command = Command::new(if root { "sh" } else { "sudo" });
    let output = command.args(if root { vec!["-c", script] } else { vec!["sh", "-c", script] }).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(library().is_some(), "cannot install libfaketime: install it yourself\n{said}");
}

/// Where Debian has it, on whatever machine.
fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|file| file.exists())
}
