//! Readers of events whose connections are cut all the time, and whose requestor is killed, miss nothing.

use crate::stand_in::StandIn;
use futures_util::future::join_all;
use harness::caller::Caller;
use harness::process::Process;
use harness::services::Services;
use harness::streams::{Begin, ServerSent, Socket};
use serde_json::{Value, json};
use shared::message::Request;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::timeout;

const OPERATIONS: usize = 200;
/// Of each way.
const CUTS: usize = 1000;
/// Followers of all operations, of each way.
const OF_ALL: usize = 5;

/// How often connections were cut so far.
#[derive(Default)]
struct Cuts {
    server_sent: AtomicUsize,
    sockets: AtomicUsize,
}

impl Cuts {
    fn enough(&self) -> bool {
        [&self.server_sent, &self.sockets].iter().all(|cuts| cuts.load(Ordering::Relaxed) >= CUTS)
    }

    /// Where the next connection is cut: in its head, in an event, or between two.
    fn draw(&self) -> Option<usize> {
        (!self.enough()).then(|| rand::random_range(1..2500))
    }
}

/// How long a connection lives that comes to no cut by then.
fn life(begin: Begin) -> Duration {
    match begin.cut_after {
        Some(_) => Duration::from_millis(rand::random_range(20..1000)),
        None => Duration::from_secs(90),
    }
}

/// What a reader has had: all numbers, in the order in which they came.
struct Reader<'a> {
    caller: &'a Caller,
    path: String,
    /// The member that numbers its events.
    number: &'static str,
    cuts: &'a Cuts,
    had: Vec<u64>,
}

impl Reader<'_> {
    fn begin(&self) -> Begin {
        Begin { after: Some(self.had.last().copied().unwrap_or_default()), cut_after: self.cuts.draw() }
    }

    fn take(&mut self, document: &Value) {
        assert_ne!(document["type"], "snapshot", "it can always go on: {document}");
        self.had.push(document[self.number].as_u64().unwrap());
    }

    /// Whether it has had the event `last`, if that is known yet.
    fn has(&self, last: Option<u64>) -> bool {
        last.is_some_and(|last| self.had.last().is_some_and(|had| *had >= last))
    }

    /// Reads by server-sent events until there is nothing more, or `last` was read.
    async fn by_server_sent(&mut self, last: impl Fn() -> Option<u64>) {
        loop {
            let begin = self.begin();
            let read = async {
                let mut stream = ServerSent::open(self.caller, &self.path, begin).await.ok()?;
                match stream.status {
                    204 => return Some(()),
                    200 => {}
                    other => panic!("{other}: {}", stream.head),
                }
                while let Some(told) = stream.next().await.ok()? {
                    assert_eq!(told.id, told.document[self.number].as_u64());
                    self.take(&told.document);
                    if self.has(last()) {
                        return Some(());
                    }
                }
                None
            };
            match timeout(life(begin), read).await {
                Ok(Some(())) => return,
                Ok(None) | Err(_) => self.cut(&self.cuts.server_sent, begin).await,
            }
        }
    }

    /// Reads over WebSockets in the same way.
    async fn by_sockets(&mut self, last: impl Fn() -> Option<u64>) {
        loop {
            let begin = self.begin();
            let read = async {
                let mut socket = Socket::open(self.caller, &self.path, begin).await.ok()?;
                loop {
                    match socket.next().await.ok()? {
                        Ok(document) => self.take(&document),
                        Err((1000, _)) => return Some(()),
                        Err(_) => return None,
                    }
                    if self.has(last()) {
                        return Some(());
                    }
                }
            };
            match timeout(life(begin), read).await {
                Ok(Some(())) => return,
                Ok(None) | Err(_) => self.cut(&self.cuts.sockets, begin).await,
            }
        }
    }

    async fn cut(&self, cuts: &AtomicUsize, begin: Begin) {
        if begin.cut_after.is_some() {
            cuts.fetch_add(1, Ordering::Relaxed);
        }
        // A requestor that was killed refuses connections at once.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn readers<'a>(caller: &'a Caller, cuts: &'a Cuts, path: &str, number: &'static str) -> (Reader<'a>, Reader<'a>) {
    let reader = || Reader { caller, path: path.to_owned(), number, cuts, had: Vec::new() };
    (reader(), reader())
}

