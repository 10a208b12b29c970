//! What happens is told by server-sent events and over WebSocket: all of it, once, in order.

use crate::callers::add;
use crate::stand_in::StandIn;
use harness::eventually;
use harness::pair::Pair;
use harness::store::StoreOfTest;
use harness::streams::{Begin, ServerSent, Socket, Told};
use serde_json::{Value, json};
use shared::message::Request;
use shared::problem::Problem;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const START: Begin = Begin { after: None, cut_after: None };

fn after(number: u64) -> Begin {
    Begin { after: Some(number), cut_after: None }
}

async fn pair_with_stand_in() -> (Pair, StandIn) {
    start_with_stand_in(Pair::prepare().await).await
}

async fn start_with_stand_in(mut pair: Pair) -> (Pair, StandIn) {
    let stand_in = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    (pair, stand_in)
}

/// An operation that a provider has begun.
async fn begun(pair: &Pair, provider: &StandIn) -> (String, Request) {
    let id = pair.submit("echo", &json!(1)).await;
    let request = provider.request("echo").await;
    provider.report(&request, 50.0, None).await;
    pair.reached(&id, &["Running"]).await;
    (id, request)
}

/// The status of a response that is a problem.
fn problem_status(response: &reqwest::Response) -> Option<u16> {
    let is_problem = response.headers()["content-type"] == "application/problem+json";
    is_problem.then(|| response.status().as_u16())
}

fn path(id: &str) -> String {
    format!("/v1/operations/{id}/events")
}

async fn log(pair: &Pair, path: &str) -> Vec<Value> {
    pair.get_json(path).await["events"].as_array_mut().map(std::mem::take).unwrap()
}

fn documents(told: &[Told]) -> Vec<Value> {
    told.iter().map(|told| told.document.clone()).collect()
}

