//! What any provider must do, in whatever language it is written: `docs/protocol.md`, "What a provider does".

use harness::asker::{Asker, request};
use harness::broker::{Broker, VirtualHost};
use harness::process::{Process, Service};
use harness::python::python;
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::ShortString;
use serde_json::{Value, json};
use shared::message::{Message, OperationId, Outcome, Reply, Request};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A provider to be tested.
trait Provider {
    /// A kind whose effect is a row in a table.
    const KIND: &'static str;
    /// The database, and the table.
    const EFFECTS: (&'static str, &'static str);
    /// A request of that kind.
    fn payload() -> Value;
    /// Starts it with its files in `folder`.
    async fn start(host: &VirtualHost, folder: &Path) -> Process;
}

/// Ours.
struct Rust;

impl Provider for Rust {
    const KIND: &'static str = "order.place";
    const EFFECTS: (&'static str, &'static str) = ("provider.db", "orders");

    fn payload() -> Value {
        json!({"customer": "Ada", "items": [{"sku": "mouse", "quantity": 1, "unitPriceCents": 1999}]})
    }

    async fn start(host: &VirtualHost, folder: &Path) -> Process {
        Service::provider(&host.url, folder).start().await
    }
}

/// `docs/examples/provider.py`.
struct Python;

impl Provider for Python {
    const KIND: &'static str = "note.take";
    const EFFECTS: (&'static str, &'static str) = ("notes.db", "notes");

    fn payload() -> Value {
        json!({"text": "water the plants"})
    }

    async fn start(host: &VirtualHost, folder: &Path) -> Process {
        let python = tokio::task::spawn_blocking(python).await.unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/provider.py");
        let mut command = Command::new(python);
        command.arg(script).arg(&host.url).arg(folder.join("notes.db")).stdin(Stdio::null());
        Process::spawn(&mut command)
    }
}

/// A provider at work, and the requestor that the test plays.
struct Bench<P> {
    host: VirtualHost,
    folder: TempDir,
    provider: Process,
    asker: Asker,
    of: std::marker::PhantomData<P>,
}

impl<P: Provider> Bench<P> {
    async fn start() -> Self {
        let host = Broker::shared().await.virtual_host().await;
        let folder = tempfile::tempdir().unwrap();
        let asker = Asker::start(&host, &[P::KIND]).await;
        let provider = P::start(&host, folder.path()).await;
        Self { host, folder, provider, asker, of: std::marker::PhantomData }
    }

    fn request() -> Request {
        request(P::KIND, &P::payload())
    }

    fn effects(&self) -> i64 {
        let (database, table) = P::EFFECTS;
        let path: PathBuf = self.folder.path().join(database);
        let database = rusqlite::Connection::open(path).unwrap();
        database.query_row(&format!("select count(*) from {table}"), [], |row| row.get(0)).unwrap()
    }

    /// Checks that the provider is alive, and done with everything that came before.
    async fn still_serves(&mut self) {
        let request = Self::request();
        self.asker.send(&request).await;
        let reply = self.asker.reply(&request).await;
        assert!(matches!(reply.outcome, Outcome::Succeeded(_)), "{reply:?}");
    }

    async fn finish(mut self) {
        self.provider.kill();
        self.asker.finish().await;
        self.host.delete().await;
    }
}

/// The message of a request, to be spoilt.
fn message(request: &Request) -> Message {
    request.to_message(request.operation.unwrap(), "tester", Timestamp::now()).unwrap()
}

fn without_expiration(properties: &BasicProperties) -> BasicProperties {
    let text = |value: &Option<ShortString>| value.clone().unwrap();
    BasicProperties::default()
        .with_type(text(properties.kind()))
        .with_correlation_id(text(properties.correlation_id()))
        .with_message_id(text(properties.message_id()))
        .with_reply_to(text(properties.reply_to()))
        .with_headers(properties.headers().clone().unwrap())
}

