//! The pair through real sockets, against a real broker. One file a topic.
#![forbid(unsafe_code)]

mod lifecycle;
