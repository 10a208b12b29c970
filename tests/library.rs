//! The requestor in a program's own process, without HTTP.

use harness::pair::Pair;
use requestor::{Content, Outcome, Refused, Requestor, SubmitOptions};
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

async fn start(pair: &Pair) -> (Requestor, CancellationToken) {
    let shutdown = CancellationToken::new();
    (Requestor::start(pair.requestor_config.clone(), shutdown.clone()).await.unwrap(), shutdown)
}

async fn stop(requestor: Requestor, shutdown: CancellationToken) {
    shutdown.cancel();
    tokio::time::timeout(LONG, requestor.ended()).await.unwrap().unwrap();
}

fn problem(refused: Result<impl std::fmt::Debug, Refused>) -> u16 {
    refused.unwrap_err().0.status
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_submitted_reaches_its_outcome() {
    let mut pair = Pair::prepare().await;
    pair.start_provider();
    let (requestor, shutdown) = start(&pair).await;
    let echo = |number: u32| {
        let requestor = requestor.clone();
        async move {
            let content = Content::json(number.to_string());
            let operation = requestor.submit("echo", content.clone(), SubmitOptions::default()).await.unwrap();
            let outcome = requestor.outcome(operation.id, LONG).await.unwrap();
            assert_eq!(outcome, Some(Outcome::Succeeded(content)));
            assert!(requestor.operation(operation.id).await.unwrap().has_ended());
        }
    };
    futures_util::future::join_all((0..100).map(echo)).await;

    let keyed = SubmitOptions { idempotency_key: Some("once".into()), ..SubmitOptions::default() };
    let once = || requestor.submit_and_wait("echo", Content::json("7"), keyed.clone(), LONG);
    let (operation, outcome) = once().await.unwrap();
    assert_eq!(outcome, Some(Outcome::Succeeded(Content::json("7"))));
    let (again, outcome) = once().await.unwrap();
    assert_eq!((again.id, outcome), (operation.id, Some(Outcome::Succeeded(Content::json("7")))));

    let order = json!({"customer": "Ada", "items": [{"sku": "unicorn", "quantity": 1, "unitPriceCents": 999_999}]});
    let order = Content::json(order.to_string());
    let operation = requestor.submit("order.place", order, SubmitOptions::default()).await.unwrap();
    let Some(Outcome::Failed(problem)) = requestor.outcome(operation.id, LONG).await.unwrap() else {
        panic!("there are no unicorns")
    };
    assert_eq!((problem.status, problem.title.as_str()), (409, "Out of stock"));
    pair.stop_provider().await;
    // A reply that is stored and not acknowledged yet would be there again.
    harness::pair::drained(&pair.host).await;
    stop(requestor, shutdown).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_accepted_is_refused_as_over_http() {
    let pair = Pair::prepare().await;
    let (requestor, shutdown) = start(&pair).await;
    let submit = |kind: &'static str, content: Content, options: SubmitOptions| {
        let requestor = requestor.clone();
        async move { requestor.submit(kind, content, options).await }
    };
    let plain = SubmitOptions::default;
    assert_eq!(problem(submit("nope", Content::json("1"), plain()).await), 404);
    assert_eq!(problem(submit("order.place", Content::json("{}"), plain()).await), 422);
    assert_eq!(problem(submit("echo", Content::json("{"), plain()).await), 400);
    let text = Content { content_type: "text/plain".into(), body: "1".into() };
    assert_eq!(problem(submit("echo", text, plain()).await), 415);
    assert_eq!(problem(submit("echo", Content::json(vec![b' '; 2_000_000]), plain()).await), 413);
    let never = SubmitOptions { timeout: Some(Duration::ZERO), ..plain() };
    assert_eq!(problem(submit("echo", Content::json("1"), never).await), 400);
    let urgent = SubmitOptions { priority: Some(10), ..plain() };
    assert_eq!(problem(submit("echo", Content::json("1"), urgent).await), 400);
    let unknown = shared::message::OperationId::new();
    assert_eq!(problem(requestor.outcome(unknown, Duration::ZERO).await), 404);

    let keyed = || SubmitOptions { idempotency_key: Some("a-1".into()), ..plain() };
    let first = submit("echo", Content::json("1"), keyed()).await.unwrap();
    assert_eq!(submit("echo", Content::json("1"), keyed()).await.unwrap().id, first.id);
    assert_eq!(problem(submit("echo", Content::json("2"), keyed()).await), 422);
    let none = requestor.outcome(first.id, Duration::from_millis(100)).await.unwrap();
    assert_eq!(none, None, "nobody serves it");
    assert!(requestor.cancel(first.id).await.unwrap().cancel_requested);

    shutdown.cancel();
    requestor.ended().await.unwrap();
    assert_eq!(problem(submit("echo", Content::json("1"), plain()).await), 503);
    pair.host.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_submitted_before_a_restart_is_carried_out_after_it() {
    let mut pair = Pair::prepare().await;
    let (requestor, shutdown) = start(&pair).await;
    if !harness::postgres::on_postgres() {
        let taken = Requestor::start(pair.requestor_config.clone(), shutdown.clone()).await;
        assert!(format!("{:#}", taken.unwrap_err()).contains("store"), "one process a file");
    }
    let operation = requestor.submit("echo", Content::json("7"), SubmitOptions::default()).await.unwrap();
    stop(requestor, shutdown).await;

    pair.start_provider();
    let (requestor, shutdown) = start(&pair).await;
    let outcome = requestor.outcome(operation.id, LONG).await.unwrap();
    assert_eq!(outcome, Some(Outcome::Succeeded(Content::json("7"))));
    harness::pair::drained(&pair.host).await;
    stop(requestor, shutdown).await;
    // The same records are there for callers over HTTP.
    pair.start_requestor();
    pair.ready().await;
    assert_eq!(pair.result(&operation.id.to_string()).await, 7);
    pair.finish().await;
}
