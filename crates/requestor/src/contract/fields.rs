//! Parameters of calls.

use crate::config::Config;
use crate::store::STATUSES;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// An operation's id in examples.
pub(super) const EXAMPLE_ID: &str = "0199a3b2-7c1e-7f43-9d5a-2b8e4c6f1a07";

/// A parameter, and the name by which calls refer to it.
struct Field {
    known_as: &'static str,
    document: Value,
}

fn field(place: &str, name: &'static str, schema: Value, about: impl Into<String>) -> Field {
    let mut document = json!({ "name": name, "in": place, "description": about.into(), "schema": schema });
    if place == "path" {
        document["required"] = true.into();
    }
    Field { known_as: name, document }
}

impl Field {
    fn like(mut self, example: impl Into<Value>) -> Self {
        self.document["example"] = example.into();
        self
    }

    fn known_as(self, name: &'static str) -> Self {
        Self { known_as: name, ..self }
    }
}

/// All parameters, by the names that calls have for them.
pub(super) fn parameters(config: &Config) -> Map<String, Value> {
    let fields = of_requests(config).into_iter().chain(of_operations(config)).chain(of_events());
    fields.map(|field| (field.known_as.to_owned(), field.document)).collect()
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn of_requests(config: &Config) -> Vec<Field> {
    let (wait, timeout) = (config.http.wait_max.as_secs(), config.operations.timeout_max);
    let prefer = format!(
        "`wait=N`: how many seconds to wait for the outcome, at most {wait}. `respond-async`: answer at once. Anything else \
         is ignored (RFC 7240)."
    );
    let longest = timeout.as_secs();
    let operation_timeout = format!(
        "How long the operation may take before it fails with `deadline-exceeded`, at most {longest} s. The pattern has \
         the plain forms; `500ms` and `1h 30m` are understood, too."
    );
    let key = r#"^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~]{1,255})$"#;
    vec![
        field("path", "kind", kind(), "What is asked for; `/v1/kinds` lists what there is.").like("echo"),
        field(
            "query",
            "priority",
            json!({ "type": "integer", "minimum": 0, "maximum": 9 }),
            "More urgent requests wait less; brokers before RabbitMQ 4 take no notice.",
        )
        .like(5),
        field("header", "Prefer", text(), prefer).like("wait=5"),
        field(
            "header",
            "Operation-Timeout",
            json!({ "type": "string", "pattern": plain_durations(timeout) }),
            operation_timeout,
        )
        .like("30s"),
        field(
            "header",
            "Idempotency-Key",
            json!({ "type": "string", "pattern": key }),
            "A key that the caller makes for this request, so that it is accepted once however often it is sent: with the \
             same key and the same request, the answer tells of the same operation. In double quotes, or bare.",
        )
        .like("\"8e03978e-40d5-43e8-bc93-6894a57f9324\""),
        field(
            "header",
            "Callback-Url",
            json!({ "type": "string", "format": "uri" }),
            "Where to send the outcome, signed as Standard Webhooks 1.0 want it. Only public addresses, unless the service \
             is told otherwise; needs a secret in its configuration.",
        ),
        field("header", "traceparent", text(), "W3C Trace Context, passed on to the provider; ignored if it is none.")
            .like("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]
}

fn of_operations(config: &Config) -> Vec<Field> {
    let page = config.http.page_size_max;
    vec![
        field("path", "id", json!({ "type": "string", "format": "uuid" }), "The operation's id.").like(EXAMPLE_ID),
        field(
            "query",
            "redirect",
            json!({ "type": "boolean", "default": true }),
            "`false`: 200 in place of 303 for an operation that has succeeded.",
        )
        .like(false),
        field("header", "If-None-Match", text(), "The `ETag` of the operation as it was: 304 if it still is.")
            .like("\"ZTG5NwpqbcWHPsLHrIJTpQ\""),
        field("query", "kind", text(), "Only operations of this kind.").like("echo").known_as("kindFilter"),
        field("query", "status", json!({ "type": "string", "enum": STATUSES }), "Only operations of this status.")
            .like("Running"),
        field(
            "query",
            "pageSize",
            json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
            format!("How many at most; more than {page} are not given."),
        )
        .like(20),
        field(
            "query",
            "pageToken",
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{32}$" }),
            "`nextPageToken` of the page before, with the same `kind` and `status`.",
        ),
    ]
}

fn of_events() -> Vec<Field> {
    let number = || json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX });
    vec![
        field("query", "after", number(), "Only events after that of this number.").like(2),
        field("header", "Last-Event-ID", text(), "For streams: the number of the last event that was had.").like("2"),
        field("query", "lastEventId", number(), "The same for those who cannot set a header.").like(2),
    ]
}

fn kind() -> Value {
    json!({ "type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$" })
}

/// Numbers with one unit that are surely below `longest`: those of so many digits.
fn plain_durations(longest: Duration) -> String {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let forms = units.into_iter().filter_map(|(name, seconds)| {
        let most = longest.as_secs() / seconds;
        let digits = (most + 1).checked_ilog10().filter(|digits| *digits > 0)?;
        Some(if digits == 1 { format!("[1-9]{name}") } else { format!("[1-9][0-9]{{0,{}}}{name}", digits - 1) })
    });
    format!("^({})$", forms.collect::<Vec<_>>().join("|"))
}
