//! The pair through real sockets, against a real broker. One file a topic.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that fails tells its place")]

mod acknowledgement_timeout;
mod broker_faults;
mod call;
mod callers;
mod cancel;
mod cancelling;
mod cluster;
mod command;
mod command_line;
mod configuration;
mod conformance;
mod contract;
mod database;
mod delivery;
mod effects;
mod event_cuts;
mod event_log;
mod event_streams;
mod event_subscribers;
mod faults;
mod foreign;
mod hostile;
mod http_server;
mod idempotency;
mod kill;
mod kinds;
mod lease;
mod library;
mod lifecycle;
mod machine_faults;
mod network;
mod pipelines;
mod publisher;
mod quotas;
mod retries;
mod retry_after;
mod revisits;
mod rpc;
mod stand_in;
mod store;
mod stores;
mod validation;
mod video;
mod webhooks;
