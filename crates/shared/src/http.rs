use crate::amqp::Status;
use crate::config::duration;
use crate::problem::{self, Problem};
use crate::telemetry;
use anyhow::Context;
use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

/// How often measurements are folded into the metrics.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How long the health check waits.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// What a connection may take, and how many there may be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerLimits {
    /// How long a request's head may take, and how long a kept connection may be idle.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// Connections open at once; further ones wait in the listen queue.
    pub connections_max: usize,
    /// How long requests under way may take to end after SIGTERM.
    #[serde(with = "duration")]
    pub drain: Duration,
}

/// Listens on `address`.
///
/// # Errors
/// Why it cannot: in use, not allowed, or not an address of this machine.
pub fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("http.listen: cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves `router` until `shutdown`, then lets requests under way finish.
///
/// An accept loop of our own, since `axum::serve` sets no deadline for a request's head.
///
/// # Errors
/// When the listener cannot be used; a connection's failure is its own.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    limits: &ServerLimits,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let service = TowerToHyperService::new(router.layer(CatchPanicLayer::custom(panicked)));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            _ = upkeep.tick() => {
                telemetry::upkeep_metrics();
                continue;
            }
            () = shutdown.cancelled() => break,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Such as too many open files: others must close first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = builder.serve_connection(TokioIo::new(stream), service.clone()).with_upgrades();
        let shutdown = shutdown.clone();
        connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(limits.drain, connections.wait()).await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> anyhow::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await?;
    let (stream, _) = listener.accept().await?;
    // Small answers must not wait for the peer's acknowledgement (Nagle's algorithm).
    stream.set_nodelay(true)?;
    Ok((stream, slot))
}

/// A problem as a response with the problem's own status.
#[must_use]
pub fn problem_response(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, problem.to_json()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    response
}

/// What a caller learns of a panic; what it said is in the log.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    let problem =
        Problem::new("internal-error", 500, "Internal error", "this should not happen; see the service's log");
    problem_response(&problem)
}

/// `/healthz` (the process answers), `/readyz` (it can reach the `broker`) and `/metrics` (Prometheus).
pub fn health_routes<S>(broker: watch::Receiver<Status>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { readiness(&broker.borrow()) }))
        .route("/metrics", get(|| async { telemetry::render_metrics() }))
}

fn readiness(broker: &Status) -> Response {
    let (state, reason) = match broker {
        Status::Connected => return "ready\n".into_response(),
        Status::Blocked(reason) => ("blocked", reason),
        Status::Away(reason) => ("away", reason),
    };
    let problem = Problem::new("not-ready", 503, "The broker cannot be used now", reason.as_str());
    problem_response(&problem.with("broker", state))
}

/// Where this machine reaches a service that listens at `listen`, which may be all of its addresses.
#[must_use]
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip().is_unspecified() {
        true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port()),
        false => listen,
    }
}

/// Asks the service that listens at `listen` whether it is healthy; for container health checks.
///
/// # Errors
/// Why it is not.
pub async fn check(listen: SocketAddr) -> anyhow::Result<()> {
    let address = reachable(listen);
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: health\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "{address}/healthz does not answer 200");
        Ok(())
    };
    tokio::time::timeout(CHECK_TIMEOUT, ask).await.with_context(|| format!("{address} does not answer"))?
}
