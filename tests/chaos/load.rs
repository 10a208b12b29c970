//! The callers: what they ask, when they cancel, and how they follow what they asked for.

use crate::history::{Accepted, Came, History};
use crate::sink::{BUSY, DECLINED, SLOW};
use harness::caller::Caller;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long an operation may take in all, unless it is meant to run out of time.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);
/// How long after that a caller still asks.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
/// Operations that callers follow at a time; the requestor lets 600 wait.
const FOLLOWED_MAX: usize = 256;
/// The pause after a call that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The header that says how long an operation may take.
const OPERATION_TIMEOUT: &str = "operation-timeout";

/// What one caller does.
#[derive(Clone, Debug)]
struct Plan {
    kind: &'static str,
    /// What it asks, but for the reference.
    amount: u64,
    /// After how long it cancels.
    cancel: Option<Duration>,
    timeout: Duration,
    /// How often it drives the operation again when it has failed.
    retries: usize,
    should_succeed: bool,
}

/// Makes requests, each by a caller of its own.
#[derive(Clone, Debug)]
pub(crate) struct Load(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    caller: Caller,
    history: Arc<History>,
    seed: u64,
    next: AtomicUsize,
    callers: TaskTracker,
    following: Arc<Semaphore>,
    /// Cancelled when callers must not wait any longer.
    enough: CancellationToken,
}

impl Load {
    pub(crate) fn new(caller: Caller, history: Arc<History>, seed: u64) -> Self {
        let (next, callers, enough) = (AtomicUsize::new(0), TaskTracker::new(), CancellationToken::new());
        let following = Arc::new(Semaphore::new(FOLLOWED_MAX));
        Self(Arc::new(Inner { caller, history, seed, next, callers, following, enough }))
    }

    /// Starts one caller; waits while too many are under way.
    pub(crate) async fn one(&self) {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let Ok(following) = Arc::clone(&self.0.following).acquire_owned().await else { return };
        let (load, plan) = (self.clone(), Plan::draw(self.0.seed, number));
        self.0.callers.spawn(async move {
            if let Some(Err(error)) = load.0.enough.run_until_cancelled(load.call(number, &plan)).await {
                tracing::error!(%error, "a caller gives up");
            }
            drop(following);
        });
    }

    /// Starts `count` callers, `rate` a second.
    pub(crate) async fn paced(&self, count: usize, rate: f64) {
        let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        for _ in 0..count {
            tick.tick().await;
            self.one().await;
        }
    }

    /// Starts `count` callers that neither cancel nor hurry, and tells how many of their operations succeeded.
    pub(crate) async fn plain(&self, count: usize) -> usize {
        let one = |_| async {
            let number = self.0.next.fetch_add(1, Ordering::Relaxed);
            let plan = Plan::plain(&mut StdRng::seed_from_u64(number as u64));
            let id = self.submit(number, &plan).await.ok()?;
            let status = self.follow(&id, plan.timeout).await.ok()?;
            (status == "Succeeded").then_some(())
        };
        futures_util::future::join_all((0..count).map(one)).await.into_iter().flatten().count()
    }

    /// Waits until all callers have learnt what became of their operations.
    pub(crate) async fn ended(&self) {
        self.0.callers.close();
        self.0.callers.wait().await;
        self.0.callers.reopen();
    }

    /// Sends all callers home.
    pub(crate) async fn dismiss(&self) {
        self.0.enough.cancel();
        self.ended().await;
    }

