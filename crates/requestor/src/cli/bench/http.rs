//! Asks over HTTP, by a kept connection for each request that is under way.

use super::load::Answer;
use super::told::Told;
use super::{Arguments, Learn, PATIENCE, Worker};
use crate::cli::Remote;
use crate::config::Config;
use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::net::TcpStream;

/// Where to ask, and who asks.
#[derive(Clone, Debug)]
pub(super) struct Target {
    authority: String,
    key: Option<String>,
}

/// A connection, and the request that is sent over it again and again.
#[derive(Debug)]
pub(super) struct Asker {
    target: Target,
    path: String,
    body: Bytes,
    connection: Option<SendRequest<Full<Bytes>>>,
    learns: Learns,
}

/// How it learns outcomes.
#[derive(Clone, Debug)]
enum Learns {
    ByWaiting,
    Told(Arc<Told>),
    Not,
}

pub(super) async fn workers(
    arguments: &Arguments,
    config: &Config,
    remote: &Remote,
    body: Bytes,
) -> anyhow::Result<Vec<Asker>> {
    let target = Target::of(config, remote)?;
    let learns = match arguments.learn {
        Learn::Wait => Learns::ByWaiting,
        Learn::Sse => Learns::Told(Told::follow(&target).await?),
        Learn::Nothing => Learns::Not,
    };
    let path = format!("/v1/requests/{}", arguments.kind);
    let asker = || Asker {
        target: target.clone(),
        path: path.clone(),
        body: body.clone(),
        connection: None,
        learns: learns.clone(),
    };
    Ok((0..arguments.in_flight).map(|_| asker()).collect())
}

impl Target {
    fn of(config: &Config, remote: &Remote) -> anyhow::Result<Self> {
        let url = remote.base_url(config);
        let uri: Uri = url.parse().context("--url")?;
        anyhow::ensure!(uri.scheme_str() == Some("http"), "{url}: only http:// can be measured");
        let host = uri.host().context("--url has no host")?;
        Ok(Self { authority: format!("{host}:{}", uri.port_u16().unwrap_or(80)), key: remote.key.clone() })
    }

    pub(super) async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.authority).await.with_context(|| self.authority.clone())?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    pub(super) fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder().method(method).uri(path).header(HOST, &self.authority);
        match &self.key {
            Some(key) => request.header(AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        }
    }
}

impl Worker for Asker {
    async fn once(&mut self) -> anyhow::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.target.connect().await?,
        };
        let mut request = self.target.request("POST", &self.path).header(CONTENT_TYPE, "application/json");
        if let Learns::ByWaiting = self.learns {
            request = request.header("prefer", format!("wait={}", PATIENCE.as_secs()));
        }
        connection.ready().await?;
        let response = connection.send_request(request.body(Full::new(self.body.clone()))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        self.connection = Some(connection);
        match (head.status, &self.learns) {
            (StatusCode::OK, Learns::ByWaiting) | (StatusCode::ACCEPTED, Learns::Not) => Ok(Answer::Done),
            (StatusCode::ACCEPTED, Learns::Told(told)) => {
                let location = head.headers.get(LOCATION).context("no Location")?.to_str()?;
                let id = location.rsplit('/').next().context("no id in Location")?;
                tokio::time::timeout(PATIENCE, told.outcome(id.parse()?))
                    .await
                    .context("no event of the outcome")??;
                Ok(Answer::Done)
            }
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _)
                if head.headers.contains_key(RETRY_AFTER) =>
            {
                Ok(Answer::Refused)
            }
            _ => anyhow::bail!("{}: {}", head.status, String::from_utf8_lossy(&body[..body.len().min(300)])),
        }
    }
}

/// Serves a connection as long as the process runs: it is to measure, and ends by returning.
#[expect(clippy::disallowed_methods, reason = "a connection ends with its sender")]
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
