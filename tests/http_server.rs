//! The HTTP server: who is slow is closed and disturbs nobody, and who is under way at a shutdown is answered.

use axum::Router;
use axum::routing::get;
use futures_util::future::join_all;
use harness::broker::Broker;
use harness::caller::Caller;
use harness::process::{Process, Service, command};
use harness::{eventually, free_port, http_client};
use reqwest::{Certificate, Client, ClientBuilder, Response, Version};
use serde_json::{Value, json};
use shared::http::{ServerLimits, TlsConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// By when a slow client must be closed.
const SLOW_MAX: Duration = Duration::from_secs(20);
/// How long nothing may happen until that counts as never.
const NEVER: Duration = Duration::from_millis(300);

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

/// What is answered to `request` until the connection is closed.
async fn answer(mut stream: TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Whether the other side has closed it by now; what it said is of no interest.
async fn is_closed_within(stream: &mut TcpStream, wait: Duration) -> bool {
    let mut said = [0; 1024];
    let read = async { while !matches!(stream.read(&mut said).await, Ok(0) | Err(_)) {} };
    timeout(wait, read).await.is_ok()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Slow {
    Silent,
    Head,
    Body,
    Reader,
    Silent2,
    Reader2,
}

impl Slow {
    /// Is slow in its way, until the connection is closed.
    async fn be(self, port: u16, large: &str) {
        let stream = connect(port).await;
        match self {
            Self::Silent => dribble(stream, "", "").await,
            Self::Head => dribble(stream, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", "a").await,
            Self::Body => {
                let head = "POST /v1/requests/echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
                dribble(stream, &format!("{head}Content-Length: 100000\r\n\r\n"), "1").await;
            }
            Self::Reader => read_nothing(port, large).await,
            Self::Silent2 => dribble(stream, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "").await,
            Self::Reader2 => take_nothing(stream, large, 0).await,
        }
    }
}

/// A client with little room that asks for `path` as often as it can.
async fn read_nothing(port: u16, path: &str) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    let mut stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    while stream.write_all(request.as_bytes()).await.is_ok() {}
}

async fn dribble(mut stream: TcpStream, first: &str, then: &str) {
    let mut sent = stream.write_all(first.as_bytes()).await;
    while sent.is_ok() && !is_closed_within(&mut stream, Duration::from_secs(1)).await {
        sent = stream.write_all(then.as_bytes()).await;
    }
}

/// A client of HTTP/2 that asks for `path`, and lets nothing but `window` bytes of the answer come.
async fn take_nothing(stream: TcpStream, path: &str, window: u32) {
    let (mut requests, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake::<_, &[u8]>(stream).await.unwrap();
    let request = axum::http::Request::get(format!("http://x{path}")).body(()).unwrap();
    let (response, _) = requests.send_request(request, true).unwrap();
    let respond = async {
        let mut response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        while let Some(Ok(_)) = response.body_mut().data().await {}
        std::future::pending::<()>().await;
    };
    tokio::select! { _ = connection => {}, () = respond => {} }
}

/// Asks again and again until told to stop, and returns how long each answer took. Each must be the right one.
async fn be_good(caller: Caller, stop: CancellationToken) -> Vec<Duration> {
    let mut took = Vec::new();
    while !stop.is_cancelled() {
        let started = Instant::now();
        let id = caller.submit("echo", &json!("good")).await;
        took.push(started.elapsed());
        let started = Instant::now();
        assert_eq!(caller.operation(&id).await["kind"], "echo");
        took.push(started.elapsed());
        // A load that a small machine bears easily, so that what is measured is not itself.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// With the deadlines that are the default.
#[expect(clippy::print_stdout, reason = "a figure for who runs this with --nocapture")]
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_closed_within_20_s_and_good_ones_are_served() {
    let services = harness::services::Services::prepare("").await;
    let (mut requestor, mut provider) = (services.requestor.start().await, services.provider.start().await);
    let port = services.requestor.port();
    let large = services.caller.submit("echo", &json!("x".repeat(200_000))).await;
    services.caller.ended(&large).await;
    let large = format!("/v1/operations/{large}/result");
    let during = async |load: &mut JoinSet<()>, at_least: Duration| {
        let stop = CancellationToken::new();
        let good = join_all((0..4).map(|_| be_good(services.caller.clone(), stop.clone())));
        let end = async {
            tokio::time::sleep(at_least).await;
            while let Some(ended) = load.join_next().await {
                ended.unwrap();
            }
            stop.cancel();
        };
        p99(tokio::join!(good, end).0.concat())
    };
    let before = during(&mut JoinSet::new(), Duration::from_secs(2)).await;
    let mut slow = JoinSet::new();
    for how in [Slow::Silent, Slow::Head, Slow::Body, Slow::Reader, Slow::Silent2, Slow::Reader2] {
        for _ in 0..50 {
            let large = large.clone();
            slow.spawn(async move {
                timeout(SLOW_MAX, how.be(port, &large)).await.unwrap_or_else(|_| panic!("{how:?} was not closed"));
            });
        }
    }
    let with = during(&mut slow, Duration::ZERO).await;
    println!("p99 of good requests: {before:?} before, {with:?} with 300 slow clients");
    assert!(services.caller.metric("arr_http_overdue_total", "head").await >= 150.0);
    assert!(services.caller.metric("arr_http_overdue_total", "unread").await >= 100.0);
    services.caller.none_open().await;
    harness::pair::drained(&services.host).await;
    assert!(provider.terminate().await.success() && requestor.terminate().await.success());
    services.finish().await;
}

/// A requestor with short deadlines, and without a broker, which none of this needs.
fn requestor(folder: &Path) -> Service {
    Service::requestor("amqp://guest:guest@127.0.0.1:1", folder)
        .with("REQUESTOR_HTTP__LIMITS__HEADER_TIMEOUT", "1s")
        .with("REQUESTOR_HTTP__LIMITS__IDLE_TIMEOUT", "2s")
        .with("REQUESTOR_HTTP__LIMITS__WRITE_TIMEOUT", "1s")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_may_be_idle_but_not_begin_what_it_does_not_end() {
    let folder = tempfile::tempdir().unwrap();
    let service = requestor(folder.path()).with("REQUESTOR_HTTP__LIMITS__IDLE_TIMEOUT", "60s");
    let _process = service.start().await;
    let (mut idle, mut slow) = (connect(service.port()).await, connect(service.port()).await);
    for stream in [&mut idle, &mut slow] {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    }
    slow.write_all(b"GET /hea").await.unwrap();
    assert!(is_closed_within(&mut slow, SLOW_MAX).await);
    // It was idle longer than a head may take, and is still served.
    let again = answer(idle, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(again.contains("200 OK"), "{again}");
    let service = requestor(folder.path());
    drop(_process);
    let _process = service.start().await;
    let mut idle = connect(service.port()).await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(is_closed_within(&mut idle, SLOW_MAX).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_to_who_knows_it_and_its_slow_readers_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let service = requestor(folder.path());
    let mut process = service.start().await;
    let client = ClientBuilder::new().http2_prior_knowledge().build().unwrap();
    let url = format!("http://127.0.0.1:{}", service.port());
    let requests = (0..50).map(|n| client.post(format!("{url}/v1/requests/echo")).json(&n).send());
    for response in join_all(requests).await {
        let response = response.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (202, Version::HTTP_2));
        // The host is where it was asked for, not where the service believes to be.
        assert!(response.headers()["location"].to_str().unwrap().starts_with(&url));
    }
    let large = client.get(format!("{url}/healthz")).header("x-large", "x".repeat(20_000)).send().await.unwrap();
    assert_eq!(large.status(), 431);
    for window in [0, 1] {
        let slow = take_nothing(connect(service.port()).await, "/metrics", window);
        timeout(SLOW_MAX, slow).await.expect("a client that takes nothing is closed");
    }
    assert!(client.get(format!("{url}/healthz")).send().await.unwrap().status().is_success());
    drop(client);
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let service = requestor(folder.path());
    let _process = service.start().await;
    let get = async |bytes| {
        let request = http_client().get(format!("http://127.0.0.1:{}/healthz", service.port()));
        request.header("x-large", "x".repeat(bytes)).send().await.unwrap().status()
    };
    assert_eq!(get(8_000).await, 200);
    assert_eq!(get(20_000).await, 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_for_others_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::requestor("amqp://guest:guest@127.0.0.1:1", folder.path())
        .with("REQUESTOR_HTTP__LIMITS__CONNECTIONS_MAX", "4")
        .with("REQUESTOR_HTTP__WAITERS_MAX", "2")
        .with("REQUESTOR_HTTP__STREAMS_MAX", "2");
    let _process = service.start().await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(service.port()).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        open.push(stream);
    }
    let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let fifth = answer(connect(service.port()).await, request);
    tokio::pin!(fifth);
    assert!(timeout(NEVER, fifth.as_mut()).await.is_err(), "there are four already");
    open.pop();
    assert!(fifth.await.contains("200 OK"));
}

/// Serves a path for each way in which a connection can go on for long.
fn long_lived(ended: &CancellationToken) -> Router {
    let ended = ended.clone();
    let upgrade = async move |mut request: axum::extract::Request| {
        let upgraded = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let upgraded = upgraded.await.unwrap();
            ended.cancelled().await;
            drop(upgraded);
        });
        tasks.detach_all();
        let headers = [("upgrade", "test"), ("connection", "upgrade")];
        (axum::http::StatusCode::SWITCHING_PROTOCOLS, headers)
    };
    let slow = async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        "done"
    };
    let pauses = async || {
        let pieces = futures_util::stream::unfold(0, async |n| {
            tokio::time::sleep(Duration::from_millis(500)).await;
            (n < 3).then(|| (Ok::<_, std::io::Error>("piece "), n + 1))
        });
        axum::body::Body::from_stream(pieces)
    };
    let router = Router::new().route("/upgrade", get(upgrade)).route("/slow", get(slow)).route("/pauses", get(pauses));
    router.route("/", get(async || "ok"))
}

fn limits() -> ServerLimits {
    requestor::config::Config::load(None).unwrap().http.limits
}

async fn upgraded(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /upgrade HTTP/1.1\r\nHost: x\r\nUpgrade: test\r\nConnection: upgrade\r\n\r\n")
        .await
        .unwrap();
    let mut said = [0; 1024];
    let length = stream.read(&mut said).await.unwrap();
    assert!(said[..length].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&said[..length]));
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_counts_until_it_ends_and_is_waited_for() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (shutdown, ended) = (CancellationToken::new(), CancellationToken::new());
    let limits = ServerLimits { connections_max: 2, ..limits() };
    let (router, tls) = (long_lived(&ended), TlsConfig::default());
    let serve = shared::http::serve(shared::http::bind(address).unwrap(), router, &limits, &tls, &shutdown);
    let ask = async {
        let (first, mut second) = (upgraded(address).await, upgraded(address).await);
        let third = answer(TcpStream::connect(address).await.unwrap(), "GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        tokio::pin!(third);
        assert!(timeout(NEVER, third.as_mut()).await.is_err(), "both connections are still there");
        ended.cancel();
        assert!(third.await.contains("200 OK"));
        assert!(is_closed_within(&mut second, SLOW_MAX).await);
        drop(first);
        shutdown.cancel();
    };
    let (served, ()) = tokio::join!(serve, ask);
    served.unwrap();
}

/// Deadlines are the client's: what the service itself is slow with, such as a stream of events, has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_pauses_is_not_cut() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (shutdown, short) = (CancellationToken::new(), Duration::from_millis(200));
    let limits = ServerLimits { header_timeout: short, idle_timeout: short, write_timeout: short, ..limits() };
    let (router, tls) = (long_lived(&shutdown), TlsConfig::default());
    let serve = shared::http::serve(shared::http::bind(address).unwrap(), router, &limits, &tls, &shutdown);
    let ask = async {
        for client in [ClientBuilder::new(), ClientBuilder::new().http2_prior_knowledge()] {
            let response = client.build().unwrap().get(format!("http://{address}/pauses")).send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "piece piece piece ");
        }
        shutdown.cancel();
    };
    let (served, ()) = tokio::join!(serve, ask);
    served.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_what_is_under_way_and_not_for_ever() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    for (drain, ends) in [(Duration::from_secs(30), true), (Duration::from_millis(200), false)] {
        let (shutdown, ended) = (CancellationToken::new(), CancellationToken::new());
        let limits = ServerLimits { drain, ..limits() };
        let (router, tls) = (long_lived(&ended), TlsConfig::default());
        let serve = shared::http::serve(shared::http::bind(address).unwrap(), router, &limits, &tls, &shutdown);
        let ask = async {
            let mut stream = upgraded(address).await;
            let mut slow = TcpStream::connect(address).await.unwrap();
            slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            shutdown.cancel();
            let mut answer = String::new();
            let _ = slow.read_to_string(&mut answer).await;
            assert_eq!(answer.ends_with("done"), ends, "{answer}");
            assert!(!is_closed_within(&mut stream, NEVER).await);
            if ends {
                ended.cancel();
            }
        };
        let started = Instant::now();
        let (served, ()) = tokio::join!(serve, ask);
        served.unwrap();
        assert!(started.elapsed() < Duration::from_secs(20), "it did not wait until its end");
        ended.cancel();
    }
}

/// Half a request is under way, another was not read yet, and others wait for their outcome: SIGTERM cuts none.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_cuts_no_request() {
    let host = Broker::shared().await.virtual_host().await;
    let folder = tempfile::tempdir().unwrap();
    let service = Service::requestor(&host.url, folder.path());
    let mut process = service.start().await;
    let head = |more: &str| {
        let head = "POST /v1/requests/echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        format!("{head}{more}Content-Length: 4\r\n\r\n12")
    };
    let mut half = Vec::new();
    for n in 0..60 {
        let mut stream = connect(service.port()).await;
        let (more, rest) = if n < 20 { ("Prefer: wait=50\r\n", "34") } else { ("", "") };
        stream.write_all(format!("{}{rest}", head(more)).as_bytes()).await.unwrap();
        half.push((stream, if rest.is_empty() { "34" } else { "" }));
    }
    let client = ClientBuilder::new().http2_prior_knowledge().build().unwrap();
    let waiting = client.post(format!("http://127.0.0.1:{}/v1/requests/echo", service.port()));
    let waiting = waiting.header("prefer", "wait=50").json(&1).send();
    let end = async {
        eventually("all are accepted", async || {
            let accepted = Caller::new(format!("http://127.0.0.1:{}", service.port()));
            let accepted = accepted.metric("arr_operations_accepted_total", "echo").await;
            if accepted >= 21.0 { Ok(()) } else { Err(format!("{accepted}")) }
        })
        .await;
        process.signal(nix::sys::signal::Signal::SIGTERM);
        eventually("nobody else is let in", async || match TcpStream::connect(("127.0.0.1", service.port())).await {
            Ok(_) => Err("somebody is".into()),
            Err(_) => Ok(()),
        })
        .await;
        let answers = half.into_iter().map(|(stream, rest)| answer(stream, rest));
        for answer in join_all(answers).await {
            assert!(answer.starts_with("HTTP/1.1 202 Accepted"), "{answer:?}");
        }
        assert!(process.ended().await.success());
    };
    let (answered, ()) = tokio::join!(waiting, end);
    assert_eq!(answered.unwrap().status(), 202);
    host.delete().await;
}

fn limit_open_files(process: &Process, limit: &str) {
    let pid = process.id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:")]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_descriptors_serves_again_when_it_has_some() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::requestor("amqp://guest:guest@127.0.0.1:1", folder.path());
    let process = service.start().await;
    limit_open_files(&process, "3");
    let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let waiting = join_all((0..5).map(async |_| answer(connect(service.port()).await, request).await));
    tokio::pin!(waiting);
    assert!(timeout(NEVER, waiting.as_mut()).await.is_err(), "it has no descriptor for them");
    eventually("it says why", async || {
        let log = service.log();
        if log.contains("cannot accept connections") { Ok(()) } else { Err(log) }
    })
    .await;
    limit_open_files(&process, "20000");
    assert!(waiting.await.iter().all(|answer| answer.contains("200 OK")));
    assert_eq!(service.log().matches("cannot accept connections").count(), 1, "{}", service.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_low_a_limit_of_open_files_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite://{}/requestor.db", folder.path().display());
    let start = |limit: &str| {
        let serve = command("requestor", &[]);
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={limit}")).arg(serve.get_program()).arg("serve").env_clear();
        limited.env("REQUESTOR_STORE__URL", &store).env("REQUESTOR_HTTP__LISTEN", "127.0.0.1:0");
        limited
    };
    let output = start("200:200").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("at most 200 files"), "{error}");
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let _process = Process::spawn(start("256:1024").stderr(file));
    eventually("it starts with fewer", async || {
        let log = std::fs::read_to_string(&log).unwrap();
        let told = ["only 768 connections", "streams_max=640", "requestor ready"].iter().all(|part| log.contains(part));
        if told { Ok(()) } else { Err(log) }
    })
    .await;
}

/// Writes a new certificate for 127.0.0.1 and its key, and returns what a client needs to trust it.
fn certify(tls: &TlsConfig) -> Certificate {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&tls.certificate, made.cert.pem()).unwrap();
    std::fs::write(&tls.key, made.signing_key.serialize_pem()).unwrap();
    Certificate::from_pem(made.cert.pem().as_bytes()).unwrap()
}

fn trusting(certificate: &Certificate) -> ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().tls_certs_only([certificate.clone()]).pool_max_idle_per_host(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_both_versions_and_a_new_certificate_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let tls = TlsConfig { certificate: folder.path().join("tls.pem"), key: folder.path().join("tls.key") };
    let old = certify(&tls);
    let service = requestor(folder.path())
        .with("REQUESTOR_HTTP__TLS__CERTIFICATE", tls.certificate.to_str().unwrap())
        .with("REQUESTOR_HTTP__TLS__KEY", tls.key.to_str().unwrap());
    let mut process = service.start().await;
    let url = format!("https://127.0.0.1:{}", service.port());
    let submit = async |client: ClientBuilder| -> reqwest::Result<Response> {
        client.build()?.post(format!("{url}/v1/requests/echo")).json(&1).send().await
    };
    for (client, version) in [(trusting(&old), Version::HTTP_2), (trusting(&old).http1_only(), Version::HTTP_11)] {
        let response = submit(client).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (202, version));
        assert!(response.headers()["location"].to_str().unwrap().starts_with(&url));
    }
    let mut silent = connect(service.port()).await;
    assert!(is_closed_within(&mut silent, SLOW_MAX).await, "a handshake has a deadline");
    // A certificate whose key has not come yet changes nothing.
    let key = std::fs::read(&tls.key).unwrap();
    let lonely = certify(&tls);
    std::fs::write(&tls.key, key).unwrap();
    eventually("it says why it keeps the old one", async || {
        let log = service.log();
        if log.contains("cannot be used together") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(submit(trusting(&lonely)).await.is_err());
    assert_eq!(submit(trusting(&old)).await.unwrap().status(), 202);
    let new = certify(&tls);
    eventually("the new certificate is in use", async || {
        submit(trusting(&new)).await.map(drop).map_err(|error| format!("{error:?}"))
    })
    .await;
    assert!(submit(trusting(&old)).await.is_err());
    assert!(process.terminate().await.success());
}

#[test]
fn a_certificate_that_cannot_be_used_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (one, other) = (
        TlsConfig { certificate: path("one.pem"), key: path("one.key") },
        TlsConfig { certificate: path("other.pem"), key: path("other.key") },
    );
    certify(&one);
    certify(&other);
    let no_pem = path("text");
    std::fs::write(&no_pem, "nothing").unwrap();
    for (certificate, key, hints) in [
        (&one.certificate, &std::path::PathBuf::new(), ["http.tls.key", "http.tls.certificate"]),
        (&path("missing"), &one.key, ["http.tls.certificate", "missing"]),
        (&no_pem, &one.key, ["http.tls.certificate", "text"]),
        (&one.certificate, &path("missing"), ["http.tls.key", "missing"]),
        (&one.certificate, &other.key, ["one.pem", "other.key"]),
    ] {
        for name in ["requestor", "provider"] {
            let variable = |key: &str| format!("{}_HTTP__TLS__{key}", name.to_uppercase());
            let files = [("CERTIFICATE", certificate), ("KEY", key)];
            let variables = files.map(|(key, file)| (variable(key), file.to_str().unwrap().to_owned()));
            let output = command(name, &variables).arg("serve").output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(hints.iter().all(|hint| error.contains(hint)), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_is_served_by_the_same_server() {
    let folder = tempfile::tempdir().unwrap();
    let tls = TlsConfig { certificate: folder.path().join("tls.pem"), key: folder.path().join("tls.key") };
    let certificate = certify(&tls);
    let service = Service::provider("amqp://guest:guest@127.0.0.1:1", folder.path())
        .with("PROVIDER_HTTP__TLS__CERTIFICATE", tls.certificate.to_str().unwrap())
        .with("PROVIDER_HTTP__TLS__KEY", tls.key.to_str().unwrap());
    let mut process = service.start().await;
    let client = trusting(&certificate).build().unwrap();
    let get =
        async |path: &str| client.get(format!("https://127.0.0.1:{}{path}", service.port())).send().await.unwrap();
    assert_eq!(get("/healthz").await.status(), 200);
    let ready = get("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.json::<Value>().await.unwrap()["broker"], "away");
    assert_eq!(get("/metrics").await.status(), 200);
    assert!(process.terminate().await.success());
}
