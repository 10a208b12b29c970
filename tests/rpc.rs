//! Calls without a record: each ends once, with its own reply or with an error that says what is known.

use futures_util::FutureExt;
use harness::broker::Broker;
use harness::caller::Caller;
use harness::pair::Pair;
use harness::proxy::{Ending, Proxy};
use harness::services::{Services, analysis};
use provider::{Context, Failure, Provider};
use requestor::Content;
use requestor::rpc::{Client, Config, Error};
use serde_json::Value;
use shared::config::SecretUrl;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

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

/// A kind whose calls wait until they are let go, and that says when they have begun.
#[derive(Clone)]
struct Gate {
    begun: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    fn closed() -> Self {
        let none = || Arc::new(Semaphore::new(0));
        Self { begun: none(), open: none() }
    }

    async fn pass(self, content: Content, context: Context) -> Result<Content, Failure> {
        self.begun.add_permits(1);
        context.progress(50.0, "nobody hears this");
        tokio::select! {
            permit = self.open.acquire() => permit.unwrap().forget(),
            () = context.cancelled().cancelled() => return Err(Failure::stopped("cancelled")),
        }
        Ok(content)
    }

    /// Waits until one more call has begun.
    async fn begun(&self) {
        self.begun.acquire().await.unwrap().forget();
    }

    /// A provider of `gate`, `panic` and `echo`.
    fn provider(&self, pair: &Pair) -> Provider {
        let gate = self.clone();
        Provider::builder(pair.provider_config.clone())
            .handle_raw("gate", move |content, context| gate.clone().pass(content, context))
            .handle_raw("panic", |_, _| async { panic!("as the test asks for") })
            .handle_raw("echo", |content, _| async { Ok(content) })
            .build()
            .unwrap()
    }
}

