//! Ten thousand wait, and all are told.

use crate::stand_in::StandIn;
use futures_util::StreamExt;
use harness::services::Services;
use harness::streams::{Begin, Socket};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use std::time::Instant;

const SUBSCRIBERS: usize = 10_000;
const OPERATIONS: usize = 100;
/// Connections that are made or read at the same time.
const TOGETHER: usize = 100;
const MEMORY_MAX: u64 = 600 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "the figures are what this test is for")]
async fn ten_thousand_idle_sockets_get_the_outcome_from_one_requestor_in_bounded_memory() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(most as usize > SUBSCRIBERS + 1000, "the system lets a process have {most} open files only");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut stack = Services::prepare("").await;
    for name in ["HTTP__STREAMS_MAX", "QUOTAS__STREAMS_MAX"] {
        stack.requestor = stack.requestor.with(&format!("REQUESTOR_{name}"), &SUBSCRIBERS.to_string());
    }
    // On a busy machine it takes long to open them all: longer than an echo may, and than a peer may be silent, which
    // these are until they are read.
    stack.requestor = stack
        .requestor
        .with("REQUESTOR_HTTP__STREAMS__KEEP_ALIVE", "10m")
        .with("REQUESTOR_HTTP__LIMITS__CONNECTIONS_MAX", &(SUBSCRIBERS + 1000).to_string())
        .with("REQUESTOR_KINDS__ECHO__TIMEOUT", "30m");
    let provider = StandIn::join_in(&stack.host, &["echo"]).await;
    let mut requestor = stack.requestor.start().await;
    let (mut ids, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..OPERATIONS {
        ids.push(stack.caller.submit("echo", &json!(1)).await);
        requests.push(provider.request("echo").await);
    }

    let begun = Instant::now();
    let open = |number: usize| {
        let path = format!("/v1/operations/{}/events", ids[number % OPERATIONS]);
        let caller = &stack.caller;
        async move {
            let mut socket = Socket::open(caller, &path, Begin { after: Some(0), cut_after: None }).await.unwrap();
            let first = socket.next().await.unwrap().unwrap();
            assert_eq!(first["type"], "created");
            socket
        }
    };
    let sockets: Vec<_> = futures_util::stream::iter((0..SUBSCRIBERS).map(open)).buffered(TOGETHER).collect().await;
    let opened = begun.elapsed();
    let idle = requestor.peak_memory();

    let begun = Instant::now();
    for request in &requests {
        provider.succeed(request, "2").await;
    }
    let ends = sockets.into_iter().map(|mut socket| async move {
        let (events, closed) = socket.rest().await;
        assert_eq!((events.len(), events[0]["type"].as_str()), (1, Some("succeeded")));
        assert_eq!(closed.0, 1000);
    });
    let told = futures_util::stream::iter(ends).buffer_unordered(SUBSCRIBERS).count().await;
    let (told_in, peak) = (begun.elapsed(), requestor.peak_memory());
    let mebibytes = |bytes: u64| bytes / 1024 / 1024;
    eprintln!(
        "{told} sockets opened in {opened:.1?}, told in {told_in:.1?}; at most {} MiB idle, {} MiB in all",
        mebibytes(idle),
        mebibytes(peak)
    );
    assert_eq!(told, SUBSCRIBERS);
    assert!(peak < MEMORY_MAX, "{} MiB", mebibytes(peak));
    provider.leave().await;
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}
