use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The exit code of a process that did not end in order, as shells give it for SIGINT.
const KILLED: i32 = 130;

/// A token that is cancelled by the first SIGTERM or SIGINT; a SIGINT after that ends the process at once.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn token() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    // Not waited for: it ends with the first signal or with the process.
    TaskTracker::new().spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutting down; Ctrl-C ends it at once");
        cancel.cancel();
        // SIGTERM may well come twice, from a shell and from whoever started this; Ctrl-C twice is meant.
        interrupt.recv().await;
        std::process::exit(KILLED);
    });
    Ok(token)
}
