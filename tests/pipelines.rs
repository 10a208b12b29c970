//! A kind may be a sequence of others.

use crate::stand_in::StandIn;
use harness::pair::Pair;
use provider::{Context, Failure, Provider};
use requestor::config::{KindConfig, PipelineConfig};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const STEPS: [&str; 3] = ["text.upper", "text.double", "text.wrap"];

async fn pair_with_pipeline() -> Pair {
    let mut pair = Pair::prepare().await;
    for kind in STEPS {
        pair.requestor_config.kinds.insert(kind.into(), KindConfig::default());
    }
    let steps = STEPS.map(str::to_owned).to_vec();
    pair.requestor_config.pipelines.insert("text.publish".into(), PipelineConfig { steps, timeout: None });
    pair.requestor_config.retries.pause = std::time::Duration::from_millis(100);
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn results_go_from_step_to_step_and_a_step_that_fails_is_attempted_again_alone() {
    let mut pair = pair_with_pipeline().await;
    let uppers = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&uppers);
    let provider = Provider::builder(pair.provider_config.clone())
        .handle("text.upper", move |text: String, _: Context| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { Ok::<_, Failure>(text.to_uppercase()) }
        })
        .handle("text.double", |text: String, context: Context| async move {
            if context.attempt() == 1 {
                let problem = provider::Problem::new("busy", 503, "Busy", "come back later");
                return Err(Failure::Transient(problem));
            }
            Ok(format!("{text}{text}"))
        })
        .handle("text.wrap", |text: String, _: Context| async move { Ok::<_, Failure>(json!({ "text": text })) })
        .build()
        .unwrap();
    pair.start_provider_with(provider);
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("text.publish", &json!("ab")).await;
    assert_eq!(pair.result(&id).await, json!({"text": "ABAB"}));
    assert_eq!(uppers.load(Ordering::Relaxed), 1, "the first step was not repeated");
    let operation = pair.operation(&id).await;
    assert_eq!((operation["kind"].as_str(), &operation["steps"]), (Some("text.publish"), &json!(STEPS)));
    assert_eq!((operation["position"].as_u64(), operation["stepKind"].as_str()), (Some(3), Some("text.wrap")));
    assert_eq!(operation["percentComplete"], 100.0);
    let events = pair.get_json(&format!("/v1/operations/{id}/events")).await;
    let types: Vec<_> =
        events["events"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    let told: Vec<_> = types.into_iter().filter(|&event| event != "progress").collect();
    assert_eq!(told, ["created", "step-succeeded", "attempt-failed", "step-succeeded", "succeeded"]);
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_has_failed_for_good_is_retried_without_those_before_it() {
    let mut pair = pair_with_pipeline().await;
    let provider = StandIn::join(&pair, &STEPS).await;
    pair.start_requestor();
    pair.ready().await;
    let id = pair.submit("text.publish", &json!("ab")).await;
    let first = provider.request("text.upper").await;
    provider.succeed(&first, r#""AB""#).await;
    let second = provider.request("text.double").await;
    assert_eq!(second.identity().unwrap(), format!("{id}.2"));
    assert_eq!(&second.content.body[..], br#""AB""#, "the result of the step before");
    provider.report(&second, 50.0, None).await;
    let running = harness::eventually("the progress is there", async || {
        let operation = pair.operation(&id).await;
        if operation["percentComplete"] == 50.0 { Ok(operation) } else { Err(operation.to_string()) }
    })
    .await;
    assert_eq!(
        (running["position"].as_u64(), running["step"].as_u64()),
        (Some(2), Some(2)),
        "half of the second of three"
    );
    provider.fail(&second, shared::problem::Problem::new("broken", 500, "Broken", "no")).await;
    assert_eq!(pair.ended(&id).await["status"], "Failed");
    // A failure of the first step that comes only now says nothing of the second.
    provider.fail(&first, shared::problem::Problem::new("stale", 500, "Stale", "no")).await;

    let response = pair.request("POST", &format!("/v1/operations/{id}/retry")).send().await.unwrap();
    assert_eq!(response.status(), 202);
    let again = provider.request("text.double").await;
    assert_eq!((again.identity(), again.attempt), (second.identity(), 2));
    assert_eq!(again.content, second.content);
    // A requestor that is restarted between two steps goes on with the next.
    pair.stop_requestor().await;
    provider.succeed(&again, r#""ABAB""#).await;
    pair.start_requestor();
    let third = provider.request("text.wrap").await;
    provider.succeed(&third, "1").await;
    assert_eq!(pair.result(&id).await, 1);
    assert_eq!(provider.waiting("text.upper").await, 0);
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipelines_request_must_fit_its_first_step() {
    let mut pair = Pair::prepare().await;
    let steps = vec!["order.place".into(), "echo".into()];
    pair.requestor_config.pipelines.insert("order.echo".into(), PipelineConfig { steps, timeout: None });
    pair.start_requestor();
    pair.ready().await;
    let response = pair.try_submit("order.echo", &json!({})).await.unwrap();
    assert_eq!(response.status(), 422);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], "urn:problem-type:arr:invalid-request");
    pair.finish().await;
}