/// Reports of all operations in turn, and a requestor that is killed meanwhile, until there were enough cuts. Then all
/// end.
async fn work(stack: &Services, provider: &StandIn, requests: &[Request], cuts: &Cuts, requestor: &mut Process) {
    let mut round = 0;
    while !cuts.enough() || round < 10 {
        round += 1;
        for (place, request) in requests.iter().enumerate() {
            provider.report(request, f64::from(round % 100), None).await;
            if round == 3 && place == OPERATIONS / 2 {
                requestor.kill();
                *requestor = stack.requestor.start().await;
            }
        }
    }
    for request in requests {
        provider.succeed(request, "2").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "the figures are what this test is for")]
async fn two_thousand_cuts_and_a_kill_lose_nothing_and_repeat_nothing() {
    let mut stack = Services::prepare("").await;
    let limits = [("STREAMS_MAX", "2000"), ("LIMITS__CONNECTIONS_MAX", "3000")];
    for (name, value) in limits {
        stack.requestor = stack.requestor.with(&format!("REQUESTOR_HTTP__{name}"), value);
    }
    stack.requestor = stack.requestor.with("REQUESTOR_QUOTAS__STREAMS_MAX", "2000");
    let provider = StandIn::join_in(&stack.host, &["echo"]).await;
    let mut requestor = stack.requestor.start().await;
    let ids = join_all((0..OPERATIONS).map(|_| async { stack.caller.submit("echo", &json!(1)).await })).await;
    let mut requests = Vec::new();
    for _ in &ids {
        requests.push(provider.request("echo").await);
    }

    let (cuts, last) = (Cuts::default(), AtomicUsize::new(0));
    let mut of_one: Vec<_> =
        ids.iter().map(|id| readers(&stack.caller, &cuts, &format!("/v1/operations/{id}/events"), "number")).collect();
    let mut of_all: Vec<_> = (0..OF_ALL).map(|_| readers(&stack.caller, &cuts, "/v1/events", "sequence")).collect();
    let ended = || match last.load(Ordering::Relaxed) {
        0 => None,
        last => Some(last as u64),
    };
    let read_one = join_all(of_one.iter_mut().map(|(stream, socket)| async {
        tokio::join!(stream.by_server_sent(|| None), socket.by_sockets(|| None));
    }));
    let read_all = join_all(of_all.iter_mut().map(|(stream, socket)| async {
        tokio::join!(stream.by_server_sent(ended), socket.by_sockets(ended));
    }));
    let ends = async {
        tokio::join!(work(&stack, &provider, &requests, &cuts, &mut requestor), read_one);
        let log = sequences(&stack.caller).await;
        last.store(*log.last().unwrap() as usize, Ordering::Relaxed);
        // One more event, after which all readers look whether they have had the last of those that count.
        let id = stack.caller.submit("echo", &json!(1)).await;
        provider.succeed(&provider.request("echo").await, "2").await;
        stack.caller.ended(&id).await;
        log
    };
    let (log, _) = tokio::join!(ends, read_all);

    let mut told = 0;
    for (id, (stream, socket)) in ids.iter().zip(&of_one) {
        let events = stack.caller.get_json(&format!("/v1/operations/{id}/events?pageSize=200")).await;
        let expected: Vec<_> = (1..=events["events"].as_array().unwrap().len() as u64).collect();
        assert_eq!((&stream.had, &socket.had), (&expected, &expected), "{id}");
        told += 2 * expected.len();
    }
    for (stream, socket) in &of_all {
        for had in [&stream.had, &socket.had] {
            // And of the last operation as much as had happened by then.
            assert!(had.starts_with(&log) && had.len() <= log.len() + 2, "{had:?} {log:?}");
            assert_eq!(*had, (1..=had.len() as u64).collect::<Vec<_>>());
            told += had.len();
        }
    }
    assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>(), "there is no gap in the order of all");
    let cut = [&cuts.server_sent, &cuts.sockets].map(|cuts| cuts.load(Ordering::Relaxed));
    eprintln!("cuts {cut:?}, events {}, told {told}, missing 0, repeated 0", log.len());
    assert!(cut.iter().all(|cut| *cut >= CUTS));
    provider.leave().await;
    assert!(requestor.terminate().await.success());
    stack.finish().await;
}

/// The numbers of all events, from the pages.
async fn sequences(caller: &Caller) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let after = all.last().copied().unwrap_or_default();
        let page = caller.get_json(&format!("/v1/events?after={after}&pageSize=200")).await;
        let events = page["events"].as_array().unwrap();
        if events.is_empty() {
            return all;
        }
        all.extend(events.iter().map(|event| event["sequence"].as_u64().unwrap()));
    }
}
