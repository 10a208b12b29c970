use super::ServerLimits;
use super::activity::Activity;
use super::response::ResponseBody;
use super::socket::Socket;
use axum::Router;
use axum::http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How long a connection that is closed may take for its last words, such as HTTP/2's GOAWAY.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// At a shutdown, how long after connecting the first request may still come: it is on its way.
const FRESH: Duration = Duration::from_millis(250);
/// How often a connection of HTTP/2 is asked whether the other side is still there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// What a client of HTTP/2 may send before it is read: for each request, and for each connection. The smallest usual
/// sizes, since a body is small and there may be thousands of connections.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// What is held of a response that a client of HTTP/2 has not taken yet.
const SEND_BUFFER: usize = 64 * 1024;

/// Without TLS, or with it; that one on the heap, since it is large and most connections have none.
pub(super) type Stream = Either<Socket, Box<TlsStream<Socket>>>;

/// Spawns the requests of HTTP/2 where shutdown waits for them.
#[derive(Clone, Debug)]
pub(super) struct Tracked(pub(super) TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// HTTP/1.1 and HTTP/2, whichever the client speaks.
pub(super) fn builder(limits: &ServerLimits, tasks: TaskTracker) -> Builder<Tracked> {
    let mut builder = Builder::new(Tracked(tasks));
    // Deadlines are kept by `Activity`, for both versions alike.
    builder.http1().header_read_timeout(None).max_buf_size(limits.head_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN)
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// Serves one connection until it is closed, is too slow, or `shutdown` has come and its requests have ended.
pub(super) async fn serve(
    stream: Stream,
    activity: &Arc<Activity>,
    router: &Router,
    (builder, limits): (&Builder<Tracked>, &ServerLimits),
    shutdown: &CancellationToken,
) {
    let service = service_fn(|request| answer(router.clone(), Arc::clone(activity), request));
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let patience = tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        overdue = activity.overdue(limits) => {
            tracing::debug!(?overdue, "connection closed");
            metrics::counter!("arr_http_overdue_total", "what" => overdue.name()).increment(1);
            LAST_WORDS
        }
        () = closing(shutdown, activity) => limits.drain,
    };
    if !activity.is_fresh() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(patience, connection).await;
    }
}

async fn closing(shutdown: &CancellationToken, activity: &Activity) {
    shutdown.cancelled().await;
    if activity.is_fresh() {
        tokio::time::sleep(FRESH).await;
    }
}

async fn answer(
    router: Router,
    activity: Arc<Activity>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let under_way = activity.begin(request.version() == Version::HTTP_2);
    name_host(&mut request);
    let response = router.oneshot(request).await?;
    Ok(response.map(|body| ResponseBody::new(body, under_way)))
}

/// HTTP/2 has the host in `:authority`; handlers look for it in one place.
fn name_host(request: &mut Request<Incoming>) {
    let authority = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(authority) = authority {
        request.headers_mut().insert(header::HOST, authority);
    }
}
