//! `canceled` is said only when it is certain that there was no effect and will be none.

use harness::asker::{Asker, request};
use harness::pair::Pair;
use provider::{Context, Failure, Provider};
use serde_json::{Value, json};
use shared::message::{Outcome, Reply};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::Semaphore;

/// What the handler of the test has done, and where it waits.
#[derive(Default)]
struct Watched {
    begun: AtomicU32,
    effects: AtomicU32,
    stopped: AtomicBool,
    intend_early: AtomicBool,
    may_go_on: Gate,
    waits: Gate,
}

struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Gate {
    fn open(&self) {
        self.0.add_permits(1);
    }

    async fn pass(&self) {
        self.0.acquire().await.unwrap().forget();
    }
}

/// Has an effect when it may go on, and the right to it before or after that.
async fn work(watched: Arc<Watched>, context: Context) -> Result<Value, Failure> {
    watched.begun.fetch_add(1, Ordering::SeqCst);
    let early = watched.intend_early.load(Ordering::SeqCst);
    if early {
        context.intent().await?;
    }
    watched.waits.open();
    tokio::select! {
        () = watched.may_go_on.pass() => {}
        () = context.cancelled().cancelled() => watched.stopped.store(true, Ordering::SeqCst),
    }
    if !early {
        context.intent().await?;
    }
    watched.effects.fetch_add(1, Ordering::SeqCst);
    Ok(json!("done"))
}

fn provider(pair: &Pair, watched: &Arc<Watched>) -> Provider {
    let (external, pure) = (Arc::clone(watched), Arc::clone(watched));
    Provider::builder(pair.provider_config.clone())
        .handle_external("external", move |_: Value, context| work(Arc::clone(&external), context))
        .handle("pure", move |_: Value, context: Context| {
            let watched = Arc::clone(&pure);
            async move {
                watched.begun.fetch_add(1, Ordering::SeqCst);
                watched.waits.open();
                context.cancelled().cancelled().await;
                watched.stopped.store(true, Ordering::SeqCst);
                Ok::<_, Failure>(())
            }
        })
        .handle_transactional("transactional", |_: Value, _| Ok(json!("done")))
        .handle_transactional_on_postgres("transactional", |_: Value, _| Box::pin(async { Ok(json!("done")) }))
        .build()
        .unwrap()
}

const KINDS: [&str; 3] = ["external", "pure", "transactional"];

fn canceled(reply: &Reply) -> bool {
    matches!(&reply.outcome, Outcome::Failed(problem) if problem.is("canceled")) && !reply.retryable
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_starts_after_the_cancel_does_not_begin() {
    let mut pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &KINDS).await;
    let requests = KINDS.map(|kind| request(kind, &json!({})));
    for request in &requests {
        asker.send(request).await;
        asker.cancel(request).await;
    }
    let watched = Arc::<Watched>::default();
    pair.start_provider_with(provider(&pair, &watched));
    // One answer to each cancel, one to each request.
    for _ in 0..6 {
        let (_, reply) = asker.any_reply().await;
        assert!(canceled(&reply), "{reply:?}");
    }
    assert_eq!(watched.begun.load(Ordering::SeqCst), 0);
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_and_had_no_effect_is_stopped() {
    for kind in ["external", "pure"] {
        let mut pair = Pair::prepare().await;
        let mut asker = Asker::start(&pair.host, &KINDS).await;
        let watched = Arc::<Watched>::default();
        pair.start_provider_with(provider(&pair, &watched));
        let request = request(kind, &json!({}));
        asker.send(&request).await;
        watched.waits.pass().await;
        asker.cancel(&request).await;
        // The answers to the cancel and to the request, and to a copy of the request.
        for _ in 0..2 {
            let reply = asker.reply(&request).await;
            assert!(canceled(&reply), "{kind}: {reply:?}");
        }
        assert!(watched.stopped.load(Ordering::SeqCst), "{kind}");
        asker.send(&request).await;
        assert!(canceled(&asker.reply(&request).await), "{kind}");
        assert_eq!(watched.begun.load(Ordering::SeqCst), 1, "{kind}");
        assert_eq!(watched.effects.load(Ordering::SeqCst), 0, "{kind}");
        asker.finish().await;
        pair.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_intent_only_the_outcome_is_said() {
    let mut pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &KINDS).await;
    let watched = Arc::<Watched>::default();
    watched.intend_early.store(true, Ordering::SeqCst);
    pair.start_provider_with(provider(&pair, &watched));
    let (wanted, marker) = (request("external", &json!({})), request("external", &json!({})));
    asker.send(&wanted).await;
    watched.waits.pass().await;
    asker.cancel(&wanted).await;
    // The ledger decides in order: when this one is answered, the one before it was decided.
    asker.cancel(&marker).await;
    assert!(canceled(&asker.reply(&marker).await));
    watched.may_go_on.open();
    let done = asker.reply(&wanted).await;
    assert!(matches!(done.outcome, Outcome::Succeeded(_)), "{done:?}");
    assert!(!watched.stopped.load(Ordering::SeqCst));
    asker.cancel(&wanted).await;
    assert_eq!(asker.reply(&wanted).await, done, "a cancel after the end is answered with the outcome");
    assert_eq!(watched.effects.load(Ordering::SeqCst), 1);
    asker.finish().await;
    pair.finish().await;
}
