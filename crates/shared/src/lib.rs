//! What the requestor and the provider say or do alike, and nothing else.
//!
//! A thing enters this crate only when both sides need it today.
#![forbid(unsafe_code)]

/// JSON from strangers: limits before anything is built from it.
pub mod json;
/// The wire contract: requests, progress, replies and how each looks as an AMQP message.
pub mod message;
/// Problem details (RFC 9457), the one shape of every error that leaves a service.
pub mod problem;
/// The payloads of the kinds that come with the product.
pub mod schema;
/// Names and definitions of exchanges and queues.
pub mod topology;

/// The supervised session with the broker, publishing and consuming.
pub mod amqp;
/// Configuration: annotated defaults, then a file, then the environment.
pub mod config;
/// Points at which tests kill a process; not in release builds.
pub mod crash;
/// What both stores need: SQLite with one group-commit writer.
pub mod database;
/// Room for connections among the files that a process may have open.
pub mod descriptors;
/// How a program ends: exit codes and last words.
pub mod exit;
/// The HTTP server, health endpoints and the health check.
pub mod http;
/// SIGTERM and SIGINT as one token.
pub mod shutdown;
/// Stacks of threads that no message can exhaust.
pub mod stack;
/// Logs and metrics.
pub mod telemetry;
