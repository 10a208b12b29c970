//! Parameters of calls and headers of answers.

use crate::config::Config;
use crate::store::STATUSES;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// An operation's id in examples.
pub(super) const EXAMPLE_ID: &str = "0199a3b2-7c1e-7f43-9d5a-2b8e4c6f1a07";
/// Where the service is in examples.
const EXAMPLE_BASE: &str = "https://requests.example.com";

/// The parameters, by the names that calls have for them.
pub(super) fn parameters(config: &Config) -> Map<String, Value> {
    let wait = config.http.wait_max.as_secs();
    let timeout_max = config.operations.timeout_max;
    let page = config.http.page_size_max;
    let number = json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX });
    let count = json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    let given = [
        ("kind", "path kind", "What is asked for, such as `order.place`.", kind(), json!("echo")),
        ("id", "path id", "The operation's id.", json!({ "type": "string", "format": "uuid" }), json!(EXAMPLE_ID)),
        (
            "priority",
            "query priority",
            "More urgent requests wait less; brokers before RabbitMQ 4 take no notice.",
            json!({ "type": "integer", "minimum": 0, "maximum": 9 }),
            json!(5),
        ),
        (
            "Prefer",
            "header Prefer",
            &format!(
                "`wait=N`: how many seconds to wait for the outcome, at most {wait}. `respond-async`: answer at once. \
                      Anything else is ignored (RFC 7240)."
            ),
            json!({ "type": "string" }),
            json!("wait=5"),
        ),
        (
            "Operation-Timeout",
            "header Operation-Timeout",
            &format!(
                "How long the operation may take before it fails with `deadline-exceeded`, at most {} s. Units are \
                      added up, as in `1h 30m`; the pattern has the plain forms.",
                timeout_max.as_secs()
            ),
            json!({ "type": "string", "pattern": plain_durations(timeout_max) }),
            json!("30s"),
        ),
        (
            "Idempotency-Key",
            "header Idempotency-Key",
            "A key that the caller makes for this request, so that it is accepted once however often it is sent: with the \
             same key and the same request, the answer tells of the same operation. In double quotes, or bare.",
            json!({ "type": "string", "pattern": r#"^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~]{1,255})$"# }),
            json!("\"8e03978e-40d5-43e8-bc93-6894a57f9324\""),
        ),
        (
            "Callback-Url",
            "header Callback-Url",
            "Where to send the outcome, signed as Standard Webhooks 1.0 want it. Only public addresses, unless the service \
             is told otherwise; needs a secret in its configuration.",
            json!({ "type": "string", "format": "uri" }),
            Value::Null,
        ),
        (
            "traceparent",
            "header traceparent",
            "W3C Trace Context, passed on to the provider; ignored if it is none.",
            json!({ "type": "string" }),
            json!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ),
        (
            "redirect",
            "query redirect",
            "`false`: 200 in place of 303 for an operation that has succeeded.",
            json!({ "type": "boolean", "default": true }),
            json!(false),
        ),
        (
            "If-None-Match",
            "header If-None-Match",
            "The `ETag` of the operation as it was: 304 if it still is.",
            json!({ "type": "string" }),
            json!("\"ZTG5NwpqbcWHPsLHrIJTpQ\""),
        ),
        ("kindFilter", "query kind", "Only operations of this kind.", json!({ "type": "string" }), json!("echo")),
        (
            "status",
            "query status",
            "Only operations of this status.",
            json!({ "type": "string", "enum": STATUSES }),
            json!("Running"),
        ),
        ("pageSize", "query pageSize", &format!("How many at most; more than {page} are not given."), count, json!(20)),
        (
            "pageToken",
            "query pageToken",
            "`nextPageToken` of the page before, with the same `kind` and `status`.",
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{32}$" }),
            Value::Null,
        ),
        ("after", "query after", "Only events after that of this number.", number.clone(), json!(2)),
        (
            "Last-Event-ID",
            "header Last-Event-ID",
            "For streams: the number of the last event that was had.",
            json!({ "type": "string" }),
            json!("2"),
        ),
        ("lastEventId", "query lastEventId", "The same for those who cannot set a header.", number, json!(2)),
    ];
    given
        .into_iter()
        .map(|(name, place, about, schema, example)| {
            let (place, field) = place.split_once(' ').unwrap_or_default();
            let mut parameter = json!({ "name": field, "in": place, "description": about, "schema": schema });
            if place == "path" {
                parameter["required"] = true.into();
            }
            if !example.is_null() {
                parameter["example"] = example;
            }
            (name.to_owned(), parameter)
        })
        .collect()
}

fn kind() -> Value {
    json!({ "type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$" })
}

/// Numbers with one unit that are surely below `longest`: those of so many digits.
fn plain_durations(longest: Duration) -> String {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let forms = units.into_iter().filter_map(|(name, milliseconds)| {
        let most = longest.as_millis() / milliseconds;
        let digits = (most + 1).checked_ilog10().filter(|digits| *digits > 0)?;
        Some(format!("[1-9][0-9]{{0,{}}}{name}", digits - 1))
    });
    format!("^({})$", forms.collect::<Vec<_>>().join("|"))
}

/// The headers of answers.
pub(super) fn headers() -> Map<String, Value> {
    let url = |path: &str| json!(format!("{EXAMPLE_BASE}/v1/operations/{EXAMPLE_ID}{path}"));
    let text = || json!({ "type": "string" });
    let uri = || json!({ "type": "string", "format": "uri-reference" });
    let given = [
        ("Location", "Where to go on.", uri(), url("")),
        ("Operation-Location", "The URL of the operation.", uri(), url("")),
        ("Content-Location", "The URL of the result.", uri(), url("/result")),
        (
            "Retry-After",
            "In how many seconds it is worth asking again.",
            json!({ "type": "integer", "minimum": 1 }),
            json!(3),
        ),
        ("ETag", "Tells this state of the operation from others.", text(), json!("\"ZTG5NwpqbcWHPsLHrIJTpQ\"")),
        ("Preference-Applied", "What of `Prefer` was done.", text(), json!("wait=5")),
        (
            "Link",
            "`rel=\"next\"` or `rel=\"status\"` (RFC 8288).",
            text(),
            json!("</v1/operations?pageSize=20>; rel=\"next\""),
        ),
        (
            "RateLimit-Policy",
            "The caller's quotas of requests and of open operations (draft-ietf-httpapi-ratelimit-headers).",
            text(),
            json!("\"rate\";q=50000;w=10, \"open\";q=100000;qu=\"concurrent-requests\""),
        ),
        (
            "RateLimit",
            "What is left of `rate`, and in how many seconds there is more.",
            text(),
            json!("\"rate\";r=49999;t=1"),
        ),
        ("WWW-Authenticate", "How to say who asks.", text(), json!("Bearer")),
        ("Cache-Control", "Answers change from one moment to the next.", json!({ "const": "no-store" }), Value::Null),
        ("X-Content-Type-Options", "What a provider made is what it says.", json!({ "const": "nosniff" }), Value::Null),
        ("Content-Security-Policy", "What a provider made must not run as a page.", text(), Value::Null),
    ];
    given
        .into_iter()
        .flat_map(|(name, about, schema, example)| {
            let mut header = json!({ "description": about, "schema": schema });
            if !example.is_null() {
                header["example"] = example;
            }
            let mut always = header.clone();
            always["required"] = true.into();
            [(name.to_owned(), always), (format!("{name}.optional"), header)]
        })
        .collect()
}

/// The headers that every answer has.
pub(super) const COMMON_HEADERS: [&str; 3] = ["Cache-Control", "X-Content-Type-Options", "Content-Security-Policy"];