fn problem(reply: Reply) -> String {
    match reply.outcome {
        Outcome::Failed(problem) => problem.type_uri,
        Outcome::Succeeded(content) => panic!("no failure but {content:?}"),
    }
}

async fn a_request_is_answered_with_the_right_properties<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let request = Request { attempt: 3, step: 2, ..Bench::<P>::request() };
    bench.asker.send(&request).await;
    let mut delivery = bench.asker.delivery().await;
    let properties = delivery.properties.clone();
    assert_eq!(delivery.exchange.as_str(), "arr.reply");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "arr.reply");
    assert_eq!(properties.correlation_id().as_ref().unwrap().as_str(), request.correlation_id);
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(*properties.delivery_mode(), Some(2), "persistent");
    assert!(properties.message_id().is_some() && properties.timestamp().is_some());
    let (_, reply) = Reply::from_delivery(&mut delivery).unwrap();
    assert_eq!((reply.attempt, reply.step, reply.retryable), (3, 2, false));
    let Outcome::Succeeded(content) = reply.outcome else { panic!("{:?}", reply.outcome) };
    assert!(serde_json::from_slice::<Value>(&content.body).unwrap().is_object());
    assert_eq!(bench.effects(), 1);
    bench.finish().await;
}

async fn a_repeat_has_the_same_answer_and_no_second_effect<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let request = Bench::<P>::request();
    let mut answers = Vec::new();
    for attempt in [1, 1, 2] {
        let request = Request { attempt, ..request.clone() };
        answers.push(bench.asker.again(&request).await.outcome);
    }
    bench.provider.kill();
    bench.provider = P::start(&bench.host, bench.folder.path()).await;
    bench.asker.send(&request).await;
    answers.push(bench.asker.reply(&request).await.outcome);
    assert!(matches!(answers[0], Outcome::Succeeded(_)), "{answers:?}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(bench.effects(), 1);
    // Another step of the same operation is another request.
    let step = Request { step: 2, ..request };
    bench.asker.send(&step).await;
    assert!(matches!(bench.asker.reply(&step).await.outcome, Outcome::Succeeded(_)));
    assert_eq!(bench.effects(), 2);
    bench.finish().await;
}

async fn what_is_no_request_is_answered_with_an_error<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let spoil: [fn(&mut Message); 4] = [
        |message| message.properties = message.properties.clone().with_type("arr.nonsense".into()),
        |message| message.properties = message.properties.clone().with_correlation_id("not-a-uuid".into()),
        |message| message.body = "{".into(),
        |message| message.body = "[]".into(),
    ];
    for spoil in spoil {
        let mut message = message(&Bench::<P>::request());
        spoil(&mut message);
        bench.asker.publish(&message).await;
        let delivery = bench.asker.delivery().await;
        assert_eq!(delivery.properties.kind().as_ref().unwrap().as_str(), "arr.error");
        assert_eq!(delivery.properties.correlation_id(), message.properties.correlation_id());
        assert_eq!(delivery.properties.content_type().as_ref().unwrap().as_str(), "application/problem+json");
        let problem: Value = serde_json::from_slice(&delivery.data).unwrap();
        assert!((400..500).contains(&problem["status"].as_u64().unwrap()), "{problem}");
    }
    // Nobody can be answered here, and nothing may be done.
    for address in ["", "arr.reply.#", "someone.else"] {
        let mut message = message(&Bench::<P>::request());
        message.properties = message.properties.with_reply_to(address.into());
        bench.asker.publish(&message).await;
    }
    bench.still_serves().await;
    assert_eq!(bench.effects(), 1);
    bench.finish().await;
}

/// Its requestor group has been dismantled, say.
async fn a_reply_that_no_queue_takes_holds_up_no_other<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let mut message = message(&Bench::<P>::request());
    message.properties = message.properties.with_reply_to("arr.reply.nobody".into());
    bench.asker.publish(&message).await;
    bench.still_serves().await;
    bench.finish().await;
}

