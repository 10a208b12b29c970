//! What this provider group has done: a repeated request is answered from here without running its effect again.

mod sqlite;

pub use sqlite::Transaction;
pub(crate) use sqlite::{Executed, Ledger, panicked};