async fn gated() -> (Pair, Client, Gate) {
    let (mut pair, client) = prepare().await;
    pair.provider_config.concurrency = 2;
    let gate = Gate::closed();
    pair.start_provider_with(gate.provider(&pair));
    taken(&client, "echo").await;
    (pair, client, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_call_here_and_at_its_provider() {
    let (pair, client, gate) = gated().await;
    for _ in 0..3 {
        // With two slots, the third would not begin if the first two still ran.
        let late = client.call("gate", Content::json("1"), Duration::from_millis(300));
        let (late, ()) = tokio::join!(late, gate.begun());
        assert_eq!(late, Err(Error::Deadline));
        assert!(Error::Deadline.may_have_run());
        assert_eq!(client.in_flight(), 0);
    }
    client.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_leaves_nothing_behind_and_its_reply_reaches_nobody_else() {
    let (pair, client, gate) = gated().await;
    {
        let mut dropped = Box::pin(client.call("gate", Content::json("1"), LONG));
        assert!((&mut dropped).now_or_never().is_none());
        gate.begun().await;
        assert_eq!(client.in_flight(), 1);
    }
    assert_eq!(client.in_flight(), 0);
    // It takes the place of the first, whose reply comes now.
    let next = client.call("gate", Content::json("2"), LONG);
    let let_go = async {
        gate.begun().await;
        gate.open.add_permits(2);
    };
    let (next, ()) = tokio::join!(next, let_go);
    assert_eq!(next.unwrap().body, "2");
    client.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_calls_are_under_way_than_there_may_be() {
    let (pair, other, gate) = gated().await;
    other.close().await;
    let mut config = Config::from(&pair.requestor_config);
    config.in_flight_max = 1;
    let client = Client::connect(config).await.unwrap();
    let mut first = Box::pin(client.call("gate", Content::json("1"), LONG));
    assert!((&mut first).now_or_never().is_none());
    gate.begun().await;
    let refused = client.call("echo", Content::json("2"), Duration::from_millis(50)).await;
    assert_eq!(refused, Err(Error::Busy));
    assert!(!Error::Busy.may_have_run());
    let mut waits = Box::pin(client.call("echo", Content::json("3"), LONG));
    assert!((&mut waits).now_or_never().is_none());
    gate.open.add_permits(1);
    assert_eq!(first.await.unwrap().body, "1");
    assert_eq!(waits.await.unwrap().body, "3");
    client.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_fails_its_call_alone() {
    let (pair, client, _) = gated().await;
    for _ in 0..3 {
        let Err(Error::Failed(problem)) = client.call("panic", Content::json("1"), LONG).await else {
            panic!("it has panicked")
        };
        assert_eq!(problem.status, 500);
    }
    assert_eq!(client.call("echo", Content::json("2"), LONG).await.unwrap().body, "2");
    client.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_stops_answers_what_it_has_begun() {
    let (mut pair, client, gate) = gated().await;
    let call = client.call("gate", Content::json("1"), LONG);
    let stop = async {
        gate.begun().await;
        let stopped = async {
            // Let go only when the provider has been told to stop.
            tokio::task::yield_now().await;
            gate.open.add_permits(1);
        };
        tokio::join!(pair.stop_provider(), stopped);
    };
    let (answered, ()) = tokio::join!(call, stop);
    assert_eq!(answered.unwrap().body, "1");
    client.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_interrupts_what_is_under_way_and_what_comes_later_waits_for_the_connection() {
    let (pair, direct, gate) = gated().await;
    direct.close().await;
    let mut relay = Proxy::closed(Broker::shared().await.address());
    relay.open().await;
    let mut config = Config::from(&pair.requestor_config);
    config.broker.url = SecretUrl::new(relay.url(&pair.host.url));
    let client = Client::connect(config).await.unwrap();
    for ending in [Ending::Reset, Ending::Finish] {
        let call = client.call("gate", Content::json("1"), LONG);
        let cut = async {
            gate.begun().await;
            relay.end_all(ending);
        };
        let (interrupted, ()) = tokio::join!(call, cut);
        let error = interrupted.unwrap_err();
        assert!(matches!(error, Error::Interrupted(_)) && error.may_have_run(), "{error}");
        gate.open.add_permits(1);
        assert_eq!(client.call("echo", Content::json("2"), LONG).await.unwrap().body, "2");
    }
    relay.cut().await;
    harness::eventually("the loss is noticed", async || {
        match client.call("echo", Content::json("3"), Duration::from_millis(100)).await {
            Err(error @ Error::NotConnected(_)) if !error.may_have_run() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let (answered, ()) = tokio::join!(client.call("echo", Content::json("4"), LONG), relay.open());
    assert_eq!(answered.unwrap().body, "4");
    client.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_provider_is_killed_is_answered_by_the_next() {
    let mut stack = Services::prepare("").await;
    stack.provider = stack.provider.with("PROVIDER_CALLS__PREFETCH", "16");
    let mut config = requestor::config::Config::load(None).unwrap();
    config.broker.url = SecretUrl::new(&stack.host.url);
    let client = connect(&config).await;
    let mut provider = stack.provider.start().await;
    taken(&client, "echo").await;
    let analysis = Content::json(analysis().to_string());
    let call = client.call("risk.analyze", analysis, LONG);
    let health = Caller::new(format!("http://127.0.0.1:{}", stack.provider.port()));
    let kill = async {
        harness::eventually("the call has begun", async || {
            let begun = health.metric("arr_calls_total", "risk.analyze").await;
            if begun == 1.0 { Ok(()) } else { Err(begun.to_string()) }
        })
        .await;
        provider.kill();
        stack.provider.start().await
    };
    let (answered, mut provider) = tokio::join!(call, kill);
    assert_eq!(answered.unwrap().content_type, "application/json");
    client.close().await;
    assert!(provider.terminate().await.success());
    stack.finish().await;
}

/// Ten thousand calls while both connections are cut again and again.
#[tokio::test(flavor = "multi_thread")]
async fn under_reconnects_each_call_ends_once_with_its_own_reply_or_an_error() {
    const CALLS: u32 = 10_000;
    let (mut pair, direct) = prepare().await;
    let address = Broker::shared().await.address();
    let (mut asking, mut answering) = (Proxy::closed(address.clone()), Proxy::closed(address));
    asking.open().await;
    answering.open().await;
    pair.provider_config.broker.url = SecretUrl::new(answering.url(&pair.host.url));
    pair.start_provider();
    taken(&direct, "echo").await;
    let mut config = Config::from(&pair.requestor_config);
    config.broker.url = SecretUrl::new(asking.url(&pair.host.url));
    let client = Client::connect(config).await.unwrap();

    let (next, right) = (AtomicU32::new(0), AtomicU32::new(0));
    let caller = || async {
        let mut errors = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= CALLS {
                return errors;
            }
            let body = format!("{{\"number\":{number}}}");
            match client.call("echo", Content::json(body.clone()), Duration::from_secs(2)).await {
                Ok(reply) => {
                    assert_eq!(reply.body, body);
                    right.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => errors.push(error),
            }
        }
    };
    let callers = futures_util::future::join_all((0..64).map(|_| caller()));
    let cuts = async {
        for round in 1_u32..=20 {
            // At equal parts of the way, so that each cut meets calls.
            while next.load(Ordering::Relaxed) < round * (CALLS / 21) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let ending = if round % 4 < 2 { Ending::Reset } else { Ending::Finish };
            if round % 2 == 0 { asking.end_all(ending) } else { answering.end_all(ending) }
        }
    };
    let (errors, ()) = tokio::join!(callers, cuts);
    let errors: Vec<_> = errors.into_iter().flatten().collect();
    let interrupted = errors.iter().filter(|error| matches!(error, Error::Interrupted(_))).count();
    assert_eq!(right.into_inner() as usize + errors.len(), CALLS as usize);
    assert!(errors.len() < CALLS as usize / 4, "{} errors, such as {:?}", errors.len(), &errors[..3]);
    assert!(interrupted >= 5, "the cuts met {interrupted} calls only");
    let known = |error: &Error| matches!(error, Error::Interrupted(_) | Error::Deadline | Error::NotConnected(_));
    assert!(errors.iter().all(known), "{errors:?}");
    assert_eq!(client.in_flight(), 0);
    taken(&client, "echo").await;
    client.close().await;
    direct.close().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cannot_connect_says_why() {
    let mut pair = Pair::prepare().await;
    pair.requestor_config.broker.connect_timeout = Duration::from_secs(3);
    let wrong = pair.host.url.replacen(":guest@", ":wrong@", 1);
    for (url, why) in [(wrong, "ACCESS_REFUSED"), ("amqp://127.0.0.1:1".into(), "refused")] {
        pair.requestor_config.broker.url = SecretUrl::new(url);
        let error = Client::connect(Config::from(&pair.requestor_config)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    pair.host.delete().await;
}

/// With the rights of `config/rabbitmq/definitions.json`, and one more that its README names.
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_taken_when_their_replies_may_be_sent_and_not_before() {
    let mut pair = Pair::prepare().await;
    let definitions = include_str!("../config/rabbitmq/definitions.json");
    let definitions: Value = serde_json::from_str(definitions).unwrap();
    let rights = |role: &str| {
        let all = definitions["permissions"].as_array().unwrap();
        all.iter().find(|one| one["user"] == role).unwrap().clone()
    };
    let user = |role: &str| format!("{role}-{}", pair.host.name);
    let permit = async |role: &str, rights: &Value| {
        pair.host.call("PUT", &format!("permissions/{}/{}", pair.host.name, user(role)), &rights.to_string()).await;
    };
    let mut urls = Vec::new();
    for role in ["requestor", "provider"] {
        urls.push(SecretUrl::new(pair.host.add_user(&user(role)).await));
        permit(role, &rights(role)).await;
    }
    let mut config = pair.provider_config.clone();
    (config.broker.url, config.broker.reconnect_max) = (urls.remove(1), Duration::from_millis(500));
    config.calls.prefetch = 256;
    let shutdown = CancellationToken::new();
    let provider = Provider::built_in(config).unwrap().run(shutdown.clone());
    pair.requestor_config.broker.url = urls.remove(0);
    let client = connect(&pair.requestor_config).await;
    let asked = async {
        harness::eventually("requests are taken", async || {
            let queues = pair.host.queues().await;
            if queues.iter().any(|name| name == "arr.request.echo") { Ok(()) } else { Err(format!("{queues:?}")) }
        })
        .await;
        let refused = client.call("echo", Content::json("1"), LONG).await;
        assert_eq!(refused, Err(Error::NoProvider("echo".into())));
        let mut more = rights("provider");
        more["write"] = format!("{}|^amq\\.default$", more["write"].as_str().unwrap()).into();
        permit("provider", &more).await;
        taken(&client, "echo").await;
        shutdown.cancel();
    };
    let (provided, ()) = tokio::join!(provider, asked);
    provided.unwrap();
    client.close().await;
    for role in ["requestor", "provider"] {
        pair.host.delete_user(&user(role)).await;
    }
    pair.finish().await;
}
