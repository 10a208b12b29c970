//! Pages of a log as JSON, for those who ask for them one by one.

use super::asked::EventsQuery;
use super::page::EventView;
use crate::callers::Caller;
use crate::http::App;
use crate::http::error::Error;
use crate::http::view::insert;
use axum::Json;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use shared::message::OperationId;

/// Some events of an operation, in order.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EventPage<'a> {
    /// The events.
    events: Vec<EventView<'a>>,
}

/// Some events of all operations, in order.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LogPage<'a> {
    /// The events.
    events: Vec<EventView<'a>>,
    /// Whether some that should be here have been forgotten.
    gone: bool,
}

/// What happened to one operation, from `after` on.
pub(super) async fn of_operation(
    app: &App,
    caller: &Caller,
    id: OperationId,
    query: &EventsQuery,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let size = app.page_size(query.page_size);
    let log = app.0.engine.store.operation_log(caller.scope(), id, query.after.unwrap_or_default(), size + 1).await?;
    let mut events = log.ok_or_else(Error::not_found)?.events;
    let more = events.len() > size;
    events.truncate(size);
    let next = events.last().filter(|_| more).map(|last| last.number);
    let page = EventPage { events: events.iter().map(EventView::of_one).collect() };
    let response = Json(page).into_response();
    Ok(linked(response, &format!("{}/events", app.operation_url(headers, id)), next, size))
}

/// What happened to all operations, from `after` on, and whether some of it has been forgotten.
pub(super) async fn of_all(
    app: &App,
    caller: &Caller,
    query: &EventsQuery,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let size = app.page_size(query.page_size);
    let mut log =
        app.0.engine.store.log_of_all(caller.scope(), query.after.unwrap_or_default(), (size + 1, None)).await?;
    let more = log.events.len() > size;
    log.events.truncate(size);
    let next = log.events.last().filter(|_| more).map(|last| last.sequence);
    let page = LogPage { events: log.events.iter().map(EventView::of_all).collect(), gone: log.lost.is_some() };
    let response = Json(page).into_response();
    Ok(linked(response, &format!("{}/v1/events", app.base_url(headers)), next, size))
}

fn linked(mut response: Response, url: &str, next: Option<u64>, size: usize) -> Response {
    if let Some(next) = next {
        insert(&mut response, header::LINK, &format!("<{url}?after={next}&pageSize={size}>; rel=\"next\""));
    }
    response
}
