//! Every problem type of the product, in one place.

use serde_json::{Value, json};
use shared::problem::TYPE_PREFIX;

/// A problem type.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProblemType {
    /// What its URI ends with; or the whole URI of a type that others have defined.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) statuses: &'static [u16],
    pub(super) when: &'static str,
    /// The headers that an answer of this type has always.
    pub(super) headers: &'static [&'static str],
}

const fn of(
    statuses: &'static [u16],
    name: &'static str,
    title: &'static str,
    headers: &'static [&'static str],
    when: &'static str,
) -> ProblemType {
    ProblemType { name, title, statuses, when, headers }
}

const LATER: &[&str] = &["Retry-After"];

/// Problems of calls first, then those with which operations end.
#[rustfmt::skip]
pub(super) const PROBLEMS: &[ProblemType] = &[
    of(&[400], "bad-request", "Bad request", &[], "a header, a query parameter or the body's transfer is wrong"),
    of(&[400], "not-json", "Not JSON", &[], "the body is not JSON"),
    of(&[400], "hostile-json", "JSON that is not safe to read", &[], "the body is JSON with a key twice in one object, nested too deeply, or of too many values"),
    of(&[401], "unauthorized", "No valid API key", &["WWW-Authenticate"], "the service has API keys, and none of them was sent"),
    of(&[403], "wrong-origin", "Another origin", &[], "a page of another origin wanted to open a WebSocket"),
    of(&[404], "not-found", "No such operation", &[], "no such operation; no such path"),
    of(&[404], "unknown-kind", "Unknown kind", &[], "no such kind; `kinds` lists those there are"),
    of(&[404], "not-finished", "Not finished", LATER, "there is no result yet; see `Retry-After`"),
    of(&[405], "method-not-allowed", "Method not allowed", &["Allow"], "see `Allow`"),
    of(&[408], "too-slow", "Request too slow", &[], "the body did not come in time"),
    of(&[400, 426], "bad-upgrade", "This cannot become a WebSocket", &[], "the request for a WebSocket is wrong, or its connection cannot become one"),
    of(&[409], "idempotency-key-in-flight", "The first request is not answered yet", LATER, "a request with this `Idempotency-Key` is being answered; send it again"),
    of(&[409], "not-failed", "There is nothing to retry", &[], "there is nothing to retry: the operation has not failed, was to be canceled, or did succeed late"),
    of(&[409], "too-late-to-retry", "Too late to retry", &[], "the operation failed so long ago that its provider may have forgotten what it did"),
    of(&[410], "gone", "Gone", &[], "the operation ended, and the time for which it was kept is over"),
    of(&[413], "too-large", "Request too large", &[], "the body is larger than `limit` bytes"),
    of(&[415], "unsupported-media-type", "Unsupported media type", &[], "the body is not `application/json`, or is compressed"),
    of(&[422], "invalid-request", "The request does not fit its schema", &[], "the request violates its schema, or cannot be carried out; `errors` has a JSON `pointer` and a `detail` each"),
    of(&[422], "callback-refused", "The outcome cannot be sent to this Callback-Url", &[], "`Callback-Url` is not where webhooks may go, or there is no secret to sign them with"),
    of(&[422], "idempotency-key-reused", "Idempotency-Key is already used", &[], "the `Idempotency-Key` was used for another request"),
    of(&[429], "https://iana.org/assignments/http-problem-types#quota-exceeded", "Quota exceeded", LATER, "the caller has all of one of its quotas; `violated-policies` names it, `limit` is how much that is"),
    of(&[500], "internal-error", "Internal error", &[], "what should not happen; see the log"),
    of(&[503], "store-unavailable", "The store cannot be used now", LATER, "the requestor's store is busy, full or broken: nothing was accepted"),
    of(&[503], "overloaded", "Too many at once", LATER, "as many callers wait or listen as the service can hold: nothing was accepted"),
    of(&[503], "not-ready", "The broker cannot be used now", &[], "`/readyz`: `broker` is `away` or `blocked`"),
    of(&[504], "not-in-time", "No outcome yet", &["Retry-After?", "Link?", "Operation-Location?"], "a synchronous call was accepted and takes longer; its outcome will be at the URL in `operation`"),

    of(&[504], "deadline-exceeded", "Deadline exceeded", &[], "the operation was not finished by its deadline"),
    of(&[409], "canceled", "Canceled", &[], "the operation was canceled before its effect; `stepsDone` counts the steps of a pipeline that were done before"),
    of(&[500], "poison", "No provider survives this request", &[], "each provider that took the request ended before it answered; `deliveries` lists `queue`, `reason`, `count` and `time` of each death at the broker, `deliveryCount` counts the attempts to deliver"),
    of(&[500], "unpublishable", "The request cannot be sent", &[], "the broker could not take the request, several times in a row"),
    of(&[400], "unreadable-message", "The message is no request", &[], "a message on a request queue was no request"),
    of(&[400], "unsupported-version", "Unsupported version", &[], "the request is of a version of this protocol that the provider does not know; see `supported`"),
    of(&[500], "handler-panicked", "The provider failed", &[], "the provider's handler failed in an unforeseen way"),
    of(&[500], "provider-error", "The provider reported an error", &[], "the provider reported something that is no problem document"),
    of(&[500], "result-too-large", "Result too large", &[], "the result is larger than a message may be"),
    of(&[503], "ledger-failed", "The provider's database failed", &[], "the provider's database failed; nothing was done"),
    of(&[503], "stopped", "Stopped", &[], "the work was stopped before its end"),
    of(&[409], "out-of-stock", "Out of stock", &[], "`order.place`: `shortages` lists `sku`, `requested`, `available`"),
    of(&[409], "price-changed", "The price has changed", &[], "`order.place`: `sku` now costs `priceCents`"),
    of(&[422], "unknown-article", "Unknown article", &[], "`order.place`: there is no `sku`"),
    of(&[402], "payment-refused", "The payment was refused", &[], "`payment.charge`: the payment service refuses it for good"),
    of(&[503], "payment-unavailable", "The payment service cannot be reached", &[], "`payment.charge`: the payment service cannot do it now"),
    of(&[500, 503], "video-failed", "The video cannot be made", &[], "`video.…`: ffmpeg cannot make the video; `detail` has what it said"),
    of(&[503], "object-store-failed", "The object store failed", &[], "`video.…`: the object store cannot be read or written now"),
    of(&[500, 503], "command-failed", "The command failed", &[], "a command ended without a result or broke a limit; `standardError` has the end of what it said"),
];

impl ProblemType {
    /// The type of that name, or of the URI that ends with it.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        PROBLEMS.iter().find(|problem| problem.name == name || problem.name.rsplit('#').next() == Some(name))
    }

    pub(super) fn uri(&self) -> String {
        if self.name.contains(':') { self.name.to_owned() } else { format!("{TYPE_PREFIX}{}", self.name) }
    }

    pub(super) fn example(&self) -> Value {
        json!({ "type": self.uri(), "title": self.title, "status": self.statuses.first(), "detail": self.when })
    }
}

/// The table of `docs/protocol.md`.
#[cfg(test)]
pub(super) fn table() -> String {
    let mut table = "| name | status | when |\n|---|---|---|\n".to_owned();
    for problem in PROBLEMS {
        let statuses: Vec<_> = problem.statuses.iter().map(u16::to_string).collect();
        table.push_str(&format!("| `{}` | {} | {} |\n", problem.name, statuses.join(", "), problem.when));
    }
    table
}
