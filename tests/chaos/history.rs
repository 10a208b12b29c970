//! What the callers asked and were told: each call as invoke, then ok, fail, or info when its outcome is not known.

use crate::journal::Journal;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Came {
    /// It is about to be made.
    Invoke,
    /// It was answered, and has happened.
    Ok,
    /// It has not happened.
    Fail,
    /// Nobody knows whether it has happened.
    Info,
}

/// An operation that was answered 202.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    /// What makes its request different from all others; its effect bears it.
    pub(crate) reference: String,
    /// What was asked.
    pub(crate) body: Value,
    /// The statuses that callers saw, in order, without repetitions.
    pub(crate) seen: Vec<String>,
    /// How often it was driven again after it had failed.
    pub(crate) retries: usize,
    /// Whether it must succeed: neither canceled, nor impossible, nor short of time.
    pub(crate) should_succeed: bool,
}

/// The record of all callers.
#[derive(Debug)]
pub(crate) struct History {
    journal: Journal,
    memory: Mutex<Memory>,
}

/// What the check needs of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// By operation id.
    pub(crate) accepted: BTreeMap<String, Accepted>,
    /// How many calls of each sort came out in each way.
    pub(crate) calls: BTreeMap<(&'static str, Came), u64>,
}

impl History {
    /// A history in `folder`.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub(crate) fn create(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self { journal: Journal::create(&folder.join("history.jsonl"))?, memory: Mutex::default() })
    }

    /// Records a call of the sort `call` about `subject`; durable when this returns.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) async fn note(
        &self,
        call: &'static str,
        came: Came,
        subject: &str,
        detail: Value,
    ) -> anyhow::Result<()> {
        *self.memory().calls.entry((call, came)).or_default() += 1;
        let entry = json!({ "at": Timestamp::now(), "call": call, "came": came, "subject": subject, "detail": detail });
        self.journal.record(&entry).await
    }

    /// Keeps an operation that was accepted.
    pub(crate) fn accept(&self, id: &str, accepted: Accepted) {
        self.memory().accepted.insert(id.to_owned(), accepted);
    }

    /// Keeps the status that a caller saw.
    pub(crate) fn saw(&self, id: &str, status: &str) {
        self.change(id, |accepted| {
            if accepted.seen.last().is_none_or(|last| last != status) {
                accepted.seen.push(status.to_owned());
            }
        });
    }

    /// Changes what is kept of an operation.
    pub(crate) fn change(&self, id: &str, change: impl FnOnce(&mut Accepted)) {
        if let Some(accepted) = self.memory().accepted.get_mut(id) {
            change(accepted);
        }
    }

    /// How many operations were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.memory().accepted.len()
    }

    /// All that is kept, as it is now.
    pub(crate) fn snapshot(&self) -> Memory {
        self.memory().clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
