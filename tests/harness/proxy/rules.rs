//! What is done to which message or acknowledgement.

use super::frames::Method;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a rule does to a whole message or acknowledgement. TCP loses nothing and repeats nothing by itself, so each
/// of these stands for something else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Dropped, and the connection cut with it: what a crash of either side, or of the path between, looks like. The
    /// usual way to lose something.
    DropAndCut,
    /// Dropped, and the connection goes on: a peer that forgets. A message that was dropped is never confirmed or
    /// acknowledged to its sender; a confirm or an acknowledgement that was dropped is not made up for by a later
    /// one for many. The numbers that both sides count are kept right.
    Drop,
    /// Passed twice, as a peer does that does not know whether the first arrived. A message that was passed twice is
    /// confirmed or acknowledged to its sender once, with the last copy. An acknowledgement that is passed twice
    /// violates the protocol, and the receiver closes the channel.
    Duplicate,
    /// Held for this long, with all behind it.
    Delay(Duration),
}

/// Which of those that a rule is for, counted from 1 over all connections of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// This one alone.
    Nth(u64),
    /// Each of this many: 1 is all.
    Every(u64),
}

/// A rule that counts what it has seen and done, so that a test can check that it did.
#[derive(Debug)]
pub struct Rule {
    method: Method,
    which: Which,
    action: Action,
    seen: AtomicU64,
    fired: AtomicU64,
}

impl Rule {
    /// How many passed that the rule could be for.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// How often it did what it is for.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }

    fn applies(&self, method: Method) -> bool {
        if self.method != method {
            return false;
        }
        let number = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        match self.which {
            Which::Nth(nth) => number == nth,
            Which::Every(each) => number.is_multiple_of(each),
        }
    }
}

/// The rules of a proxy.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Vec<Arc<Rule>>>);

impl Rules {
    pub(super) fn add(&self, method: Method, which: Which, action: Action) -> Arc<Rule> {
        let rule = Rule { method, which, action, seen: AtomicU64::new(0), fired: AtomicU64::new(0) };
        let rule = Arc::new(rule);
        self.0.lock().unwrap().push(Arc::clone(&rule));
        rule
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// What is to be done: the first rule that applies decides, and all count.
    pub(super) fn judge(&self, method: Method) -> Option<Action> {
        let rules = self.0.lock().unwrap();
        let mut applying = rules.iter().filter(|rule| rule.applies(method)).collect::<Vec<_>>().into_iter();
        let rule = applying.next()?;
        rule.fired.fetch_add(1, Ordering::Relaxed);
        Some(rule.action)
    }
}
