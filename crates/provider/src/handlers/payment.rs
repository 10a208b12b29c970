//! `payment.charge`: asks a payment service over HTTP, with an idempotency key that stays the same over repeats.

use crate::config::PaymentsConfig;
use crate::context::Context;
use crate::handler::Failure;
use anyhow::Context as _;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::{Value, json};
use shared::problem::Problem;
use shared::schema::payment::{Charge, Receipt};
use std::time::Duration;

/// The longest answer that is read, in bytes: a receipt is far smaller.
const ANSWER_BYTES_MAX: usize = 65_536;
/// The longest pause that a service may ask for; a request's deadline is a day at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// The handler that charges through the service at `config.url`.
///
/// # Errors
/// What is wrong with the URL or with this machine's certificates.
pub(crate) fn charge(
    config: &PaymentsConfig,
) -> anyhow::Result<impl Fn(Charge, Context) -> BoxFuture<'static, Result<Receipt, Failure>> + Send + Sync + 'static> {
    // Only the first call in a process can succeed, and any provider will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url: Url = config.url.parse().with_context(|| format!("payments.url {:?}", config.url))?;
    let redirects = reqwest::redirect::Policy::none();
    let http = Client::builder().timeout(config.timeout).redirect(redirects).build().context("payments")?;
    Ok(move |charge, context| ask(http.clone(), url.clone(), charge, context).boxed())
}

async fn ask(http: Client, url: Url, charge: Charge, context: Context) -> Result<Receipt, Failure> {
    check(&charge)?;
    let key = context.intent().await?;
    let body = json!({
        "operation": context.correlation_id(),
        "amountCents": charge.amount_cents,
        "customer": charge.customer,
    });
    let request = http.post(url).header("idempotency-key", &key).json(&body);
    let mut response = request.send().await.map_err(|error| unreachable_service(&error))?;
    let answer = read(&mut response).await.map_err(|error| unreachable_service(&error))?;
    match response.status() {
        status if status.is_success() => Ok(Receipt {
            idempotency_key: key,
            amount_cents: charge.amount_cents,
            customer: charge.customer,
            answer: serde_json::from_slice(&answer).unwrap_or(Value::Null),
        }),
        status if may_pass(status) => {
            let detail = format!("the payment service answered {status}");
            let problem = Problem::new("payment-unavailable", 503, "The payment service cannot do it now", detail);
            Err(match retry_after(response.headers(), Timestamp::now()) {
                Some(pause) => Failure::TransientFor(pause, problem),
                None => Failure::Transient(problem),
            })
        }
        status => {
            let said = String::from_utf8_lossy(&answer[..answer.len().min(256)]).into_owned();
            let detail = format!("the payment service answered {status}: {said}");
            Err(Failure::Permanent(Problem::new("payment-refused", 402, "The payment was refused", detail)))
        }
    }
}

/// What the schema says, for senders that did not ask it.
fn check(charge: &Charge) -> Result<(), Failure> {
    if !(1..=100_000_000).contains(&charge.amount_cents) {
        return Err(Failure::invalid("/amountCents", "an amount is 1 to 100,000,000 cents"));
    }
    if !(1..=100).contains(&charge.customer.chars().count()) {
        return Err(Failure::invalid("/customer", "a customer has 1 to 100 characters"));
    }
    Ok(())
}

/// What else of the answer there is than its head, up to the limit.
async fn read(response: &mut Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// The charge may or may not have happened: another attempt with the same key finds it out.
fn unreachable_service(error: &reqwest::Error) -> Failure {
    let detail = format!("no answer from the payment service: {}", error.to_string().replace('\n', " "));
    Failure::Transient(Problem::new("payment-unavailable", 503, "The payment service cannot be reached", detail))
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            until.duration_since(now).try_into().unwrap_or(Duration::ZERO)
        }
    };
    Some(pause.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "1994-11-06T08:49:30Z".parse().unwrap();
        let pause = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(pause("120"), Some(Duration::from_secs(120)));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO));
        assert_eq!((pause("soon"), pause("99999999")), (None, Some(RETRY_AFTER_MAX)));
    }
}
