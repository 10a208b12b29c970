//! Callers are told when to ask again: see `requestor::pace` for how it is estimated and what that is worth.

use harness::eventually;
use harness::pair::Pair;
use provider::{Context, Failure, Provider};
use reqwest::Response;
use serde_json::{Value, json};
use std::time::Duration;

const KIND: &str = "nap.take";
/// How long each takes.
const NAP: Duration = Duration::from_secs(3);

fn seconds(response: &Response) -> u64 {
    response.headers()["retry-after"].to_str().unwrap().parse().unwrap()
}

async fn accepted(pair: &Pair) -> (String, u64) {
    let response = pair.try_submit(KIND, &json!(1)).await.unwrap();
    let seconds = seconds(&response);
    (response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned(), seconds)
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_told_what_the_kind_took_also_after_a_restart_and_who_is_ahead() {
    let mut pair = Pair::prepare().await;
    pair.provider_config.concurrency = 1;
    let nap = |_: Value, _: Context| async {
        tokio::time::sleep(NAP).await;
        Ok::<_, Failure>(json!("rested"))
    };
    let provider = Provider::builder(pair.provider_config.clone()).handle(KIND, nap).build().unwrap();
    pair.start_provider_with(provider);
    pair.requestor_config.kinds.insert(KIND.into(), Default::default());
    pair.start_requestor();
    pair.ready().await;
    let (first, told) = accepted(&pair).await;
    assert_eq!(told, 1, "nothing is known of the kind");
    pair.result(&first).await;
    pair.stop_requestor().await;
    pair.start_requestor();
    pair.ready().await;
    let (next, told) = accepted(&pair).await;
    assert!((3..=5).contains(&told), "{told}: it took 3 s, and perhaps a little longer on a busy machine");
    let mut queue = vec![next];
    for _ in 0..3 {
        queue.push(accepted(&pair).await.0);
    }
    let last = format!("/v1/operations/{}", queue[3]);
    eventually("the last is told that others are ahead", async || {
        let told = seconds(&pair.get(&last).await);
        if told >= 7 { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    for id in &queue {
        assert_eq!(pair.result(id).await, "rested");
    }
    pair.finish().await;
}
