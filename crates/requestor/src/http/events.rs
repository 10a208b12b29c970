use super::App;
use super::auth::Caller;
use super::error::Error;
use super::operations::{PAGE_SIZE, find};
use super::view::insert;
use crate::operation::Entry;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct EventsQuery {
    #[serde(default)]
    after: u32,
    page_size: Option<usize>,
}

/// An entry of the event log as callers see it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Event", description = "Something that happened to an operation.")]
struct EventView {
    /// Its number in the operation's log, from 1 without a gap.
    #[schemars(range(min = 1))]
    number: u32,
    /// When it happened.
    at: Timestamp,
    /// What happened, such as `attempt-failed`.
    #[serde(rename = "type")]
    event_type: String,
    /// What belongs to it.
    data: Value,
}

/// Some events of a log, in order.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EventPage {
    /// The events.
    events: Vec<EventView>,
}

impl From<Entry> for EventView {
    fn from(Entry { number, at, event_type, data }: Entry) -> Self {
        Self { number, at, event_type, data }
    }
}

/// `GET /v1/operations/{id}/events`: what happened to it, numbered from 1 without a gap, from `after` on.
pub(super) async fn events(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let Query(query) = query.map_err(|error| Error::bad_request(error.body_text()))?;
    let id = find(&app, &caller, &id).await?.id;
    let size = query.page_size.unwrap_or(PAGE_SIZE).clamp(1, app.0.http.page_size_max);
    let mut found = app.0.store.events(caller.scope(), id, query.after, size + 1).await?;
    let more = found.len() > size;
    found.truncate(size);
    let next = found.last().filter(|_| more).map(|last| last.number);
    let page = EventPage { events: found.into_iter().map(EventView::from).collect() };
    let mut response = Json(page).into_response();
    if let Some(next) = next {
        let url = app.operation_url(&headers, id);
        insert(&mut response, header::LINK, &format!("<{url}/events?after={next}&pageSize={size}>; rel=\"next\""));
    }
    Ok(response)
}
