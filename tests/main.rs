//! The pair through real sockets, against a real broker. One file a topic.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that fails tells its place")]

mod broker_faults;
mod cancel;
mod command_line;
mod configuration;
mod delivery;
mod effects;
mod faults;
mod foreign;
mod kill;
mod lease;
mod lifecycle;
mod machine_faults;
mod network;
mod publisher;
mod store;
mod validation;
