//! Calls without a record: each ends once, with its own reply or with an error that says what is known.

use harness::pair::Pair;
use requestor::Content;
use requestor::rpc::{Client, Config, Error};
use std::time::Duration;

/// Longer than any call takes that is to be answered.
const LONG: Duration = Duration::from_secs(60);

/// A pair whose provider takes calls and is not started, and a client of its broker.
async fn prepare() -> (Pair, Client) {
    let mut pair = Pair::prepare().await;
    pair.provider_config.calls.prefetch = 256;
    let client = connect(&pair.requestor_config).await;
    (pair, client)
}

async fn connect(config: &requestor::config::Config) -> Client {
    Client::connect(Config::from(config)).await.unwrap()
}

/// Waits until calls of `kind` are taken.
async fn taken(client: &Client, kind: &str) {
    harness::eventually("calls are taken", async || {
        let answer = client.call(kind, Content::json("0"), LONG).await;
        answer.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_at_once_are_answered_each_with_its_own_reply() {
    let (mut pair, client) = prepare().await;
    pair.start_provider();
    taken(&client, "echo").await;
    let calls = (0..1000).map(|number| {
        let client = client.clone();
        async move {
            let body = format!("{{\"number\":{number}}}");
            let reply = client.call("echo", Content::json(body.clone()), LONG).await.unwrap();
            assert_eq!((reply.content_type.as_str(), reply.body), ("application/json", body.into()));
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(client.in_flight(), 0);
    let large = Content { content_type: "application/octet-stream".into(), body: vec![7; 1_000_000].into() };
    assert_eq!(client.call("echo", large.clone(), LONG).await.unwrap(), large);
    client.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_nobody_serves_and_a_request_that_fails_are_told_at_once() {
    let (mut pair, client) = prepare().await;
    let nobody = client.call("nobody.home", Content::json("1"), LONG).await.unwrap_err();
    assert_eq!(nobody, Error::NoProvider("nobody.home".into()));
    assert!(!nobody.may_have_run() && nobody.to_string().contains("nobody.home"), "{nobody}");
    pair.start_provider();
    taken(&client, "echo").await;
    let effect = client.call("order.place", Content::json("{}"), LONG).await.unwrap_err();
    assert_eq!(effect, Error::NoProvider("order.place".into()), "a call may run twice");
    let Err(Error::Failed(problem)) = client.call("risk.analyze", Content::json("{}"), LONG).await else {
        panic!("an empty analysis")
    };
    assert_eq!(problem.status, 422, "{problem:?}");
    for (kind, content) in [("No Kind", Content::json("1")), ("echo", Content::json(vec![b' '; 2_000_000]))] {
        assert!(matches!(client.call(kind, content, LONG).await, Err(Error::Invalid(_))));
    }
    client.close().await;
    pair.finish().await;
}
