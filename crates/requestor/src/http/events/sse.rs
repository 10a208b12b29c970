//! A log as server-sent events (WHATWG HTML, section 9.2).

use super::follower::{Follower, Next};
use crate::callers::Slot;
use crate::http::App;
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use std::convert::Infallible;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A comment, which readers ignore.
const SIGN_OF_LIFE: Bytes = Bytes::from_static(b":\n\n");
/// Between how many milliseconds readers come back after a restart, so that not all come at once.
const RECONNECT_MILLISECONDS: std::ops::Range<u32> = 500..3000;

/// Asks proxies such as nginx not to hold events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[derive(Debug)]
struct Stream {
    follower: Follower,
    keep_alive: Duration,
    shutdown: CancellationToken,
    _slot: Slot,
}

/// A response whose body goes on until there is nothing more to tell, or the service shuts down.
pub(super) fn response(app: &App, follower: Follower, slot: Slot) -> Response {
    let (keep_alive, shutdown) = (app.0.http.streams.keep_alive, app.0.shutdown.clone());
    let stream = Stream { follower, keep_alive, shutdown, _slot: slot };
    let pieces = futures_util::stream::unfold(Some(stream), |stream| async move {
        let (piece, rest) = stream?.next().await?;
        Some((Ok::<_, Infallible>(piece), rest))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

impl Stream {
    /// The next piece, and what follows it, if anything does.
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        tokio::select! {
            next = self.follower.next() => match next {
                Ok(Next::Piece(piece)) => Some((piece.text(), Some(self))),
                Ok(Next::Ended | Next::Forgotten) => None,
                Err(error) => {
                    tracing::warn!(%error, "the store failed an event stream");
                    Some((come_back(), None))
                }
            },
            () = tokio::time::sleep(self.keep_alive) => Some((SIGN_OF_LIFE, Some(self))),
            () = self.shutdown.cancelled() => Some((come_back(), None)),
        }
    }
}

/// Tells the reader when to come back.
fn come_back() -> Bytes {
    format!("retry: {}\n\n", rand::random_range(RECONNECT_MILLISECONDS)).into()
}
