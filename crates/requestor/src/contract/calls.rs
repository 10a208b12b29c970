//! Every call of the HTTP interface. A test holds this against the router.

use super::problems::ProblemType;

/// A call: a method of a path.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// The name by which clients that are generated from the document know it.
    pub(super) id: &'static str,
    pub(super) group: &'static str,
    pub(super) summary: &'static str,
    pub(super) about: &'static str,
    /// Names in `fields::parameters`.
    pub(super) parameters: Vec<&'static str>,
    /// Whether it takes JSON.
    pub(super) takes_body: bool,
    pub(super) answers: Vec<Answer>,
    pub(super) problems: Vec<&'static ProblemType>,
    /// Whether an answer may be the problem that the operation has ended with, with the status of that.
    pub(super) tells_outcome: bool,
    /// Whether each answer tells what is left of the caller's quotas.
    pub(super) counts: bool,
}

/// An answer that is no problem.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: &'static str,
    pub(super) about: &'static str,
    /// Names of headers; with a question mark those that are not always there.
    pub(super) headers: &'static [&'static str],
    pub(super) content: Content,
}

/// What an answer holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Nothing,
    /// Whatever the provider has made.
    Result,
    /// Events: JSON of this schema, or a stream.
    Events(&'static str, &'static [&'static str]),
    /// JSON of this schema, with these examples.
    Json(&'static str, &'static [&'static str]),
    Text(&'static str),
}

const FOLLOW: &str = "JSON, in pages; or as they happen, with `Accept: text/event-stream` as server-sent events and with \
    `Upgrade: websocket` as messages of a WebSocket. A stream begins with a `snapshot` and goes on after the event of \
    `Last-Event-ID`, or over WebSocket after that of a first message `{\"since\": N}`.";
const ACCEPTED: Content = Content::Json("Operation", &["accepted"]);
const ANY: Content = Content::Json("Operation", &["running", "failed", "canceled"]);
/// In the order in which they are shown.
pub(super) const GROUPS: &[(&str, &str)] = &[
    ("Requests", "Ask for something."),
    ("Operations", "Learn what became of it, cancel it, try it again."),
    ("Service", "Whether it is well, and what it can do."),
];

impl Call {
    fn new(method: &'static str, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self { method, path, id, group: "Operations", summary, ..Self::default() }.fails(&["internal-error"])
    }

    fn in_group(mut self, group: &'static str) -> Self {
        self.group = group;
        self
    }

    fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    fn takes(mut self, parameters: &[&'static str]) -> Self {
        self.parameters.extend(parameters);
        self
    }

    fn answers(
        mut self,
        status: &'static str,
        about: &'static str,
        headers: &'static [&'static str],
        content: Content,
    ) -> Self {
        self.answers.push(Answer { status, about, headers, content });
        self
    }

    fn fails(mut self, problems: &[&'static str]) -> Self {
        self.problems.extend(problems.iter().filter_map(|name| ProblemType::named(name)));
        self
    }

    /// Whether the caller must have a key, if there are any.
    pub(super) fn needs_key(&self) -> bool {
        self.path.starts_with("/v1/")
    }

    /// Of a caller who must have a key, from the store.
    fn of_caller(self) -> Self {
        self.fails(&["unauthorized", "store-unavailable"])
    }

    fn of_operation(self) -> Self {
        self.takes(&["id"]).of_caller().fails(&["bad-request", "not-found", "gone"])
    }

    fn follows(self) -> Self {
        self.takes(&["after", "pageSize", "Last-Event-ID", "lastEventId"])
            .answers("101", "It is a WebSocket from now on.", &[], Content::Nothing)
            .fails(&["bad-request", "quota-exceeded", "overloaded", "wrong-origin", "bad-upgrade"])
    }

    fn submits(mut self) -> Self {
        (self.takes_body, self.tells_outcome, self.counts) = (true, true, true);
        self.in_group("Requests")
            .takes(&[
                "kind",
                "priority",
                "Prefer",
                "Operation-Timeout",
                "Idempotency-Key",
                "Callback-Url",
                "traceparent",
            ])
            .of_caller()
            .fails(&["bad-request", "not-json", "hostile-json", "unknown-kind", "too-slow", "too-large"])
            .fails(&["unsupported-media-type", "invalid-request", "idempotency-key-in-flight"])
            .fails(&["idempotency-key-reused", "callback-refused", "quota-exceeded"])
    }
}

/// All calls, in the order in which they are shown.
pub(super) fn calls() -> Vec<Call> {
    [requests(), status(), control(), service()].into_iter().flatten().collect()
}

fn requests() -> Vec<Call> {
    vec![
        Call::new("POST", "/v1/requests/{kind}", "submitRequest", "Ask for something")
            .about(
                "The request is stored before it is answered, and reaches exactly one outcome by its deadline. With \
                 `Prefer: wait=N` the answer is the outcome if there is one within N seconds.",
            )
            .submits()
            .answers(
                "202",
                "It is accepted. Ask at `Location` for its outcome, not before `Retry-After`.",
                &["Location", "Operation-Location", "Retry-After?", "Preference-Applied?"],
                ACCEPTED,
            )
            .answers(
                "200",
                "It has succeeded within the time to wait. This is its result.",
                &["Content-Location", "Operation-Location", "Preference-Applied?"],
                Content::Result,
            ),
        Call::new("POST", "/v1/call/{kind}", "callSynchronously", "Ask, and wait for the outcome")
            .about(
                "For callers who know synchronous calls only. Waits as long as `Prefer: wait=N` says, or as long as the \
                 service lets anybody wait. What takes longer goes on all the same.",
            )
            .submits()
            .answers(
                "200",
                "It has succeeded. This is its result.",
                &["Content-Location", "Operation-Location", "Preference-Applied?"],
                Content::Result,
            )
            .fails(&["overloaded", "not-in-time"]),
    ]
}

fn status() -> Vec<Call> {
    vec![
        Call::new("GET", "/v1/operations/{id}", "getOperation", "Ask how far an operation is")
            .about("With `Prefer: wait=N` the answer comes when the operation has ended, or after N seconds.")
            .takes(&["redirect", "Prefer", "If-None-Match"])
            .answers(
                "200",
                "It is open, or was canceled, or failed; or has succeeded, if no redirect is wanted.",
                &["ETag", "Operation-Location", "Retry-After?", "Preference-Applied?"],
                ANY,
            )
            .answers(
                "303",
                "It has succeeded. Its result is at `Location`.",
                &["Location", "Operation-Location", "Preference-Applied?"],
                Content::Json("Operation", &["succeeded"]),
            )
            .answers(
                "304",
                "It is as `If-None-Match` says.",
                &["ETag", "Operation-Location", "Retry-After?", "Preference-Applied?"],
                Content::Nothing,
            )
            .of_operation(),
        Call { tells_outcome: true, ..Call::new("GET", "/v1/operations/{id}/result", "getResult", "Get the result") }
            .about("If the operation failed or was canceled, this is its problem, with the problem's own status.")
            .answers("200", "What the provider has made, as it made it.", &[], Content::Result)
            .of_operation()
            .fails(&["not-finished"]),
        Call::new("GET", "/v1/operations/{id}/events", "getEvents", "Follow an operation")
            .about(FOLLOW)
            .answers(
                "200",
                "What has happened, numbered from 1 without a gap. `Link` leads to what follows.",
                &["Link?"],
                Content::Events("EventPage", &["events"]),
            )
            .answers("204", "The operation has ended, and all was told before.", &[], Content::Nothing)
            .follows()
            .of_operation(),
        Call::new("GET", "/v1/events", "getAllEvents", "Follow all operations")
            .about(FOLLOW)
            .answers(
                "200",
                "What has happened to the caller's operations, in one order. `Link` leads to what follows.",
                &["Link?"],
                Content::Events("LogPage", &["log"]),
            )
            .follows()
            .of_caller(),
        Call::new("GET", "/v1/operations", "listOperations", "List operations, newest first")
            .about("Those of the caller; an admin sees everybody's.")
            .takes(&["kindFilter", "status", "pageSize", "pageToken"])
            .answers(
                "200",
                "Some operations. `Link` leads to the next page, if there is one.",
                &["Link?"],
                Content::Json("OperationPage", &["operations"]),
            )
            .of_caller()
            .fails(&["bad-request"]),
    ]
}

fn control() -> Vec<Call> {
    let cancel = |method, path, id| {
        Call::new(method, path, id, "Cancel an operation")
            .about(
                "Asks its provider not to carry it out. Only the provider's answer ends it: as `Canceled` if its effect \
                 has not happened and will not, as it did end otherwise. The record stays.",
            )
            .answers(
                "202",
                "Its provider is asked.",
                &["Location", "Operation-Location", "Retry-After"],
                Content::Json("Operation", &["running"]),
            )
            .answers("200", "It had ended before.", &["ETag", "Location", "Operation-Location"], ANY)
            .of_operation()
    };
    vec![
        cancel("DELETE", "/v1/operations/{id}", "deleteOperation"),
        cancel("POST", "/v1/operations/{id}/cancel", "cancelOperation"),
        Call::new("POST", "/v1/operations/{id}/retry", "retryOperation", "Try a failed operation again")
            .about("It is open again under the same URL, for as long as `Operation-Timeout` says.")
            .takes(&["Operation-Timeout"])
            .answers("202", "It is open again.", &["Location", "Operation-Location", "Retry-After"], ACCEPTED)
            .of_operation()
            .fails(&["not-failed", "too-late-to-retry"]),
    ]
}

fn service() -> Vec<Call> {
    let get = |path, id, summary| Call::new("GET", path, id, summary).in_group("Service");
    let json = Content::Json("Document", &[]);
    vec![
        get("/v1/kinds", "listKinds", "List what can be asked for")
            .answers("200", "All kinds, by name.", &[], Content::Json("KindPage", &["kinds"]))
            .fails(&["unauthorized"]),
        get("/v1/kinds/{kind}", "getKind", "Get one kind, with who serves it")
            .takes(&["kind"])
            .answers("200", "The kind.", &[], Content::Json("Kind", &["kind"]))
            .fails(&["unauthorized", "bad-request", "unknown-kind"]),
        get("/healthz", "isHealthy", "Ask whether the process answers").answers(
            "200",
            "It does.",
            &[],
            Content::Text("text/plain"),
        ),
        get("/readyz", "isReady", "Ask whether it can reach the broker")
            .answers("200", "It can.", &[], Content::Text("text/plain"))
            .fails(&["not-ready"]),
        get("/metrics", "getMetrics", "Get measurements").answers(
            "200",
            "In the text format of Prometheus.",
            &[],
            Content::Text("text/plain"),
        ),
        get("/openapi.json", "getOpenapi", "Get this document").answers("200", "OpenAPI 3.1.", &[], json),
        get("/asyncapi.json", "getAsyncapi", "Get the contract with providers").answers(
            "200",
            "AsyncAPI 3.0: messages over AMQP.",
            &[],
            json,
        ),
        get("/docs", "getDocs", "Read this document").answers("200", "A page.", &[], Content::Text("text/html")),
        get("/", "getRoot", "Go to the page").answers("307", "To `/docs`.", &["Location"], Content::Nothing),
    ]
}
