use super::problem_response;
use crate::amqp::Status;
use crate::problem::Problem;
use crate::telemetry;
use anyhow::Context;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

/// How long the health check waits.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

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

/// Asks the service that listens at `listen`, with TLS or without, whether it is healthy; for container health checks.
///
/// # Errors
/// Why it is not.
pub async fn check(listen: SocketAddr, tls: bool) -> anyhow::Result<()> {
    let address = reachable(listen);
    let ask = async {
        let stream = TcpStream::connect(address).await?;
        let answer = match tls {
            true => healthz(with_tls(stream, address.ip()).await?).await?,
            false => healthz(stream).await?,
        };
        anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "{address}/healthz does not answer 200");
        Ok(())
    };
    tokio::time::timeout(CHECK_TIMEOUT, ask).await.with_context(|| format!("{address} does not answer"))?
}

async fn healthz(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<Vec<u8>> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: health\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn with_tls(stream: TcpStream, address: IpAddr) -> anyhow::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?.dangerous();
    let config = config.with_custom_certificate_verifier(Arc::new(Anyone)).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)).connect(address.into(), stream).await?)
}

/// Takes any certificate: it names the service as others call it, which is not the address that is asked here. What is
/// asked is no secret, and nothing depends on the answer but whether this is taken for healthy.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
