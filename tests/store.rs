//! A store that cannot take a request never lets it be accepted.

use harness::pair::Pair;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_store_answers_503_and_recovers() {
    let pair = Pair::start().await;
    let file = pair.folder.path().join("requestor.db");
    let other = rusqlite::Connection::open(file).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let response = pair.try_submit("echo", &json!(1)).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    other.execute_batch("rollback").unwrap();
    let id = pair.submit("echo", &json!(2)).await;
    assert_eq!(pair.result(&id).await, 2);
    assert_eq!(pair.get_json("/v1/operations").await["operations"].as_array().unwrap().len(), 1);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_requestor_on_the_same_store_is_refused() {
    let pair = Pair::start().await;
    let mut config = pair.requestor_config.clone();
    config.http.listen.set_port(0);
    let listener = shared::http::bind(config.http.listen).unwrap();
    let refused = requestor::run(config, listener, tokio_util::sync::CancellationToken::new()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("another process uses"), "{refused:#}");
    pair.finish().await;
}