    /// How many callers are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.0.callers.len()
    }

    async fn call(&self, number: usize, plan: &Plan) -> anyhow::Result<()> {
        let id = self.submit(number, plan).await?;
        if let Some(after) = plan.cancel {
            tokio::time::sleep(after).await;
            self.insist("cancel", "DELETE", &format!("/v1/operations/{id}"), &id).await?;
        }
        let mut status = self.follow(&id, plan.timeout).await?;
        for _ in 0..plan.retries {
            if status != "Failed" {
                break;
            }
            self.insist("retry", "POST", &format!("/v1/operations/{id}/retry"), &id).await?;
            status = self.follow(&id, TIMEOUT).await?;
        }
        Ok(())
    }

    /// Asks until it is answered 202; each time with a reference of its own, since nobody knows whether a call whose
    /// answer was lost has been accepted.
    async fn submit(&self, number: usize, plan: &Plan) -> anyhow::Result<String> {
        let history = &self.0.history;
        for again in 0.. {
            let reference = format!("chaos-{number}-{again}");
            let body = plan.body(&reference);
            history.note("submit", Came::Invoke, &reference, json!(plan.kind)).await?;
            let request = self.0.caller.post(plan.kind).header(OPERATION_TIMEOUT, milliseconds(plan.timeout));
            let answer = Answer::of(request.body(body.to_string()).send().await).await;
            history.note("submit", answer.came, &reference, answer.body.clone()).await?;
            if let (Came::Ok, Some(id)) = (answer.came, answer.body["id"].as_str()) {
                let (seen, retries) = (Vec::new(), 0);
                let should_succeed = plan.should_succeed;
                history.accept(id, Accepted { reference, body, seen, retries, should_succeed });
                return Ok(id.to_owned());
            }
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::bail!("never accepted")
    }

    /// Makes a call until it is answered, be it with a refusal.
    async fn insist(&self, call: &'static str, method: &str, path: &str, id: &str) -> anyhow::Result<()> {
        loop {
            self.0.history.note(call, Came::Invoke, id, Value::Null).await?;
            if call == "retry" {
                // Counted before it is asked: an answer that is lost may still have driven the operation again.
                self.0.history.change(id, |accepted| accepted.retries += 1);
            }
            let request = self.0.caller.request(method, path).header(OPERATION_TIMEOUT, milliseconds(TIMEOUT));
            let answer = Answer::of(request.send().await).await;
            self.0.history.note(call, answer.came, id, answer.body).await?;
            if answer.came == Came::Ok || answer.status.is_some_and(|status| status.is_client_error()) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Follows an operation to its end; the last status seen.
    async fn follow(&self, id: &str, timeout: Duration) -> anyhow::Result<String> {
        let until = Instant::now() + timeout + GRACE;
        let mut last = String::new();
        while Instant::now() < until {
            let path = format!("/v1/operations/{id}?redirect=false");
            let request = self.0.caller.request("GET", &path).header("prefer", "wait=5");
            let answer = Answer::of(request.send().await).await;
            match answer.body["status"].as_str().filter(|_| answer.came == Came::Ok) {
                Some(status) => {
                    self.0.history.saw(id, status);
                    status.clone_into(&mut last);
                    if is_terminal(status) {
                        break;
                    }
                }
                None => tokio::time::sleep(PAUSE).await,
            }
        }
        self.0.history.note("follow", if is_terminal(&last) { Came::Ok } else { Came::Info }, id, json!(last)).await?;
        Ok(last)
    }
}

impl Plan {
    /// What caller `number` does; always the same for a seed.
    fn draw(seed: u64, number: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let mut plan = Self::plain(&mut random);
        match random.random_range(0..100) {
            0..15 => plan.cancel = Some(Duration::from_millis(random.random_range(0..400))),
            15..23 => plan.timeout = Duration::from_millis(random.random_range(500..4000)),
            23..28 => plan.amount = plan.amount / 100 * 100 + DECLINED,
            28..32 => plan.amount = plan.amount / 100 * 100 + BUSY,
            32..40 => plan.amount = plan.amount / 100 * 100 + SLOW,
            _ => return plan,
        }
        plan.should_succeed = plan.amount % 100 == SLOW || plan.amount % 100 == BUSY;
        plan.retries = random.random_range(0..3);
        plan
    }

    /// A request that must succeed.
    fn plain(random: &mut StdRng) -> Self {
        let kind = match random.random_range(0..100) {
            0..45 => "order.place",
            45..80 => "payment.charge",
            _ => "echo",
        };
        let amount = random.random_range(1..100) * 100 + 1;
        Self { kind, amount, cancel: None, timeout: TIMEOUT, retries: 0, should_succeed: true }
    }

    fn body(&self, reference: &str) -> Value {
        match self.kind {
            // There are no unicorns.
            "order.place" if self.amount % 100 == DECLINED => json!({
                "customer": reference,
                "items": [{ "sku": "unicorn", "quantity": 1, "unitPriceCents": 999_999 }],
            }),
            "order.place" => json!({
                "customer": reference,
                "items": [{ "sku": "mouse", "quantity": 1 + self.amount % 3, "unitPriceCents": 1_999 }],
            }),
            "payment.charge" => json!({ "customer": reference, "amountCents": self.amount }),
            _ => json!({ "echo": reference, "amountCents": self.amount }),
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// Whether `status` is one that never changes.
pub(crate) fn is_terminal(status: &str) -> bool {
    matches!(status, "Succeeded" | "Failed" | "Canceled")
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) came: Came,
    /// None if there was no answer.
    status: Option<StatusCode>,
    /// The answer, or why there is none.
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(answer: reqwest::Result<Response>) -> Self {
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                let came = if error.is_connect() { Came::Fail } else { Came::Info };
                return Self { came, status: None, body: json!(error.to_string()) };
            }
        };
        let status = response.status();
        let came = match status {
            status if status.is_success() => Came::Ok,
            // What a service says of itself when it could not commit: nothing was done.
            status if status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE => Came::Fail,
            _ => Came::Info,
        };
        match response.json().await {
            Ok(body) => Self { came, status: Some(status), body },
            // A head without its body: the service was killed in between.
            Err(error) => Self { came: Came::Info, status: None, body: json!(error.to_string()) },
        }
    }
}
