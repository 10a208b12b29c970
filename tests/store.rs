//! A store that cannot take a request never lets it be accepted.

use harness::pair::{Pair, sqlite};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_store_answers_503_and_recovers() {
    let pair = Pair::start().await;
    let locked = pair.store.lock().await;
    let response = pair.try_submit("echo", &json!(1)).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    locked.release().await;
    let id = pair.submit("echo", &json!(2)).await;
    assert_eq!(pair.result(&id).await, 2);
    assert_eq!(pair.get_json("/v1/operations").await["operations"].as_array().unwrap().len(), 1);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_requestor_on_the_same_file_is_refused() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.store.url = sqlite(pair.folder.path(), "alone");
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let mut config = pair.requestor_config.clone();
    config.http.listen.set_port(0);
    let listener = shared::http::bind(config.http.listen).unwrap();
    let refused = requestor::run(config, listener, tokio_util::sync::CancellationToken::new()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("another process uses"), "{refused:#}");
    pair.finish().await;
}
