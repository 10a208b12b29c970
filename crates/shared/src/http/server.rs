use super::activity::Activity;
use super::connection::{self, Stream, Tracked};
use super::slots::{Peers, Slot};
use super::socket::Socket;
use super::tls::{Tls, TlsConfig};
use super::{ServerLimits, panicked};
use crate::telemetry;
use axum::Router;
use hyper_util::server::conn::auto::Builder;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

/// How often measurements are folded into the metrics, and the certificate's files are looked at.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// After an accept that failed, such as for too many open files: others must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Clone)]
struct Server {
    router: Router,
    limits: Arc<ServerLimits>,
    builder: Builder<Tracked>,
    tasks: TaskTracker,
    slots: Arc<Semaphore>,
    peers: Peers,
    shutdown: CancellationToken,
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

/// Serves `router` until `shutdown`, then lets requests under way finish for at most `limits.drain`.
///
/// Streams without an end and connections that were upgraded are waited for as well: who serves them ends them when the
/// same token is cancelled.
///
/// An accept loop of our own, since `axum::serve` sets no deadline for anything.
///
/// # Errors
/// When the listener or the certificate cannot be used; a connection's failure is its own.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    limits: &ServerLimits,
    tls: &TlsConfig,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut tls = Tls::open(tls)?;
    let server = Server::new(router, limits, shutdown);
    let cut = CancellationToken::new();
    // Whatever is left when this returns, or is dropped, ends with it.
    let _cut = cut.clone().drop_guard();
    let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
    loop {
        tokio::select! {
            accepted = server.accept(&listener) => server.spawn(accepted, tls.as_ref(), &cut),
            _ = upkeep.tick() => {
                telemetry::upkeep_metrics();
                if let Some(tls) = &mut tls {
                    tls.refresh();
                }
            }
            () = shutdown.cancelled() => break,
        }
    }
    for accepted in server.accept_waiting(listener) {
        server.spawn(accepted, tls.as_ref(), &cut);
    }
    server.tasks.close();
    if tokio::time::timeout(limits.drain, server.tasks.wait()).await.is_err() {
        tracing::warn!(left = server.tasks.len(), "connections were cut: they did not end within http.limits.drain");
    }
    Ok(())
}

impl Server {
    fn new(router: Router, limits: &ServerLimits, shutdown: &CancellationToken) -> Self {
        let tasks = TaskTracker::new();
        Self {
            router: router.layer(CatchPanicLayer::custom(panicked)),
            limits: Arc::new(limits.clone()),
            builder: connection::builder(limits, tasks.clone()),
            tasks,
            slots: Arc::new(Semaphore::new(limits.connections_max)),
            peers: Peers::new(limits.connections_per_peer_max),
            shutdown: shutdown.clone(),
        }
    }

    /// The next connection once there is a slot for it. Never fails: what it cannot take, it tries again.
    async fn accept(&self, listener: &TcpListener) -> Accepted {
        let mut told = false;
        loop {
            // Closed by nobody.
            let Ok(permit) = Arc::clone(&self.slots).acquire_owned().await else { continue };
            match listener.accept().await {
                Ok((stream, peer)) => return (stream, peer, permit),
                Err(error) if told => tracing::debug!(%error, "cannot accept a connection"),
                Err(error) => tracing::warn!(%error, "cannot accept connections; trying again"),
            }
            told = true;
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    /// The connections that wait at a shutdown: their clients know nothing of it yet.
    fn accept_waiting(&self, listener: TcpListener) -> Vec<Accepted> {
        let Ok(listener) = listener.into_std() else { return Vec::new() };
        let next = || {
            let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
            let (stream, peer) = listener.accept().ok()?;
            stream.set_nonblocking(true).ok()?;
            Some((TcpStream::from_std(stream).ok()?, peer, permit))
        };
        std::iter::from_fn(next).collect()
    }

    fn spawn(&self, (stream, peer, permit): Accepted, tls: Option<&Tls>, cut: &CancellationToken) {
        let Ok(peer) = self.peers.enter(peer.ip()) else {
            tracing::debug!(%peer, "http.limits.connections_per_peer_max is reached");
            metrics::counter!("arr_http_refused_total").increment(1);
            return;
        };
        let slot = Slot { _permit: permit, _peer: peer, _tracked: self.tasks.token() };
        let connection = self.clone().connection(stream, slot, tls.map(Tls::acceptor));
        self.tasks.spawn(cut.clone().run_until_cancelled_owned(connection));
    }

    async fn connection(self, stream: TcpStream, slot: Slot, tls: Option<TlsAcceptor>) {
        // Small answers must not wait for the peer's acknowledgement (Nagle's algorithm). It fails if the peer is gone.
        let _ = stream.set_nodelay(true);
        let activity = Arc::new(Activity::new());
        let socket = Socket::new(stream, slot, Arc::clone(&activity), self.limits.write_timeout);
        let Some(stream) = self.handshake(socket, tls).await else { return };
        connection::serve(stream, &activity, &self.router, (&self.builder, &self.limits), &self.shutdown).await;
    }

    async fn handshake(&self, socket: Socket, tls: Option<TlsAcceptor>) -> Option<Stream> {
        let Some(acceptor) = tls else { return Some(Either::Left(socket)) };
        match tokio::time::timeout(self.limits.header_timeout, acceptor.accept(socket)).await {
            Ok(Ok(stream)) => Some(Either::Right(Box::new(stream))),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS handshake");
                None
            }
            Err(_) => {
                metrics::counter!("arr_http_overdue_total", "what" => "handshake").increment(1);
                None
            }
        }
    }
}
