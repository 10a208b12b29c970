//! Outcomes are sent to the receivers that callers named: signed, until they have arrived, and nowhere inside.

use crate::stand_in::StandIn;
use harness::eventually;
use harness::pair::Pair;
use harness::process::{Process, Service, command};
use harness::services::Services;
use harness::webhook_receiver::{Answer, WebhookReceiver};
use serde_json::{Value, json};
use shared::problem::Problem;
use std::net::{Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

const OLD: &str = "whsec_b2xkIHNlY3JldCBvZiAyNCBieXRlcyEh";
const NEW: &str = "whsec_dGhlIG5ldyBvbmUsIHdoaWNoIGhhcyAzMiBieXRlcyE=";

/// Lets a requestor that is not started yet send to this machine.
fn allow(pair: &mut Pair, receivers: &[&WebhookReceiver], pauses: &[&str]) {
    let webhooks = &mut pair.requestor_config.webhooks;
    webhooks.secrets = vec![NEW.parse().unwrap(), OLD.parse().unwrap()];
    webhooks.schedule = pauses.iter().map(|pause| pause.parse().unwrap()).collect();
    webhooks.allow_http = true;
    webhooks.ports = receivers.iter().map(|receiver| receiver.port()).collect();
    webhooks.allow_private = vec!["127.0.0.0/8".parse().unwrap()];
}

/// A requestor that sends to this machine, and a provider that the test plays.
async fn pair(receivers: &[&WebhookReceiver], pauses: &[&str]) -> (Pair, StandIn) {
    let mut pair = Pair::prepare().await;
    allow(&mut pair, receivers, pauses);
    let provider = StandIn::join(&pair, &["echo"]).await;
    pair.start_requestor();
    pair.ready().await;
    (pair, provider)
}

async fn submit(pair: &Pair, url: &str) -> String {
    let response = pair.post("echo").header("callback-url", url).body("1").send().await.unwrap();
    assert_eq!(response.status(), 202);
    let operation: Value = response.json().await.unwrap();
    assert_eq!(operation["webhook"], json!({ "url": url }));
    operation["id"].as_str().unwrap().to_owned()
}

/// The deliveries of an operation, once the newest has `status`.
async fn deliveries(pair: &Pair, id: &str, status: &str) -> Value {
    eventually(&format!("the webhook is {status}"), async || {
        let shown = pair.operation(id).await["webhook"]["deliveries"].take();
        if shown[0]["status"] == status { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await
}

/// The statuses that a delivery's attempts were answered with; null where there was no answer.
fn statuses(delivery: &Value) -> Vec<Value> {
    let attempts = delivery["attempts"].as_array();
    attempts.into_iter().flatten().map(|attempt| attempt["status"].clone()).collect()
}

async fn finish(pair: Pair, provider: StandIn) {
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_outcome_is_sent_signed_with_every_secret_and_shown() {
    let receiver = WebhookReceiver::start(|_| Answer::Status(204)).await;
    let (pair, provider) = pair(&[&receiver], &[]).await;
    let succeeded = submit(&pair, &receiver.url()).await;
    provider.succeed(&provider.request("echo").await, "{\"sum\": 1.50}").await;
    receiver.received(1).await;
    let failed = submit(&pair, &receiver.url()).await;
    provider.fail(&provider.request("echo").await, Problem::new("broken", 500, "Broken", "no")).await;
    receiver.received(2).await;
    let canceled = submit(&pair, &receiver.url()).await;
    let request = provider.request("echo").await;
    pair.request("DELETE", &format!("/v1/operations/{canceled}")).send().await.unwrap();
    provider.fail(&request, Problem::canceled()).await;
    let received = receiver.received(3).await;

    let told = [(&succeeded, "succeeded"), (&failed, "failed"), (&canceled, "canceled")];
    for ((id, outcome), received) in told.into_iter().zip(&received) {
        let document = received.document();
        let shown = deliveries(&pair, id, "Delivered").await;
        assert_eq!(document["type"], format!("operation.{outcome}"));
        assert_eq!((&shown[0]["type"], &shown[0]["id"]), (&document["type"], &json!(received.id())));
        assert_eq!(statuses(&shown[0]), [204]);
        assert_eq!(document["data"]["operationLocation"], format!("{}/v1/operations/{id}", pair.base));
        assert_eq!(received.headers["content-type"], "application/json");
        // All that the status URL shows, as it was when the operation ended.
        let mut operation = pair.operation(id).await;
        operation["webhook"].as_object_mut().unwrap().remove("deliveries");
        for (name, value) in operation.as_object().unwrap() {
            assert_eq!(document["data"][name], *value, "{name}");
        }
    }
    assert!(received[0].body.contains("\"result\":{\"sum\": 1.50}"), "as the provider wrote it: {}", received[0].body);
    assert_eq!(receiver.verify(&[OLD, NEW]).await, 3);
    // The other tests of this process count here, too.
    assert!(pair.metric("arr_webhook_attempts_total", "result=\"delivered\"").await >= 3.0);
    let plain = pair.submit("echo", &json!(1)).await;
    provider.succeed(&provider.request("echo").await, "1").await;
    assert_eq!(pair.ended(&plain).await.get("webhook"), None);
    finish(pair, provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_with_the_same_id_and_redirects_are_not_followed() {
    let elsewhere = WebhookReceiver::start(|_| Answer::Status(200)).await;
    let target = elsewhere.url();
    let receiver = WebhookReceiver::start(move |number| match number {
        1 => Answer::Status(500),
        2 => Answer::Redirect(target.clone()),
        3 => Answer::Status(404),
        _ => Answer::Status(200),
    })
    .await;
    let (pair, provider) = pair(&[&receiver, &elsewhere], &["10ms", "10ms", "1100ms", "1h"]).await;
    let id = submit(&pair, &receiver.url()).await;
    provider.succeed(&provider.request("echo").await, "1").await;
    let shown = deliveries(&pair, &id, "Delivered").await;
    let received = receiver.received(4).await;
    assert_eq!(statuses(&shown[0]), [500, 302, 404, 200]);
    assert_eq!(shown[0]["attempts"][1]["error"], "redirects are not followed");
    assert!(received.iter().all(|it| it.id() == received[0].id() && it.body == received[0].body));
    assert_ne!(received[3].headers["webhook-timestamp"], received[0].headers["webhook-timestamp"]);
    assert_eq!((receiver.verify(&[NEW]).await, elsewhere.so_far().len()), (4, 0));
    assert!(pair.metric("arr_webhook_attempts_total", "result=\"failed\"").await >= 3.0);
    finish(pair, provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_respected_and_bounded() {
    let receiver = WebhookReceiver::start(|number| match number {
        1 => Answer::RetryAfter(503, "86400".into()),
        _ => Answer::Status(200),
    })
    .await;
    let mut pair = Pair::prepare().await;
    let longest = Duration::from_secs(2);
    allow(&mut pair, &[&receiver], &["10ms"]);
    pair.requestor_config.webhooks.retry_after_max = longest;
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let id = submit(&pair, &receiver.url()).await;
    let received = receiver.received(2).await;
    let pause = received[1].at - received[0].at;
    assert!(pause >= longest, "{pause:?}");
    deliveries(&pair, &id, "Delivered").await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_can_have_enough_and_another_outcome_is_another_webhook() {
    let receiver = WebhookReceiver::start(|number| Answer::Status(if number == 1 { 410 } else { 500 })).await;
    let (pair, provider) = pair(&[&receiver], &["10ms"]).await;
    let id = submit(&pair, &receiver.url()).await;
    provider.fail(&provider.request("echo").await, Problem::new("broken", 500, "Broken", "no")).await;
    let refused = deliveries(&pair, &id, "Refused").await;
    assert_eq!((statuses(&refused[0]), refused[0].get("nextAttemptAt")), (vec![json!(410)], None));

    pair.request("POST", &format!("/v1/operations/{id}/retry")).send().await.unwrap();
    provider.succeed(&provider.request("echo").await, "1").await;
    let given_up = deliveries(&pair, &id, "GivenUp").await;
    assert_eq!(statuses(&given_up[0]), [500, 500]);
    assert_eq!(given_up[1], refused[0], "what was refused is left alone");
    let received = receiver.so_far();
    let types: Vec<_> = received.iter().map(|it| it.document()["type"].clone()).collect();
    assert_eq!(types, ["operation.failed", "operation.succeeded", "operation.succeeded"]);
    assert!(received[0].id() != received[1].id() && received[1].id() == received[2].id());
    receiver.verify(&[NEW]).await;
    finish(pair, provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_slow_holds_up_no_other() {
    const WAITING: usize = 12;
    let stuck = WebhookReceiver::start(|_| Answer::Nothing).await;
    let odd = WebhookReceiver::start(|number| if number == 1 { Answer::Endless } else { Answer::Dribble }).await;
    let mut pair = Pair::prepare().await;
    allow(&mut pair, &[&stuck, &odd], &["1h"]);
    let webhooks = &mut pair.requestor_config.webhooks;
    (webhooks.concurrency, webhooks.concurrency_per_host) = (3, 2);
    webhooks.timeout = Duration::from_secs(4);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let mut ids = Vec::new();
    for _ in 0..WAITING {
        ids.push(submit(&pair, &stuck.url()).await);
    }
    stuck.received(2).await;
    // Another host, as it is told apart by its name.
    let url = format!("http://localhost:{}/hook", odd.port());
    for _ in 0..2 {
        let id = submit(&pair, &url).await;
        let shown = deliveries(&pair, &id, "Delivered").await;
        assert!(shown[0]["attempts"][0]["milliseconds"].as_u64().unwrap() < 4000, "{shown}");
    }
    assert!(stuck.so_far().len() < WAITING, "the others were held up until the stuck ones were done");
    let shown = eventually("an attempt ends by its timeout", async || {
        let shown = pair.operation(&ids[0]).await["webhook"]["deliveries"].take();
        if shown[0]["attempts"][0]["error"] == "timed out" { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(shown[0]["status"], "Pending");
    assert!(shown[0]["nextAttemptAt"].is_string());
    stuck.received(WAITING).await;
    assert_eq!(stuck.most_open(), 2);
    pair.finish().await;
}

/// A requestor as a process that sends to `receiver`.
fn sending_to(requestor: Service, receiver: &WebhookReceiver) -> Service {
    requestor
        .with("REQUESTOR_WEBHOOKS__SECRETS", &format!("{NEW},{OLD}"))
        .with("REQUESTOR_WEBHOOKS__SCHEDULE", "100ms,100ms,1h")
        .with("REQUESTOR_WEBHOOKS__ALLOW_HTTP", "true")
        .with("REQUESTOR_WEBHOOKS__PORTS", &receiver.port().to_string())
        .with("REQUESTOR_WEBHOOKS__ALLOW_PRIVATE", "127.0.0.1/32")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_killed_between_sending_and_its_record_sends_again_with_the_same_id() {
    let receiver = WebhookReceiver::start(|_| Answer::Status(200)).await;
    let trap = WebhookReceiver::start(|_| Answer::Status(200)).await;
    let mut stack = Services::prepare("").await;
    stack.requestor = sending_to(stack.requestor, &receiver).with("HTTP_PROXY", &trap.url());
    let mut provider = stack.provider.start().await;
    let dying = stack.requestor.clone().with("FAILPOINTS", "requestor.webhook-sent=return");
    let mut requestor = dying.start().await;
    stack.caller.ready().await;
    let response = stack.caller.post("echo").header("callback-url", receiver.url()).body("1").send().await.unwrap();
    let id = response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    assert!(!requestor.ended().await.success());
    let mut requestor = dying.spawn();
    assert!(!requestor.ended().await.success());
    let mut requestor = stack.requestor.start().await;
    let received = receiver.received(3).await;
    let shown = eventually("it is delivered", async || {
        let shown = stack.caller.operation(&id).await["webhook"]["deliveries"].take();
        if shown[0]["status"] == "Delivered" { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(statuses(&shown[0]), [200]);
    assert!(received.iter().all(|it| it.id() == shown[0]["id"] && it.body == received[0].body));
    assert_eq!((receiver.verify(&[NEW, OLD]).await, trap.so_far().len()), (3, 0));
    for log in [stack.requestor.log(), format!("{shown}")] {
        assert!(!log.contains(&NEW["whsec_".len()..]) && !log.contains(&OLD["whsec_".len()..]), "{log}");
    }
    assert!(!stack.requestor.log().contains("/hook"), "a URL may hold a secret of its receiver's");
    assert!(requestor.terminate().await.success());
    assert!(provider.terminate().await.success());
    stack.finish().await;
}

/// Everything on this machine, at every address that it has, and how often that was connected to.
async fn inside() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).await.unwrap();
    let (port, hits) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&hits);
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, hits)
}

/// Ways to name what is inside. `PORT` is where somebody listens.
const INSIDE: [&str; 58] = [
    // This machine, as one may write it.
    "http://127.0.0.1:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://127.255.255.254:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7F.0.0.1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://017700000001:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://127。0。0。1:PORT/",
    "http://%31%32%37.0.0.1:PORT/",
    "http://0:PORT/",
    "http://0.0.0.0:PORT/",
    "http://[::]:PORT/",
    "http://[::1]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[::ffff:0:127.0.0.1]:PORT/",
    "http://[64:ff9b::127.0.0.1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[2001:0:7f00:1::]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fe80::1%25lo]:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST:PORT/",
    "http://localhost.:PORT/",
    "http://any.localhost:PORT/",
    "http://ip6-localhost:PORT/",
    "http://HOSTNAME:PORT/",
    "http://localhost.localdomain:PORT/",
    "http://127.0.0.1.nip.io:PORT/",
    "http://localtest.me:PORT/",
    // Networks that are somebody's own.
    "http://10.0.0.1:PORT/",
    "http://172.16.0.1:PORT/",
    "http://192.168.0.1:PORT/",
    "http://100.64.0.1:PORT/",
    "http://[fc00::1]:PORT/",
    "http://[fec0::1]:PORT/",
    // What clouds tell machines about themselves.
    "http://169.254.169.254:PORT/latest/meta-data/",
    "http://0xA9FEA9FE:PORT/",
    "http://[fd00:ec2::254]:PORT/",
    "http://100.100.100.200:PORT/",
    "http://168.63.129.16:PORT/",
    "http://metadata.google.internal:PORT/",
    // Not one receiver.
    "http://224.0.0.1:PORT/",
    "http://255.255.255.255:PORT/",
    "http://[ff02::1]:PORT/",
    // Other doors.
    "https://127.0.0.1:PORT/",
    "http://me@127.0.0.1:PORT/",
    "http://8.8.8.8:80@127.0.0.1:PORT/",
    "http://8.8.8.8:PORT/#@127.0.0.1:PORT/",
    "ftp://127.0.0.1:PORT/",
    "http:\\\\127.0.0.1:PORT\\",
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_inside_is_reached_however_it_is_named() {
    let (port, hits) = inside().await;
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let mut pair = Pair::prepare().await;
    let webhooks = &mut pair.requestor_config.webhooks;
    (webhooks.secrets, webhooks.schedule) = (vec![NEW.parse().unwrap()], Vec::new());
    (webhooks.allow_http, webhooks.ports) = (true, vec![port]);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for target in INSIDE {
        let url = target.replace("PORT", &port.to_string()).replace("HOSTNAME", &hostname);
        let value = reqwest::header::HeaderValue::from_bytes(url.as_bytes()).unwrap();
        let response = pair.post("echo").header("callback-url", value).body("1").send().await.unwrap();
        let (status, answer): (_, Value) = (response.status().as_u16(), response.json().await.unwrap());
        match status {
            202 => accepted.push((url, answer["id"].as_str().unwrap().to_owned())),
            400 | 422 => {
                assert!(answer["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{url}: {answer}");
                refused += 1;
            }
            _ => panic!("{url}: {status} {answer}"),
        }
    }
    for (url, id) in &accepted {
        let shown = deliveries(&pair, id, "GivenUp").await;
        let attempt = &shown[0]["attempts"][0];
        assert_eq!(attempt.get("status"), None, "{url}: {attempt}");
        let error = attempt["error"].as_str().unwrap();
        assert!(error.contains("does not lead to public addresses"), "{url}: {error}");
    }
    assert!(accepted.iter().any(|(url, _)| url.contains(&hostname)), "no name was judged at delivery");
    assert_eq!((refused + accepted.len(), hits.load(Ordering::SeqCst)), (INSIDE.len(), 0));

    // It is all reachable where it is allowed: this test can fail.
    pair.stop_requestor().await;
    pair.requestor_config.webhooks.allow_private = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    pair.start_requestor();
    pair.ready().await;
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let before = hits.load(Ordering::SeqCst);
        submit(&pair, &format!("http://{host}:{port}/")).await;
        eventually(&format!("{host} is reached"), async || {
            if hits.load(Ordering::SeqCst) > before { Ok(()) } else { Err(String::new()) }
        })
        .await;
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_have_secrets_of_its_own() {
    let (first, second) =
        (WebhookReceiver::start(|_| Answer::Status(200)).await, WebhookReceiver::start(|_| Answer::Status(200)).await);
    let mut pair = Pair::prepare().await;
    allow(&mut pair, &[&first, &second], &[]);
    pair.requestor_config.webhooks.secrets = vec![NEW.parse().unwrap()];
    let callers = [("ada", &first), ("bob", &second)]
        .map(|(name, receiver)| (crate::callers::add(&mut pair, name, false), receiver));
    pair.requestor_config.callers.get_mut("bob").unwrap().webhook_secrets = vec![OLD.parse().unwrap()];
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    for (caller, receiver) in callers {
        let response = caller.post("echo").header("callback-url", receiver.url()).body("1").send().await.unwrap();
        assert_eq!(response.status(), 202);
        assert_eq!(receiver.received(1).await[0].document()["data"]["result"], 1);
    }
    assert_eq!((first.verify(&[NEW]).await, second.verify(&[OLD]).await), (1, 1));
    assert_eq!(second.so_far()[0].headers["webhook-signature"].matches("v1,").count(), 1);
    pair.finish().await;
}

/// `docs/examples/receiver.py`.
#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_in_the_documentation_takes_what_is_signed_with_its_secret() {
    let mut pair = Pair::prepare().await;
    let (port, printed) = (harness::free_port(), pair.folder.path().join("receiver.log"));
    allow(&mut pair, &[], &["100ms"; 20]);
    pair.requestor_config.webhooks.ports = vec![port];
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let python = tokio::task::spawn_blocking(harness::python::python).await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/receiver.py");
    let start = |secret: &str| {
        let log = std::fs::File::create(&printed).unwrap();
        Process::spawn(Command::new(python).args([script, &port.to_string(), secret]).stdout(log).stderr(Stdio::null()))
    };
    let url = format!("http://127.0.0.1:{port}/");
    let mut receiver = start(OLD);
    let id = submit(&pair, &url).await;
    deliveries(&pair, &id, "Delivered").await;
    assert_eq!(std::fs::read_to_string(&printed).unwrap(), format!("operation.succeeded {id} 1\n"));
    receiver.kill();
    let _receiver = start("whsec_bm90aGluZyB0aGF0IHRoZSByZXF1ZXN0b3IgaGFz");
    let id = submit(&pair, &url).await;
    eventually("the signature is refused", async || {
        let shown = pair.operation(&id).await["webhook"]["deliveries"].take();
        if statuses(&shown[0]).contains(&json!(401)) { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(std::fs::read_to_string(&printed).unwrap(), "");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_nothing_is_promised() {
    let receiver = WebhookReceiver::start(|_| Answer::Status(200)).await;
    let mut pair = Pair::prepare().await;
    pair.requestor_config.webhooks.allow_http = true;
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let response = pair.post("echo").header("callback-url", receiver.url()).body("1").send().await.unwrap();
    assert_eq!(response.status(), 422);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], "urn:problem-type:arr:callback-refused");
    assert!(problem["detail"].as_str().unwrap().contains("webhooks.secrets"), "{problem}");
    let twice =
        pair.post("echo").header("callback-url", "https://a.example/").header("callback-url", "https://b.example/");
    assert_eq!(twice.body("1").send().await.unwrap().status(), 400);
    assert_eq!(pair.get_json("/v1/operations").await["operations"], json!([]), "nothing was accepted");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_forgotten_with_their_operation() {
    let receiver = WebhookReceiver::start(|_| Answer::Status(500)).await;
    let (mut pair, provider) = pair(&[&receiver], &["1h"]).await;
    pair.stop_requestor().await;
    pair.requestor_config.operations.retention = Duration::from_secs(2);
    pair.start_requestor();
    pair.ready().await;
    let id = submit(&pair, &receiver.url()).await;
    provider.succeed(&provider.request("echo").await, "1").await;
    receiver.received(1).await;
    eventually("the operation is forgotten", async || {
        let status = pair.get(&format!("/v1/operations/{id}")).await.status();
        if status == 410 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    for table in ["operations", "webhooks", "webhook_attempts"] {
        assert_eq!(pair.store.numbers(&format!("select count(*) from {table}")).await, [0], "{table}");
    }
    assert_eq!(pair.store.numbers("select open, bytes from used").await, [0, 0]);
    finish(pair, provider).await;
}

#[test]
fn secrets_are_read_from_a_file_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secrets");
    std::fs::write(&file, format!("{NEW}\n{OLD}\n")).unwrap();
    let run = |variables: &[(&str, &str)]| {
        let variables: Vec<_> = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let output = command("requestor", &variables).arg("config").output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, shown) = run(&[("REQUESTOR_WEBHOOKS__SECRETS_FILE", file.to_str().unwrap())]);
    assert_eq!((code, shown.matches("whsec_***").count()), (Some(0), 2), "{shown}");
    for (name, value, hint) in [
        ("REQUESTOR_WEBHOOKS__SECRETS", "whsec_c2hvcnQ=", "24 to 64 bytes"),
        ("REQUESTOR_WEBHOOKS__PORTS", "443,x", "ports"),
        ("REQUESTOR_WEBHOOKS__ALLOW_PRIVATE", "10.0.0.0/33", "allow_private"),
        ("REQUESTOR_WEBHOOKS__ALLOW_HOSTS", "*.exa mple.com", "allow_hosts"),
        ("REQUESTOR_OPERATIONS__RETENTION", "72h", "webhooks.schedule"),
    ] {
        let secrets = ("REQUESTOR_WEBHOOKS__SECRETS", NEW);
        let variables = [secrets, (name, value)];
        let (code, error) = run(&variables[usize::from(name == secrets.0)..]);
        assert_eq!(code, Some(2), "{name}={value}: {error}");
        assert!(error.contains(hint) && !error.contains("c2hvcnQ"), "{name}={value}: {error}");
    }
}
