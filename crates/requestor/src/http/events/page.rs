//! Events as they are sent: written once, for all who read them.

use crate::http::view::OperationView;
use crate::operation::Operation;
use crate::store::{LoggedEvent, Lost};
use axum::body::Bytes;
use axum::extract::ws::Utf8Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::message::OperationId;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

/// The type of what is told like an event and is none.
const SNAPSHOT: &str = "snapshot";

/// An event as callers see it; with the last three where it is told among those of other operations.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Event", description = "Something that happened to an operation.")]
pub(super) struct EventView<'a> {
    /// Its number in the operation's log, from 1 without a gap.
    pub(super) number: u64,
    /// When it happened.
    at: Timestamp,
    /// What happened, such as `attempt-failed`.
    #[serde(rename = "type")]
    event_type: &'a str,
    /// What belongs to it.
    #[schemars(with = "serde_json::Value")]
    data: Option<&'a RawValue>,
    /// Its number in the log of all operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    /// The operation, where it is told among others.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<OperationId>,
    /// The operation's kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
}

impl<'a> EventView<'a> {
    /// As its operation's own log tells it.
    pub(super) fn of_one(event: &'a LoggedEvent) -> Self {
        let LoggedEvent { number, at, event_type, data, .. } = event;
        let data = serde_json::from_str(data).ok();
        Self { number: *number, at: *at, event_type, data, sequence: None, operation: None, kind: None }
    }

    /// As the log of all operations tells it.
    pub(super) fn of_all(event: &'a LoggedEvent) -> Self {
        let (sequence, operation, kind) = (Some(event.sequence), Some(event.id), Some(event.kind.as_str()));
        Self { sequence, operation, kind, ..Self::of_one(event) }
    }
}

/// Why a stream tells how things are, instead of or before what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Reason {
    /// It begins.
    Start,
    /// The number from which it was to go on is none of ours.
    Unknown,
    /// Events that it should have told have been forgotten.
    Gone,
    /// Its reader has fallen too far behind.
    Behind,
}

impl From<Lost> for Reason {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Unknown => Self::Unknown,
            Lost::Gone => Self::Gone,
            Lost::Behind => Self::Behind,
        }
    }
}

/// How things are, told like an event. Its number is that of the last event that it reflects.
#[derive(Debug, Serialize)]
pub(super) struct Snapshot<T> {
    #[serde(rename = "type")]
    event_type: &'static str,
    reason: Reason,
    at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    data: T,
}

impl<'a> Snapshot<OperationView<'a>> {
    pub(super) fn of_one(reason: Reason, operation: &'a Operation, url: &str) -> Self {
        let (number, data) = (Some(operation.events.into()), OperationView::new(operation, url));
        Self { event_type: SNAPSHOT, reason, at: Timestamp::now(), number, sequence: None, data }
    }
}

/// What the snapshot of a log of all operations holds.
#[derive(Debug, Serialize)]
pub(super) struct OpenView<'a> {
    pub(super) operations: Vec<OperationView<'a>>,
    pub(super) more: bool,
}

impl<'a> Snapshot<OpenView<'a>> {
    pub(super) fn of_all(reason: Reason, sequence: u64, data: OpenView<'a>) -> Self {
        Self { event_type: SNAPSHOT, reason, at: Timestamp::now(), number: None, sequence: Some(sequence), data }
    }
}

/// Some events, as one piece of a stream of server-sent events that also holds the messages of a WebSocket.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: Vec<u8>,
    documents: Vec<Range<usize>>,
}

impl Page {
    /// Adds an event; `id` is where its reader can go on after it.
    pub(super) fn push(&mut self, id: Option<u64>, event_type: &str, document: &impl Serialize) {
        // Writing into memory does not fail.
        let _ = writeln!(self.text, "event: {event_type}");
        if let Some(id) = id {
            let _ = writeln!(self.text, "id: {id}");
        }
        self.text.extend_from_slice(b"data: ");
        let start = self.text.len();
        // On one line: JSON escapes line breaks in texts, and this puts none between.
        let _ = serde_json::to_writer(&mut self.text, document);
        self.documents.push(start..self.text.len());
        self.text.extend_from_slice(b"\n\n");
    }

    pub(super) fn snapshot<T: Serialize>(id: Option<u64>, snapshot: &Snapshot<T>) -> Piece {
        let mut page = Self::default();
        page.push(id, SNAPSHOT, snapshot);
        page.finish()
    }

    pub(super) fn finish(self) -> Piece {
        Piece { text: self.text.into(), documents: self.documents.into() }
    }
}

/// A finished [`Page`]. A clone shares its bytes.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    text: Bytes,
    documents: Arc<[Range<usize>]>,
}

impl Piece {
    /// As server-sent events.
    pub(super) fn text(&self) -> Bytes {
        self.text.clone()
    }

    /// As WebSocket messages.
    pub(super) fn messages(&self) -> impl Iterator<Item = Utf8Bytes> {
        self.documents.iter().filter_map(|range| Utf8Bytes::try_from(self.text.slice(range.clone())).ok())
    }
}
