//! What callers send with a request.

use super::App;
use super::callback::callback;
use super::error::Error;
use super::idempotency;
use super::path::Name;
use crate::callers::Caller;
use crate::operation::Operation;
use crate::store::IdempotencyKey;
use axum::RequestExt;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Query, Request};
use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use shared::message::{self, Content};
use shared::problem::Problem;
use std::time::Duration;

/// A request as it came, with its body unread.
#[derive(Debug)]
pub(super) struct Given {
    kind: String,
    priority: Option<u8>,
    pub(super) headers: HeaderMap,
    body: Body,
}

/// A request that can be accepted.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) operation: Operation,
    pub(super) content: Content,
    pub(super) key: Option<IdempotencyKey>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubmitQuery {
    priority: Option<u8>,
}

impl FromRequest<App> for Given {
    type Rejection = Error;

    async fn from_request(mut request: Request, _: &App) -> Result<Self, Error> {
        let Name(kind) = request.extract_parts().await?;
        let Query(SubmitQuery { priority }) =
            request.extract_parts().await.map_err(|error: QueryRejection| Error::bad_request(error.body_text()))?;
        let (parts, body) = request.into_parts();
        Ok(Self { kind, priority, headers: parts.headers, body })
    }
}

impl Given {
    /// Reads it whole and checks it.
    pub(super) async fn read(self, app: &App, caller: &Caller) -> Result<Submission, Error> {
        let Self { kind: name, priority, headers, body } = self;
        if priority.is_some_and(|priority| priority > 9) {
            return Err(Error::bad_request("priority is a number from 0 to 9"));
        }
        let kind = app.0.engine.kinds.get(&name)?;
        require_json(&headers)?;
        let timeout = timeout(&headers, kind.timeout, app.0.timeout_max)?;
        let callback = callback(app, caller, &headers)?;
        let body = read_body(app, body).await?;
        kind.validate(&shared::json::read::<Value>(&body).map_err(Problem::from)?)?;
        // All that makes it another request, as it was given: what is left out may mean something else tomorrow.
        let [given_timeout, given_callback] =
            ["operation-timeout", "callback-url"].map(|name| headers.get(name).map_or(&b""[..], |it| it.as_bytes()));
        let parts = [name.as_bytes(), &body, given_timeout, priority.as_slice(), given_callback];
        let key = idempotency::key(&headers, &parts)?;
        let operation = Operation::new(&name, Timestamp::now(), timeout, app.0.unconfirmed);
        let mut operation = operation.through(&kind.steps).owned_by(&caller.name);
        operation.priority = priority;
        operation.traceparent = traceparent(&headers);
        operation.callback = callback;
        Ok(Submission { operation, content: Content::json(body), key })
    }
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
