//! An append-only file of JSON lines. What was recorded is on disk, whatever happens next.

use anyhow::Context;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Writes lines in the order in which they come; many share one sync.
#[derive(Clone, Debug)]
pub(crate) struct Journal(mpsc::Sender<Line>);

struct Line {
    text: String,
    durable: oneshot::Sender<()>,
}

impl Journal {
    /// A journal in a new file at `path`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        let (lines, waiting) = mpsc::channel();
        std::thread::Builder::new().name("journal".into()).spawn(move || write(file, &waiting))?;
        Ok(Self(lines))
    }

    /// Records `entry`; when this returns, it is durable.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) async fn record(&self, entry: &impl Serialize) -> anyhow::Result<()> {
        let (durable, recorded) = oneshot::channel();
        let text = serde_json::to_string(entry)?;
        self.0.send(Line { text, durable }).ok().context("the journal cannot be written")?;
        recorded.await.context("the journal cannot be written")
    }
}

fn write(mut file: File, lines: &mpsc::Receiver<Line>) {
    while let Ok(first) = lines.recv() {
        let batch: Vec<_> = std::iter::once(first).chain(lines.try_iter()).collect();
        let text: String = batch.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect();
        if file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).is_err() {
            // Whoever waits learns it by the end of its channel.
            return;
        }
        for line in batch {
            let _ = line.durable.send(());
        }
    }
}