fn types(documents: &[Value]) -> Vec<&str> {
    documents.iter().map(|document| document["type"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operation_is_told_from_a_snapshot_to_its_end() {
    let (pair, provider) = pair_with_stand_in().await;
    let (id, request) = begun(&pair, &provider).await;
    let mut stream = ServerSent::open(&pair, &path(&id), START).await.unwrap();
    let mut socket = Socket::open(&pair, &path(&id), START).await.unwrap();
    assert_eq!(stream.status, 200);
    for header in ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"] {
        assert!(stream.head.contains(header), "{}", stream.head);
    }
    let snapshot = stream.next().await.unwrap().unwrap();
    assert_eq!((snapshot.id, snapshot.event.as_str()), (None, "snapshot"));
    let operation = pair.operation(&id).await;
    assert_eq!((&snapshot.document["data"], &snapshot.document["number"]), (&operation, &json!(2)));
    assert_eq!(snapshot.document["reason"], "start");
    let first = socket.next().await.unwrap().unwrap();
    let begun = [stream.next().await.unwrap().unwrap(), stream.next().await.unwrap().unwrap()];
    provider.report(&request, 75.0, None).await;
    // What comes later is told as it comes.
    let report = stream.next().await.unwrap().unwrap();
    assert_eq!((report.id, report.document["data"]["percent"].as_f64()), (Some(3), Some(75.0)));
    provider.succeed(&request, "2").await;
    let told = [&begun[..], &[report], &stream.rest().await].concat();
    let log = log(&pair, &path(&id)).await;
    assert_eq!(types(&log), ["created", "progress", "progress", "succeeded"]);
    assert_eq!(documents(&told), log);
    assert_eq!(told.iter().map(|told| told.id.unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(told.iter().all(|told| told.document["type"] == told.event.as_str()));

    let (messages, closed) = socket.rest().await;
    assert_eq!((first["data"].clone(), first["type"].as_str()), (operation, Some("snapshot")));
    assert_eq!(messages, log);
    assert_eq!(closed, (1000, "the operation has ended".into()));
    // Afterwards it tells the same.
    let mut late = ServerSent::open(&pair, &path(&id), START).await.unwrap();
    let told = documents(&late.rest().await);
    assert_eq!((&told[0]["data"]["status"], &told[1..]), (&json!("Succeeded"), &log[..]));
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_where_it_was_and_stops_after_the_end() {
    let (pair, provider) = pair_with_stand_in().await;
    let (id, request) = begun(&pair, &provider).await;
    provider.fail(&request, Problem::new("broken", 500, "Broken", "no")).await;
    pair.ended(&id).await;
    let path = path(&id);
    let log = log(&pair, &path).await;
    let rest = documents(&ServerSent::open(&pair, &path, after(1)).await.unwrap().rest().await);
    assert_eq!(rest, log[1..]);
    for query in ["after=2", "lastEventId=2"] {
        let with_query = format!("{path}?{query}");
        assert_eq!(documents(&ServerSent::open(&pair, &with_query, START).await.unwrap().rest().await), log[2..]);
        assert_eq!(Socket::open(&pair, &with_query, START).await.unwrap().rest().await.0, log[2..]);
    }
    assert_eq!(Socket::open(&pair, &path, after(0)).await.unwrap().rest().await.0, log);
    assert_eq!(ServerSent::open(&pair, &path, after(3)).await.unwrap().status, 204);
    assert_eq!(Socket::open(&pair, &path, after(3)).await.unwrap().rest().await, (vec![], closed_at_end()));

    // A number that was never given out is as none.
    let told = documents(&ServerSent::open(&pair, &path, after(4)).await.unwrap().rest().await);
    assert_eq!((told[0]["reason"].as_str(), &told[1..]), (Some("unknown"), &log[..]));
    let words = pair.request("GET", &path).header("accept", "text/event-stream").header("last-event-id", "three");
    let refused = words.send().await.unwrap();
    assert_eq!(problem_status(&refused), Some(400));
    assert_eq!(ServerSent::open(&pair, &path.replace(&id[..8], "01a2076b"), START).await.unwrap().status, 404);

    // An operation that is attempted again goes on, and so does its log.
    pair.request("POST", &format!("/v1/operations/{id}/retry")).send().await.unwrap();
    let mut again = ServerSent::open(&pair, &path, after(3)).await.unwrap();
    assert_eq!(again.next().await.unwrap().unwrap().event, "retried");
    provider.succeed(&provider.request("echo").await, "2").await;
    assert_eq!(types(&documents(&again.rest().await)), ["succeeded"]);
    provider.leave().await;
    pair.finish().await;
}

fn closed_at_end() -> (u16, String) {
    (1000, "the operation has ended".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_operations_are_told_in_one_order() {
    let (pair, provider) = pair_with_stand_in().await;
    let (open, request) = begun(&pair, &provider).await;
    let mut stream = ServerSent::open(&pair, "/v1/events", START).await.unwrap();
    let mut socket = Socket::open(&pair, "/v1/events", START).await.unwrap();
    let snapshot = stream.next().await.unwrap().unwrap();
    assert_eq!((snapshot.id, &snapshot.document["sequence"]), (Some(2), &json!(2)));
    assert_eq!(snapshot.document["data"]["operations"], json!([pair.operation(&open).await]));
    assert_eq!(socket.next().await.unwrap().unwrap()["data"], snapshot.document["data"]);
    let (second, other) = begun(&pair, &provider).await;
    provider.succeed(&other, "2").await;
    pair.ended(&second).await;
    provider.succeed(&request, "2").await;
    let (mut by_stream, mut by_socket) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        by_stream.push(stream.next().await.unwrap().unwrap());
        by_socket.push(socket.next().await.unwrap().unwrap());
    }
    assert_eq!(documents(&by_stream), by_socket);
    let log = log(&pair, "/v1/events").await;
    assert_eq!(by_socket, log[2..]);
    let sequences: Vec<_> = log.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6]);
    assert_eq!(types(&by_socket), ["created", "progress", "succeeded", "succeeded"]);
    assert_eq!((&by_socket[1]["operation"], &by_socket[3]["operation"]), (&json!(second), &json!(open)));
    assert_eq!((&by_socket[1]["kind"], &by_socket[1]["number"]), (&json!("echo"), &json!(2)));
    let mut resumed = ServerSent::open(&pair, "/v1/events", after(5)).await.unwrap();
    assert_eq!(resumed.next().await.unwrap().unwrap().document, log[5]);
    let page = pair.get("/v1/events?after=1&pageSize=2").await;
    assert!(page.headers()["link"].to_str().unwrap().contains("/v1/events?after=3&pageSize=2"));
    assert_eq!(page.json::<Value>().await.unwrap(), json!({ "events": log[1..3], "gone": false }));
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_go_on_is_told_how_things_are() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.operations.retention = Duration::from_millis(500);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let mut unknown = ServerSent::open(&pair, "/v1/events", after(1_000_000)).await.unwrap();
    assert_eq!(unknown.next().await.unwrap().unwrap().document["reason"], "unknown");
    let id = pair.submit("echo", &json!(1)).await;
    eventually("the operation is forgotten", async || {
        let status = pair.get(&path(&id)).await.status();
        if status == 410 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let mut gone = ServerSent::open(&pair, "/v1/events", after(1)).await.unwrap();
    let told = gone.next().await.unwrap().unwrap();
    assert_eq!(
        (told.document["reason"].as_str(), told.document["data"]["operations"].as_array().unwrap().len()),
        (Some("gone"), 0)
    );
    assert_eq!(pair.get_json("/v1/events?after=1").await["gone"], true);
    assert_eq!(ServerSent::open(&pair, &path(&id), after(1)).await.unwrap().status, 410);
    pair.finish().await;
}

/// Events that a requestor might have written, more than all buffers on the way to a reader hold.
async fn write_events(pair: &Pair, id: &str, from: u32, count: u32) {
    let (last, data) = (from + count - 1, json!({ "message": "x".repeat(1000) }));
    let numbers = format!("with recursive n(n) as (values ({from}) union all select n + 1 from n where n < {last})");
    let written = match &pair.store {
        StoreOfTest::File(_) => {
            let id = id.replace('-', "");
            let columns = format!("x'{id}', n, 'anonymous', 1, 'progress', '{data}'");
            format!("{numbers} insert into events (id, number, owner, at, type, data) select {columns} from n")
        }
        StoreOfTest::Database(_) => format!(
            "{numbers}, counter as (update events_counter set last = last + {count} returning last - {count} as base)
            insert into events (sequence, id, number, owner, at, type, data)
            select base + n - {from} + 1, '{id}', n, 'anonymous', 1, 'progress', '{data}' from n, counter"
        ),
    };
    assert_eq!(pair.store.execute(&written).await, u64::from(count));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_falls_behind_gets_a_snapshot_and_goes_on_from_there() {
    let mut pair = Pair::prepare().await;
    // On a busy machine it may well be slow for longer than a reader may be by default.
    pair.requestor_config.http.limits.write_timeout = Duration::from_secs(60);
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let (id, request) = begun(&pair, &provider).await;
    let mut slow = ServerSent::open(&pair, "/v1/events", START).await.unwrap();
    let first = slow.next().await.unwrap().unwrap();
    assert_eq!(first.document["reason"], "start");
    // 9,000 are within the limit, so it is sent them until nothing more fits between it and the requestor.
    write_events(&pair, &id, 1000, 9000).await;
    provider.report(&request, 60.0, None).await;
    let mut quick = ServerSent::open(&pair, "/v1/events", after(2)).await.unwrap();
    while quick.next().await.unwrap().unwrap().id.unwrap() < 9002 {}
    write_events(&pair, &id, 10_000, 11_000).await;
    provider.report(&request, 70.0, None).await;
    while quick.next().await.unwrap().unwrap().id.unwrap() < 20_000 {}

    let mut last = first.id.unwrap();
    let snapshot = loop {
        let told = slow.next().await.unwrap().unwrap();
        if told.event == "snapshot" {
            break told;
        }
        assert_eq!(told.id, Some(last + 1));
        last += 1;
    };
    assert!(last > 100, "{last}");
    assert_eq!(snapshot.document["reason"], "behind");
    let position = snapshot.id.unwrap();
    assert!(position > last + 10_000, "{last} to {position}");
    provider.succeed(&request, "2").await;
    let next = loop {
        let told = slow.next().await.unwrap().unwrap();
        if told.event == "succeeded" {
            break told;
        }
    };
    assert!(next.id.unwrap() > position);
    drop((slow, quick));
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_loses_its_place() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.http.limits.write_timeout = Duration::from_secs(1);
    pair.requestor_config.http.streams_max = 2;
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    let (id, request) = begun(&pair, &provider).await;
    let mut stream = ServerSent::open(&pair, "/v1/events", after(1)).await.unwrap();
    let mut socket = Socket::open(&pair, "/v1/events", after(1)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    socket.next().await.unwrap().unwrap();
    assert_eq!(ServerSent::open(&pair, "/v1/events", START).await.unwrap().status, 503);
    write_events(&pair, &id, 1000, 9000).await;
    provider.succeed(&request, "2").await;
    let places = async || {
        let first = ServerSent::open(&pair, &path(&id), START).await.unwrap();
        let second = ServerSent::open(&pair, &path(&id), START).await.unwrap();
        if (first.status, second.status) == (200, 200) { Ok(()) } else { Err(first.head + &second.head) }
    };
    eventually("both have lost their places", places).await;
    drop((stream, socket));
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_politely_at_a_shutdown_and_go_on_after_it() {
    let (mut pair, provider) = pair_with_stand_in().await;
    let (id, request) = begun(&pair, &provider).await;
    let mut stream = ServerSent::open(&pair, &path(&id), after(1)).await.unwrap();
    let mut all = ServerSent::open(&pair, "/v1/events", after(1)).await.unwrap();
    let mut socket = Socket::open(&pair, &path(&id), after(1)).await.unwrap();
    let number = stream.next().await.unwrap().unwrap().id.unwrap();
    assert_eq!(all.next().await.unwrap().unwrap().id, Some(2));
    assert_eq!(socket.next().await.unwrap().unwrap()["number"], number);
    let begun = Instant::now();
    let ((), rest, of_all, (messages, closed)) =
        tokio::join!(pair.stop_requestor(), stream.rest(), all.rest(), socket.rest());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(rest.is_empty() && of_all.is_empty() && messages.is_empty());
    assert!(stream.retry.is_some_and(|pause| (500..3000).contains(&pause)), "{:?}", stream.retry);
    assert_eq!(closed, (1012, "the service restarts".into()));
    pair.start_requestor();
    pair.ready().await;
    let mut stream = ServerSent::open(&pair, &path(&id), after(number)).await.unwrap();
    provider.succeed(&request, "2").await;
    assert_eq!(types(&documents(&stream.rest().await)), ["succeeded"]);
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_give_signs_of_life_and_peers_without_any_are_left() {
    let mut pair = Pair::prepare().await;
    // Only here: a test that does not read its socket for two of these would lose it.
    pair.requestor_config.http.streams.keep_alive = Duration::from_millis(300);
    let (pair, provider) = start_with_stand_in(pair).await;
    let (id, request) = begun(&pair, &provider).await;
    let mut stream = pair
        .request("GET", &format!("{}?after=2", path(&id)))
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap();
    for _ in 0..2 {
        assert_eq!(stream.chunk().await.unwrap().unwrap(), ":\n\n");
    }
    // One that reads, and so answers pings, stays; one that does not is left.
    let mut alive = Socket::open(&pair, &path(&id), after(2)).await.unwrap();
    let after_all = format!("{}?after=2", path(&id));
    let silent = silent_socket(&pair, &after_all);
    let begun = Instant::now();
    tokio::select! {
        told = alive.next() => panic!("{told:?}"),
        () = silent => {}
    }
    assert!(begun.elapsed() > Duration::from_millis(600), "{:?}", begun.elapsed());
    // The socket is read all the time.
    let ((), (events, _)) = tokio::join!(provider.succeed(&request, "2"), alive.rest());
    assert_eq!(events.len(), 1);
    provider.leave().await;
    pair.finish().await;
}

/// Opens a socket and answers nothing, until the requestor has had enough.
async fn silent_socket(pair: &Pair, path: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = pair.base.trim_start_matches("http://");
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    silent.write_all(head.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    timeout(Duration::from_secs(30), silent.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&heard));
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_hear_only_what_they_should() {
    let (pair, provider) = pair_with_stand_in().await;
    let (id, request) = begun(&pair, &provider).await;
    for said in [json!({ "until": 1 }), json!({ "since": -1 }), json!("since")] {
        let mut socket = Socket::open(&pair, &path(&id), START).await.unwrap();
        socket.say(&said).await.unwrap();
        assert_eq!(socket.rest().await.1.0, 1008, "{said}");
    }
    let mut twice = Socket::open(&pair, &path(&id), after(1)).await.unwrap();
    twice.say(&json!({ "since": 0 })).await.unwrap();
    assert_eq!(twice.rest().await.1.0, 1008);
    let ask = |header: &'static str, value: &'static str| {
        let request = pair.request("GET", &path(&id)).header("connection", "upgrade").header("upgrade", "websocket");
        let request = request.header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
        request.header("sec-websocket-version", "13").header(header, value).send()
    };
    let foreign = ask("origin", "https://evil.example").await.unwrap();
    assert_eq!(problem_status(&foreign), Some(403));
    assert_eq!(ask("origin", "null").await.unwrap().status(), 403);
    let old = pair.request("GET", &path(&id)).header("connection", "upgrade").header("upgrade", "websocket");
    let old = old.header("sec-websocket-version", "8").send().await.unwrap();
    assert_eq!(problem_status(&old), Some(400));
    provider.succeed(&request, "2").await;
    pair.ended(&id).await;
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_of_what_is_anothers() {
    let mut pair = Pair::prepare().await;
    let (ada, bob) = (add(&mut pair, "ada", false), add(&mut pair, "bob", false));
    let root = add(&mut pair, "root", true);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let mut streams = Vec::new();
    for caller in [&ada, &bob, &root] {
        let stream = ServerSent::open(caller, "/v1/events", after(0)).await.unwrap();
        streams.push((stream, Socket::open(caller, "/v1/events", after(0)).await.unwrap()));
    }
    let (of_ada, of_bob) = (ada.submit("echo", &json!(1)).await, bob.submit("echo", &json!(2)).await);
    ada.ended(&of_ada).await;
    bob.ended(&of_bob).await;
    let both = root.get_json("/v1/events").await["events"].as_array().unwrap().clone();
    let visible = [vec![&of_ada], vec![&of_bob], vec![&of_ada, &of_bob]];
    for ((mut stream, mut socket), visible) in streams.into_iter().zip(visible) {
        // Whatever else it told would come in between.
        for event in both.iter().filter(|event| visible.iter().any(|id| event["operation"] == id.as_str())) {
            assert_eq!(&stream.next().await.unwrap().unwrap().document, event);
            assert_eq!(&socket.next().await.unwrap().unwrap(), event);
        }
    }
    assert_eq!(ServerSent::open(&bob, &path(&of_ada), START).await.unwrap().status, 404);
    assert!(Socket::open(&bob, &path(&of_ada), after(0)).await.is_err());
    assert_eq!(ServerSent::open(&pair, "/v1/events", START).await.unwrap().status, 401);
    let pages = bob.get_json("/v1/events").await;
    assert!(pages["events"].as_array().unwrap().iter().all(|event| event["operation"] == of_bob.as_str()), "{pages}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_so_many_streams_and_no_more() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.http.streams_max = 1;
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let stream = ServerSent::open(&pair, "/v1/events", START).await.unwrap();
    let refused = ServerSent::open(&pair, "/v1/events", START).await.unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after:"), "{}", refused.head);
    assert!(Socket::open(&pair, "/v1/events", START).await.is_err());
    drop(stream);
    eventually("there is room again", async || {
        let status = ServerSent::open(&pair, "/v1/events", START).await.unwrap().status;
        if status == 200 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_follows_to_the_end() {
    let (pair, provider) = pair_with_stand_in().await;
    let (id, request) = begun(&pair, &provider).await;
    let follow = |arguments: &[&str]| {
        let mut command = harness::process::command("requestor", &[("ARR_URL".into(), pair.base.clone())]);
        command.args(arguments).stdout(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        async { tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap() }
    };
    let (as_table, as_lines) = (follow(&["events", &id, "--follow"]), follow(&["events", &id, "--follow", "--json"]));
    provider.succeed(&request, "2").await;
    let (as_table, as_lines) = tokio::join!(as_table, as_lines);
    assert!(as_table.status.success() && as_lines.status.success());
    let as_table = String::from_utf8(as_table.stdout).unwrap();
    assert_eq!(as_table.lines().count(), 4, "{as_table}");
    assert!(as_table.contains("status=") && as_table.lines().last().unwrap().contains("succeeded"), "{as_table}");
    let as_lines = String::from_utf8(as_lines.stdout).unwrap();
    let told: Vec<Value> = as_lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(types(&told), ["snapshot", "created", "progress", "succeeded"]);
    provider.leave().await;
    pair.finish().await;
}
