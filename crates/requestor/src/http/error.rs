use crate::store::StoreError;
use axum::http::header;
use axum::response::{IntoResponse, Response};
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

    pub(crate) fn not_found() -> Self {
        Problem::new("not-found", 404, "No such operation", "there is no operation with this id, or no longer").into()
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
        tracing::error!(%error, "the store failed a caller");
        let (detail, seconds) = match error {
            StoreError::Busy => ("more is asked of the store than it can do", 1),
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
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
