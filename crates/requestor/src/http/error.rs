use crate::store::StoreError;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use shared::http::problem_response;
use shared::problem::Problem;

/// An error that leaves as a problem document, with `Retry-After` when asking again can help.
#[derive(Debug)]
pub(crate) struct Error {
    pub(crate) problem: Problem,
    pub(crate) retry_after_seconds: Option<u64>,
}

impl Error {
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new("bad-request", 400, "Bad request", detail).into()
    }

    pub(crate) fn unauthorized() -> Self {
        let detail = "send the header Authorization: Bearer KEY with a key that this service knows";
        Problem::new("unauthorized", 401, "No valid API key", detail).into()
    }

    /// The problem type is that of draft-ietf-httpapi-ratelimit-headers.
    pub(crate) fn over_quota(policy: &str, limit: impl Into<Value>, retry_after_seconds: u64) -> Self {
        let limit = limit.into();
        let detail = format!("the caller has all of its quota {policy:?}, which is {limit}");
        metrics::counter!("arr_over_quota_total", "quota" => policy.to_owned()).increment(1);
        let problem = Problem {
            type_uri: "https://iana.org/assignments/http-problem-types#quota-exceeded".into(),
            ..Problem::new("", 429, "Quota exceeded", detail)
        };
        let problem = problem.with("violated-policies", vec![policy]).with("limit", limit);
        Self { problem, retry_after_seconds: Some(retry_after_seconds) }
    }

    /// As many wait as the service can hold.
    pub(crate) fn overloaded(detail: &str) -> Self {
        let problem = Problem::new("overloaded", 503, "Too many at once", detail);
        Self { problem, retry_after_seconds: Some(1) }
    }

    pub(crate) fn gone() -> Self {
        Problem::new("gone", 410, "Gone", "the operation ended, and the time for which it was kept is over").into()
    }

    pub(crate) fn not_found() -> Self {
        Problem::new("not-found", 404, "No such operation", "there is no operation with this id").into()
    }

    pub(crate) fn unsupported_media_type(given: &str) -> Self {
        let detail = format!("send the request as application/json, not {given:?}");
        Problem::new("unsupported-media-type", 415, "Unsupported media type", detail).into()
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let detail = format!("a request has at most {limit} bytes; send larger data by reference");
        Problem::new("too-large", 413, "Request too large", detail).with("limit", limit).into()
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { problem, retry_after_seconds: None }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            // That is said to many callers when it is said to one.
            StoreError::Busy => metrics::counter!("arr_saturated_total").increment(1),
            _ => tracing::error!(%error, "the store failed a caller"),
        }
        let (detail, seconds) = match error {
            StoreError::Busy => ("more is asked than can be stored and sent now", 1),
            StoreError::Full => ("the disk is full", 30),
            StoreError::Untrusted(_) | StoreError::Failed(_) => ("the store failed", 5),
        };
        let problem = Problem::new("store-unavailable", 503, "The store cannot be used now", detail);
        Self { problem, retry_after_seconds: Some(seconds) }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = problem_response(&self.problem);
        if self.problem.status == 401 {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