async fn a_request_past_its_deadline_is_not_carried_out<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let deadline = Timestamp::now() - SignedDuration::from_mins(10);
    let request = Request { deadline: Some(deadline), ..Bench::<P>::request() };
    let mut message = message(&request);
    // Without an expiration, so that the broker is not the one that drops it.
    message.properties = without_expiration(&message.properties);
    bench.asker.publish(&message).await;
    let reply = bench.asker.reply(&request).await;
    assert_eq!(problem(reply), "urn:problem-type:arr:deadline-exceeded");
    bench.still_serves().await;
    assert_eq!(bench.effects(), 1);
    bench.finish().await;
}

/// A hundred requests, and a kill -9 for every twenty that are answered.
async fn kills_lose_nothing_and_repeat_no_effect<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let requests: Vec<_> = (0..100).map(|_| Bench::<P>::request()).collect();
    for request in &requests {
        bench.asker.send(request).await;
    }
    let mut answers: BTreeMap<OperationId, Outcome> = BTreeMap::new();
    let mut kills = 0;
    while answers.len() < requests.len() {
        let (operation, reply) = bench.asker.any_reply().await;
        assert!(matches!(reply.outcome, Outcome::Succeeded(_)), "{reply:?}");
        // A reply whose request was not settled in time comes twice, and says the same.
        let answer = answers.entry(operation).or_insert_with(|| reply.outcome.clone());
        assert_eq!(*answer, reply.outcome);
        if kills < answers.len() / 20 && kills < 4 {
            kills += 1;
            bench.provider.kill();
            bench.provider = P::start(&bench.host, bench.folder.path()).await;
        }
    }
    assert_eq!(kills, 4);
    assert_eq!(bench.effects(), 100);
    bench.finish().await;
}

/// Full level: the cancel overtakes its request.
async fn what_is_canceled_first_has_no_effect<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let request = Bench::<P>::request();
    for _ in 0..2 {
        bench.asker.cancel(&request).await;
        assert_eq!(problem(bench.asker.reply(&request).await), "urn:problem-type:arr:canceled");
    }
    bench.asker.send(&request).await;
    assert_eq!(problem(bench.asker.reply(&request).await), "urn:problem-type:arr:canceled");
    bench.still_serves().await;
    assert_eq!(bench.effects(), 1);
    bench.finish().await;
}

/// Full level: the cancel comes too late, and is answered with what happened.
async fn what_is_done_is_not_canceled<P: Provider>() {
    let mut bench = Bench::<P>::start().await;
    let request = Bench::<P>::request();
    bench.asker.send(&request).await;
    let done = bench.asker.reply(&request).await.outcome;
    bench.asker.cancel(&request).await;
    assert_eq!(bench.asker.reply(&request).await.outcome, done);
    assert_eq!(bench.effects(), 1);
    bench.finish().await;
}

macro_rules! conforms {
    ($module:ident, $provider:ident: $($test:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test::<super::$provider>().await;
                }
            )*
        }
    };
}

conforms!(rust, Rust:
    a_request_is_answered_with_the_right_properties
    a_repeat_has_the_same_answer_and_no_second_effect
    what_is_no_request_is_answered_with_an_error
    a_reply_that_no_queue_takes_holds_up_no_other
    a_request_past_its_deadline_is_not_carried_out
    kills_lose_nothing_and_repeat_no_effect
    what_is_canceled_first_has_no_effect
    what_is_done_is_not_canceled
);

conforms!(python, Python:
    a_request_is_answered_with_the_right_properties
    a_repeat_has_the_same_answer_and_no_second_effect
    what_is_no_request_is_answered_with_an_error
    a_reply_that_no_queue_takes_holds_up_no_other
    a_request_past_its_deadline_is_not_carried_out
    kills_lose_nothing_and_repeat_no_effect
);
