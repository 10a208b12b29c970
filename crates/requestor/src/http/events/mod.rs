//! What happened to operations: in pages, as server-sent events, and over WebSocket.

mod asked;
mod follower;
mod page;
mod pages;
mod shared_pages;
mod socket;
mod sse;

pub(crate) use pages::{EventPage, LogPage};
pub(super) use shared_pages::SharedPages;

use super::App;
use super::error::Error;
use super::operations::find;
use super::path::Name;
use crate::callers::Caller;
use asked::{EventsQuery, Way};
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use follower::{Follower, Log};
use shared::problem::Problem;

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// `GET /v1/operations/{id}/events`: what happened to one operation, numbered from 1 without a gap.
pub(super) async fn of_operation(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Error> {
    let query = EventsQuery::from_request(query)?;
    let operation = find(&app, &caller, &id).await?;
    let way = Way::of(&headers);
    if way == Way::Pages {
        return pages::of_operation(&app, &caller, operation.id, &query, &headers).await;
    }
    let after = query.position(&headers)?;
    // Whoever follows by EventSource asks again after the end, and stops only at this.
    if way == Way::ServerSent && operation.has_ended() && after == Some(operation.events.into()) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let follower = Follower::new(&app, &caller, Log::Operation(operation.id), after, &headers);
    stream(&app, &caller, follower, (way, upgrade), &headers)
}

/// `GET /v1/events`: what happens to all operations that the caller may see, numbered in one order.
pub(super) async fn of_all(
    State(app): State<App>,
    caller: Caller,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Error> {
    let query = EventsQuery::from_request(query)?;
    let way = Way::of(&headers);
    if way == Way::Pages {
        return pages::of_all(&app, &caller, &query, &headers).await;
    }
    let after = query.position(&headers)?;
    let follower = Follower::new(&app, &caller, Log::All, after, &headers);
    stream(&app, &caller, follower, (way, upgrade), &headers)
}

fn stream(
    app: &App,
    caller: &Caller,
    follower: Follower,
    (way, upgrade): (Way, Upgrade),
    headers: &HeaderMap,
) -> Result<Response, Error> {
    if way == Way::ServerSent {
        return Ok(sse::response(app, follower, app.0.callers.stream(caller)?));
    }
    asked::same_origin(app, headers)?;
    let upgrade = upgrade.map_err(|rejection| {
        let status = rejection.status().as_u16();
        Problem::new("bad-upgrade", status, "This cannot become a WebSocket", rejection.body_text())
    })?;
    Ok(socket::response(app, follower, app.0.callers.stream(caller)?, upgrade))
}
