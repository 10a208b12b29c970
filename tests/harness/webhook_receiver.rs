use super::eventually;
use super::python::python;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a receiver answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// This status.
    Status(u16),
    /// This status, and `Retry-After`.
    RetryAfter(u16, String),
    /// 302 to this URL.
    Redirect(String),
    /// Nothing at all.
    Nothing,
    /// 200, and a body without an end as fast as it is taken.
    Endless,
    /// 200, and a body of which nothing ever comes.
    Dribble,
}

/// A delivery as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// As it was signed.
    pub body: String,
    /// When.
    pub at: Instant,
}

impl Received {
    /// The header `webhook-id`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    /// What is in the body.
    ///
    /// # Panics
    /// When it is no JSON.
    #[must_use]
    pub fn document(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver of webhooks on this machine, at 127.0.0.1.
#[derive(Debug)]
pub struct WebhookReceiver {
    port: u16,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

type Decide = Box<dyn Fn(usize) -> Answer + Send + Sync>;

struct Shared {
    answer: Decide,
    received: Mutex<Vec<Received>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("received", &self.received).finish_non_exhaustive()
    }
}

impl Drop for WebhookReceiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl WebhookReceiver {
    /// Starts one that answers its first request as `answer(1)` says, and so on.
    ///
    /// # Panics
    /// When there is no port.
    #[expect(clippy::disallowed_methods, reason = "it ends with the receiver")]
    pub async fn start(answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            received: Mutex::default(),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        });
        let router = axum::Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, shared, server }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// What has come so far.
    ///
    /// # Panics
    /// When another thread has.
    #[must_use]
    pub fn so_far(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Requests that were open at once, at most.
    #[must_use]
    pub fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }

    /// What has come, once that are `count`.
    pub async fn received(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} webhooks arrive"), async || {
            let received = self.so_far();
            if received.len() >= count { Ok(received) } else { Err(format!("{received:?}")) }
        })
        .await
    }

    /// Has the library of Standard Webhooks verify everything that has come, with each of `secrets`; how much that was.
    ///
    /// # Panics
    /// When it finds anything wrong, or cannot be installed.
    pub async fn verify(&self, secrets: &[&str]) -> usize {
        let deliveries: Vec<_> =
            self.so_far().iter().map(|it| json!({"headers": it.headers, "body": it.body})).collect();
        let count = deliveries.len();
        let input = json!({"secrets": secrets, "deliveries": deliveries}).to_string();
        let verified = tokio::task::spawn_blocking(move || {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/webhooks.py");
            let mut command = Command::new(python());
            command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let output = verified.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let expected = format!("verified {}\n", count * secrets.len());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        count
    }
}

/// Counts a request as open until it is answered or given up.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
    shared.most_open.fetch_max(open, Ordering::SeqCst);
    let _open = Open(&shared);
    let text = |value: &header::HeaderValue| value.to_str().unwrap().to_owned();
    let headers = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let number = {
        let mut received = shared.received.lock().unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        received.push(Received { headers, body, at: Instant::now() });
        received.len()
    };
    match (shared.answer)(number) {
        Answer::Status(status) => respond(status),
        Answer::RetryAfter(status, after) => (respond(status).status(), [(header::RETRY_AFTER, after)]).into_response(),
        Answer::Redirect(url) => (respond(302).status(), [(header::LOCATION, url)]).into_response(),
        Answer::Nothing => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            respond(200)
        }
        Answer::Endless => {
            let chunk = || Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 4096]));
            Body::from_stream(futures_util::stream::repeat_with(chunk)).into_response()
        }
        Answer::Dribble => {
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>()).into_response()
        }
    }
}

fn respond(status: u16) -> Response {
    axum::http::StatusCode::from_u16(status).unwrap().into_response()
}
