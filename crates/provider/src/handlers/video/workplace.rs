//! Temporary folders that do not outlive their use, and their process not for long.

use std::fs::File;
use std::io;
use std::path::Path;
use tempfile::TempDir;

/// What the names of our folders among the system's temporary ones begin with.
const PREFIX: &str = "arr-video-";
/// The file in each that its process holds locked as long as it lives.
const LOCK: &str = "lock";

/// A folder of this process, with a folder in it for each request.
#[derive(Debug)]
pub(super) struct Workplace {
    folder: TempDir,
    _lock: File,
}

impl Workplace {
    /// Makes one, and removes those of processes that were killed: a video is large.
    pub(super) fn open() -> io::Result<Self> {
        remove_abandoned()?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let unlocked = folder.path().join("unlocked");
        let lock = File::create(&unlocked)?;
        lock.lock()?;
        // Under its name there is never an unlocked file of a process that lives.
        std::fs::rename(unlocked, folder.path().join(LOCK))?;
        Ok(Self { folder, _lock: lock })
    }

    /// A folder for one request, removed when it is dropped.
    pub(super) fn folder(&self) -> io::Result<TempDir> {
        TempDir::new_in(&self.folder)
    }
}

fn remove_abandoned() -> io::Result<()> {
    for entry in std::fs::read_dir(std::env::temp_dir())? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Another may be removing it too, and what belongs to another user stays.
        if ours && is_abandoned(&entry.path()) && std::fs::remove_dir_all(entry.path()).is_ok() {
            tracing::info!(folder = %entry.path().display(), "removed what a killed process has left");
        }
    }
    Ok(())
}

fn is_abandoned(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}
