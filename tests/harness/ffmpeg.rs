use std::process::{Command, Stdio};
use tokio::sync::Mutex;

/// Installs Debian's ffmpeg unless there is one. One at a time: another test may be installing it just now.
///
/// # Panics
/// When it cannot be installed, with what to do.
pub async fn install_if_missing() {
    static INSTALLING: Mutex<()> = Mutex::const_new(());
    let _installing = INSTALLING.lock().await;
    if !is_there() {
        tokio::task::spawn_blocking(install).await.unwrap();
    }
}

/// Whether there is an ffmpeg.
#[must_use]
pub fn is_there() -> bool {
    let mut command = Command::new("ffmpeg");
    command.arg("-version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[expect(clippy::print_stderr, reason = "it takes a while, and who waits should know why")]
fn install() {
    eprintln!("ffmpeg: there is none: installing Debian's package (once)");
    let script = "export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get -o DPkg::Lock::Timeout=300 install -yqq --no-install-recommends ffmpeg";
    let root = nix::unistd::geteuid().is_root();
    let words = if root { &["sh", "-c", script][..] } else { &["sudo", "sh", "-c", script] };
    let said = match Command::new(words[0]).args(&words[1..]).output() {
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    assert!(is_there(), "cannot install ffmpeg: install it, with ffprobe and libx264\n{said}");
}
