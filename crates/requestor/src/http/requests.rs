use super::App;
use super::auth::Caller;
use super::callback::callback;
use super::error::Error;
use super::prefer::{Prefer, applied};
use super::view::{OPERATION_LOCATION, PREFERENCE_APPLIED, insert};
use crate::operation::Operation;
use crate::store::StoreError;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use shared::message::{self, Content};
use shared::problem::Problem;
use shared::{crash, json};
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitQuery {
    priority: Option<u8>,
}

/// `POST /v1/requests/{kind}`: stores the request, sends it, and answers 202; or the result if the caller waits and
/// it comes in time.
pub(super) async fn submit(
    State(app): State<App>,
    caller: Caller,
    kind: Result<Path<String>, axum::extract::rejection::PathRejection>,
    query: Result<Query<SubmitQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let Path(name) = kind.map_err(|error| Error::bad_request(error.body_text()))?;
    let Query(query) = query.map_err(|error| Error::bad_request(error.body_text()))?;
    if query.priority.is_some_and(|priority| priority > 9) {
        return Err(Error::bad_request("priority is a number from 0 to 9"));
    }
    let kind = app.0.kinds.get(&name)?;
    require_json(&headers)?;
    let timeout = timeout(&headers, kind.timeout, app.0.timeout_max)?;
    let callback = callback(&app, &headers)?;
    let body = read_body(&app, body).await?;
    kind.validate(&json::read::<Value>(&body).map_err(Problem::from)?)?;

    let now = Timestamp::now();
    let mut operation =
        Operation::new(&name, now, timeout, app.0.unconfirmed).through(&kind.steps).owned_by(&caller.name);
    operation.priority = query.priority;
    operation.traceparent = traceparent(&headers);
    operation.callback = callback;
    let content = Content::json(body);
    crash::point("requestor.create");
    app.0.store.create(operation.clone(), content.clone()).await.map_err(not_accepted)?;
    crash::point("requestor.created");
    metrics::counter!("arr_operations_accepted_total", "kind" => name).increment(1);
    app.0.gateway.dispatch(&operation, content, now);
    crash::point("requestor.accepted");
    answer(&app, &caller, operation, &headers).await
}

/// The request is accepted whatever happens now: a store that cannot be read leaves it at 202.
async fn answer(app: &App, caller: &Caller, mut operation: Operation, headers: &HeaderMap) -> Result<Response, Error> {
    let prefer = Prefer::from_headers(headers);
    let wait = prefer.wait_at_most(app.0.http.wait_max);
    let mut waited = None;
    if !wait.is_zero()
        && let Ok((Some(now), true)) = app.wait(caller, operation.id, wait).await
    {
        (operation, waited) = (now, Some(wait));
    }
    let url = app.operation_url(headers, operation.id);
    let outcome = match operation.has_ended() {
        true => app.outcome_response(caller, &operation).await.ok(),
        false => None,
    };
    let in_time = outcome.is_some();
    let mut response = outcome.unwrap_or_else(|| app.operation_response(StatusCode::ACCEPTED, &operation, headers));
    if in_time {
        insert(&mut response, header::CONTENT_LOCATION, &format!("{url}/result"));
        insert(&mut response, OPERATION_LOCATION, &url);
    } else {
        insert(&mut response, header::LOCATION, &url);
    }
    if let Some(applied) = applied(prefer.respond_async && !in_time, waited) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

fn require_json(headers: &HeaderMap) -> Result<(), Error> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(message::JSON) {
        return Err(Error::unsupported_media_type(given));
    }
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let detail = format!("send the body as it is, without Content-Encoding: {encoding:?}");
            Err(Problem::new("unsupported-media-type", 415, "Unsupported media type", detail).into())
        }
        _ => Ok(()),
    }
}

pub(super) fn timeout(headers: &HeaderMap, default: Duration, longest: Duration) -> Result<Duration, Error> {
    let Some(value) = headers.get("operation-timeout") else { return Ok(default) };
    let text = value.to_str().map_err(|_| Error::bad_request("Operation-Timeout is not text"))?;
    let timeout = shared::config::duration::parse(text)
        .map_err(|error| Error::bad_request(format!("Operation-Timeout: {error}")))?;
    if timeout.is_zero() || timeout > longest {
        let longest = longest.as_secs();
        return Err(Error::bad_request(format!("Operation-Timeout is more than 0 and at most {longest}s")));
    }
    Ok(timeout)
}

/// The one header of a caller's that goes into a message. `tracestate` does not: it is free text of others.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    message::is_traceparent(value).then(|| value.to_owned())
}

async fn read_body(app: &App, body: Body) -> Result<Bytes, Error> {
    let limit = app.0.http.body_bytes_max;
    let read = axum::body::to_bytes(body, limit);
    match tokio::time::timeout(app.0.http.body_timeout, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(Error::too_large(limit)),
        Ok(Err(_)) => Err(Error::bad_request("the body ended early")),
        Err(_) => Err(Problem::new("too-slow", 408, "Request too slow", "the body did not come in time").into()),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// The one failure of the store after which the caller may simply ask again.
fn not_accepted(error: StoreError) -> Error {
    let mut error = Error::from(error);
    if let Some(detail) = &mut error.problem.detail {
        detail.push_str("; nothing was accepted");
    }
    error
}
