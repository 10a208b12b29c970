//! Every call of the HTTP interface. A test holds this against the router.

use super::call::{Call, Content};

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
    let cancel = |method, path, id, summary| {
        Call::new(method, path, id, summary)
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
        cancel("DELETE", "/v1/operations/{id}", "deleteOperation", "Cancel an operation"),
        cancel("POST", "/v1/operations/{id}/cancel", "cancelOperation", "Cancel an operation, without DELETE"),
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
        get("/", "getDashboard", "Watch operations").answers("200", "A page.", &[], Content::Text("text/html")),
        get("/dashboard.js", "getDashboardScript", "Get the script of that page").answers(
            "200",
            "A script.",
            &[],
            Content::Text("text/javascript"),
        ),
        get("/dashboard.css", "getDashboardStyle", "Get its style").answers(
            "200",
            "A style sheet.",
            &[],
            Content::Text("text/css"),
        ),
    ]
}
