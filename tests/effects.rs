//! An effect in another system happens once for each key, whatever becomes of the provider.

use harness::asker::{Asker, request};
use harness::eventually;
use harness::pair::{Pair, Service as ServiceOfTest};
use harness::postgres::{Database, Postgres};
use harness::process::Service;
use provider::{Context, Failure, Problem, Provider};
use serde_json::{Value, json};
use shared::message::{Outcome, Reply};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// A payment service that notes the key of each charge, and answers as it is told, or 200.
struct Bank {
    url: String,
    keys: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<Vec<&'static str>>>,
    _open: DropGuard,
}

impl Bank {
    async fn open(answers: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/charges", listener.local_addr().unwrap());
        let (keys, answers) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(Mutex::new(answers.to_vec())));
        let open = CancellationToken::new();
        let (closed, noted, script) = (open.clone(), Arc::clone(&keys), Arc::clone(&answers));
        TaskTracker::new().spawn(async move {
            while let Some(Ok((stream, _))) = closed.run_until_cancelled(listener.accept()).await {
                serve(stream, &noted, &script).await.unwrap();
            }
        });
        Self { url, keys, answers, _open: open.drop_guard() }
    }

    fn keys(&self) -> Vec<String> {
        self.keys.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, keys: &Mutex<Vec<String>>, answers: &Mutex<Vec<&str>>) -> std::io::Result<()> {
    let (mut stream, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(": ") {
            Some((name, key)) if name.eq_ignore_ascii_case("idempotency-key") => {
                keys.lock().unwrap().push(key.to_owned());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
            _ if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    stream.read_exact(&mut vec![0; length]).await?;
    let answer = answers.lock().unwrap().pop().unwrap_or("200 OK\r\n");
    let text = format!("HTTP/1.1 {answer}connection: close\r\ncontent-length: 2\r\n\r\n{{}}");
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

fn charge() -> Value {
    json!({"amountCents": 1999, "customer": "Ada"})
}

fn problem(reply: &Reply) -> &Problem {
    match &reply.outcome {
        Outcome::Failed(problem) => problem,
        Outcome::Succeeded(content) => panic!("no failure: {content:?}"),
    }
}

fn succeeded(reply: &Reply) -> bool {
    matches!(reply.outcome, Outcome::Succeeded(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_answered_from_the_ledger() {
    let mut pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &["mail.send"]).await;
    let runs = Arc::new(AtomicU32::new(0));
    let sent = Arc::clone(&runs);
    let send = move |_: Value, context: Context| {
        let sent = Arc::clone(&sent);
        async move {
            let key = context.intent().await?;
            Ok::<_, Failure>(json!({"key": key, "number": sent.fetch_add(1, Ordering::SeqCst)}))
        }
    };
    let provider = Provider::builder(pair.provider_config.clone()).handle_external("mail.send", send).build().unwrap();
    pair.start_provider_with(provider);
    let mut request = request("mail.send", &json!({}));
    asker.send(&request).await;
    let first = asker.reply(&request).await;
    assert!(succeeded(&first), "{first:?}");
    request.attempt = 2;
    asker.send(&request).await;
    assert_eq!(asker.reply(&request).await, first);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_killed_after_the_effect_repeats_it_with_the_same_key() {
    let pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &["payment.charge"]).await;
    let bank = Bank::open(&[]).await;
    let service = Service::provider(&pair.host.url, pair.folder.path())
        .with("PROVIDER_KINDS", "payment.charge")
        .with("PROVIDER_LEDGER__URL", pair.ledger.url().expose())
        .with("PROVIDER_PROGRESS__HEARTBEAT", "500ms")
        .with("PROVIDER_PROGRESS__INTERVAL", "500ms")
        .with("PROVIDER_LEASE", "2s")
        .with("PROVIDER_PAYMENTS__URL", &bank.url);
    let request = request("payment.charge", &charge());
    asker.send(&request).await;
    let killed = service.clone().with("FAILPOINTS", "provider.effect=return").spawn().ended().await;
    assert!(!killed.success());
    assert_eq!(bank.keys(), std::slice::from_ref(&request.correlation_id), "it was killed after the charge");
    let mut provider = service.start().await;
    assert!(succeeded(&asker.reply(&request).await));
    assert_eq!(bank.keys(), [request.correlation_id.clone(), request.correlation_id.clone()]);
    // And what is recorded now is not charged a third time.
    assert!(succeeded(&asker.again(&request).await));
    assert_eq!(bank.keys().len(), 2);
    assert!(provider.terminate().await.success());
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_keep_the_key_and_pause_as_the_service_asks() {
    let mut pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &["payment.charge"]).await;
    // Taken from the end.
    let bank = Bank::open(&["402 Payment Required\r\n", "503 Busy\r\nretry-after: 7\r\n"]).await;
    pair.provider_config.payments.url = bank.url.clone();
    pair.start_provider();
    let mut request = request("payment.charge", &charge());
    asker.send(&request).await;
    let busy = asker.reply(&request).await;
    assert_eq!((busy.retryable, busy.retry_after), (true, Some(Duration::from_secs(7))), "{busy:?}");
    request.attempt = 2;
    asker.send(&request).await;
    let refused = asker.reply(&request).await;
    assert!(!refused.retryable && problem(&refused).is("payment-refused"), "{refused:?}");
    assert_eq!(asker.again(&request).await, refused, "the same attempt is answered from the ledger");
    assert!(bank.answers.lock().unwrap().is_empty() && bank.keys().len() == 2);
    request.attempt = 3;
    asker.send(&request).await;
    assert!(succeeded(&asker.reply(&request).await), "a new attempt asks again");
    assert_eq!(bank.keys(), vec![request.correlation_id.clone(); 3]);
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_recorded_as_the_outcome() {
    let mut pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &["mail.send"]).await;
    let runs = Arc::new(AtomicU32::new(0));
    let sent = Arc::clone(&runs);
    let panics = move |_: Value, context: Context| {
        let sent = Arc::clone(&sent);
        async move {
            context.intent().await?;
            sent.fetch_add(1, Ordering::SeqCst);
            if context.attempt() == 1 {
                panic!("asked to");
            }
            Ok::<_, Failure>(())
        }
    };
    let provider =
        Provider::builder(pair.provider_config.clone()).handle_external("mail.send", panics).build().unwrap();
    pair.start_provider_with(provider);
    let mut request = request("mail.send", &json!({}));
    for _ in 0..2 {
        let reply = asker.again(&request).await;
        assert!(problem(&reply).is("handler-panicked"), "{reply:?}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    // The effect may have happened, so that this is never canceled, and the next attempt carries it out.
    request.attempt = 2;
    asker.cancel(&request).await;
    asker.send(&request).await;
    assert!(succeeded(&asker.reply(&request).await));
    asker.finish().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_lacks_its_service_is_not_offered() {
    let pair = Pair::prepare().await;
    let mut service = Service::provider(&pair.host.url, pair.folder.path());
    let mut provider = service.start().await;
    eventually("the log says so", async || {
        let log = service.log();
        if log.contains("payment.charge is not offered") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(provider.terminate().await.success());
    service = service.with("PROVIDER_KINDS", "payment.charge");
    assert_eq!(service.spawn().ended().await.code(), Some(2));
    assert!(service.log().contains("payments.url"));
    pair.finish().await;
}

/// How often a handler has run, and what lets its runs end.
#[derive(Clone, Debug)]
struct Gate {
    runs: Arc<AtomicU32>,
    open: Arc<Semaphore>,
}

/// Two instances of a group, one after the other ready, whose handler of `mail.send` waits at a gate. Their ledger is shared.
async fn two_instances(pair: &mut Pair, database: &Database) -> (Gate, ServiceOfTest) {
    let gate = Gate { runs: Arc::default(), open: Arc::new(Semaphore::new(0)) };
    let config = &mut pair.provider_config;
    config.ledger.url = database.url.clone();
    config.concurrency = 1;
    config.ahead_max = 0;
    (config.progress.interval, config.progress.heartbeat) = (Duration::from_millis(100), Duration::from_millis(100));
    config.lease = Duration::from_millis(300);
    let provider = || {
        let gate = gate.clone();
        let send = move |_: Value, context: Context| {
            let gate = gate.clone();
            async move {
                let key = context.intent().await?;
                gate.runs.fetch_add(1, Ordering::SeqCst);
                gate.open.acquire().await.unwrap().forget();
                Ok::<_, Failure>(json!({ "key": key }))
            }
        };
        Provider::builder(pair.provider_config.clone()).handle_external("mail.send", send).build().unwrap()
    };
    let (first, second) = (provider(), provider());
    pair.start_provider_with(first);
    let shutdown = CancellationToken::new();
    let second = ServiceOfTest::start(shutdown.clone(), second.run(shutdown));
    eventually("both take requests", async || {
        let queue = pair.host.queue("arr.request.mail.send").await;
        if queue["consumers"] == 2 { Ok(()) } else { Err(queue["consumers"].to_string()) }
    })
    .await;
    (gate, second)
}

/// The copy goes to the instance that is idle, which waits for a lease, sees it renewed, and leaves the request alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_instance_works_on_is_not_begun_by_another() {
    let mut pair = Pair::prepare().await;
    let mut asker = Asker::start(&pair.host, &["mail.send"]).await;
    let database = Postgres::shared().await.database().await;
    let (gate, second) = two_instances(&mut pair, &database).await;
    let request = request("mail.send", &json!({}));
    asker.send(&request).await;
    eventually("it is begun", async || match gate.runs.load(Ordering::SeqCst) {
        0 => Err("not yet".into()),
        _ => Ok(()),
    })
    .await;
    asker.send(&request).await;
    eventually("the copy is settled, its first is not", async || {
        let queue = pair.host.queue("arr.request.mail.send").await;
        let (sent, ready, held) =
            (&queue["message_stats"]["publish"], &queue["messages_ready"], &queue["messages_unacknowledged"]);
        if *sent == 2 && *ready == 0 && *held == 1 {
            Ok(())
        } else {
            Err(format!("{sent} sent, {ready} ready, {held} held"))
        }
    })
    .await;
    gate.open.add_permits(2);
    assert!(succeeded(&asker.reply(&request).await));
    assert_eq!(gate.runs.load(Ordering::SeqCst), 1);
    // And whoever gets it now, it is answered from the ledger.
    for _ in 0..4 {
        assert!(succeeded(&asker.again(&request).await));
    }
    assert_eq!(gate.runs.load(Ordering::SeqCst), 1);
    second.stop().await.unwrap();
    asker.finish().await;
    pair.finish().await;
}
