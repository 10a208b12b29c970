//! Makes one attempt: signs, sends, and takes what comes back.

use super::delivery::{Attempt, Delivery};
use super::resolver::{NotPublic, PublicResolver};
use super::settings::WebhooksConfig;
use super::signature::{Secrets, sign};
use super::target::Targets;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT};
use reqwest::{Response, StatusCode, redirect};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much of an answer is read, and for how long, so that an honest receiver can finish writing. Nothing depends on
/// it, and nothing of it is shown: it might be what only we can see.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of an error's text is kept.
const ERROR_BYTES_MAX: usize = 256;

/// Sends deliveries.
#[derive(Debug)]
pub(super) struct Sender {
    http: reqwest::Client,
    secrets: Arc<Secrets>,
    targets: Arc<Targets>,
}

impl Sender {
    /// # Errors
    /// When the system has no certificates to trust.
    pub(super) fn new(
        config: &WebhooksConfig,
        (secrets, targets): (Arc<Secrets>, Arc<Targets>),
    ) -> anyhow::Result<Self> {
        // Only the first call in a process can succeed, and any provider will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let resolver = PublicResolver::new(Arc::clone(&targets.addresses), config.concurrency);
        let http = reqwest::Client::builder()
            .dns_resolver(resolver)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            // Each attempt connects anew, so that its name is judged anew.
            .pool_max_idle_per_host(0)
            .https_only(!config.allow_http)
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .build()?;
        Ok(Self { http, secrets, targets })
    }

    /// The next attempt of `delivery`, and for how long the receiver does not want another.
    pub(super) async fn attempt(&self, delivery: &Delivery) -> (Attempt, Option<Duration>) {
        let (at, begun) = (Timestamp::now(), Instant::now());
        let answer = self.send(delivery, at).await;
        let (status, error, retry_after) = match answer {
            Ok(response) => {
                let (status, retry_after) = (response.status(), retry_after(response.headers(), Timestamp::now()));
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, discard(response)).await;
                (Some(status), not_counted(status), retry_after)
            }
            Err(error) => (None, Some(error), None),
        };
        let status = status.map(|status| status.as_u16());
        (Attempt { number: delivery.attempts + 1, at, took: begun.elapsed(), status, error }, retry_after)
    }

    /// The receiver's answer, up to the end of its headers.
    async fn send(&self, delivery: &Delivery, at: Timestamp) -> Result<Response, String> {
        // Judged again: addresses are not resolved, and what may be sent where may have changed since it was accepted.
        let url = self.targets.check(&delivery.url)?;
        let secrets = self.secrets.of(&delivery.owner);
        if secrets.is_empty() {
            return Err("there is no secret to sign it with any more".into());
        }
        let (id, timestamp) = (delivery.id.to_string(), at.as_second());
        let signature = sign(secrets, &id, timestamp, &delivery.body);
        let request = self
            .http
            .post(url)
            .header(CONTENT_TYPE, shared::message::JSON)
            .header(USER_AGENT, concat!("requestor/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(delivery.body.clone());
        request.send().await.map_err(|error| reason(&error))
    }
}

async fn discard(mut response: Response) {
    let mut left = ANSWER_BYTES_MAX;
    while let Ok(Some(chunk)) = response.chunk().await {
        let Some(rest) = left.checked_sub(chunk.len()) else { return };
        left = rest;
    }
}

fn not_counted(status: StatusCode) -> Option<String> {
    status.is_redirection().then(|| "redirects are not followed".into())
}

/// Why there is no answer, as the receiver's people need it.
fn reason(error: &reqwest::Error) -> String {
    let causes = || std::iter::successors(error.source(), |&error| error.source());
    if let Some(refused) = causes().find_map(|cause| cause.downcast_ref::<NotPublic>()) {
        return refused.to_string();
    }
    let last = causes().last().map(ToString::to_string);
    let mut text = match last {
        _ if error.is_timeout() => "timed out".into(),
        Some(cause) if error.is_connect() => format!("cannot connect: {cause}"),
        Some(cause) => cause,
        None => "no answer".into(),
    };
    text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    text
}

/// `Retry-After` as a pause: seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            date.duration_since(now).try_into().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:07Z".parse().unwrap();
        for (text, seconds) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", None),
            ("soon", None),
            ("-1", None),
            ("99999999999999999999999", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
