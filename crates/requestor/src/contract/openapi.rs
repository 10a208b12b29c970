//! The HTTP interface as an OpenAPI document.

use super::call::{Answer, Call, Content};
use super::calls::{GROUPS, calls};
use super::headers::COMMON_HEADERS;
use super::problems::ProblemType;
use super::{examples, fields, headers, schemas};
use crate::config::Config;
use serde_json::{Map, Value, json};
use shared::problem;
use std::collections::BTreeMap;

const ABOUT: &str = "Asynchronous request-reply. A request is accepted at once, and reaches exactly one outcome by its \
    deadline: its result, or a problem that says why there is none. Ask for the outcome at the operation's URL, wait for it \
    there, or call synchronously.\n\nErrors are problem documents (RFC 9457). Their `type` is stable; see the list of types.";

/// The document of a service with this configuration.
pub(super) fn document(config: &Config) -> Value {
    let groups: Vec<_> = GROUPS.iter().map(|(name, about)| json!({ "name": name, "description": about })).collect();
    let mut components = json!({
        "schemas": schemas::answers(),
        "parameters": fields::parameters(config),
        "headers": headers::all(),
        "examples": examples::answers(),
        "links": links(),
        "securitySchemes": { "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key. A service that has none takes requests without, and everybody is one caller.",
        } },
    });
    if let Some(schemas) = components["schemas"].as_object_mut() {
        schemas.extend(schemas::inlined_payloads());
        schemas.insert("Document".into(), json!({ "type": "object" }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Requestor",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": groups,
        "paths": paths(config),
        "webhooks": { "outcome": { "post": outcome_webhook() } },
        "components": components,
    })
}

fn paths(config: &Config) -> BTreeMap<&'static str, Map<String, Value>> {
    let mut paths = BTreeMap::<_, Map<_, _>>::new();
    for call in calls() {
        paths.entry(call.path).or_default().insert(call.method.to_lowercase(), operation(&call, config));
    }
    paths
}

fn operation(call: &Call, config: &Config) -> Value {
    let parameters: Vec<_> = call.parameters.iter().map(|name| reference("parameters", name)).collect();
    let mut operation = json!({
        "operationId": call.id,
        "tags": [call.group],
        "summary": call.summary,
        "responses": responses(call),
        "security": security(call, config),
    });
    if !call.about.is_empty() {
        operation["description"] = call.about.into();
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if call.takes_body {
        let limit = config.http.body_bytes_max;
        operation["requestBody"] = json!({
            "required": true,
            "description": format!(
                "JSON that fits the kind's schema, at most {limit} bytes. The schemas of the kinds that come with the \
                 product are among this document's, such as `order.place.request`."
            ),
            "content": { "application/json": { "schema": {}, "examples": examples::requests() } },
        });
    }
    operation
}

/// Where there are no keys, one that is sent makes no difference.
fn security(call: &Call, config: &Config) -> Value {
    match (call.needs_key(), config.callers.is_empty()) {
        (false, _) => json!([]),
        (true, true) => json!([{ "key": [] }, {}]),
        (true, false) => json!([{ "key": [] }]),
    }
}

fn responses(call: &Call) -> Map<String, Value> {
    let mut responses: Map<_, _> =
        call.answers.iter().map(|answer| (answer.status.to_owned(), success(call, answer))).collect();
    let mut by_status = BTreeMap::<u16, Vec<_>>::new();
    for problem in &call.problems {
        problem.statuses.iter().for_each(|status| by_status.entry(*status).or_default().push(*problem));
    }
    responses.extend(by_status.iter().map(|(status, problems)| (status.to_string(), failure(call, problems))));
    if call.tells_outcome {
        responses.extend(["4XX", "5XX"].map(|range| (range.to_owned(), outcome(call))));
    }
    responses
}

fn success(call: &Call, answer: &Answer) -> Value {
    let counted: &[&str] = if call.counts { &["RateLimit", "RateLimit-Policy"] } else { &[] };
    let mut response =
        json!({ "description": answer.about, "headers": headers(answer.headers.iter().chain(counted).copied()) });
    let (media_type, content) = match answer.content {
        Content::Nothing => return response,
        Content::Text(media_type) => (media_type, json!({ "schema": { "type": "string" } })),
        Content::Events(schema, names) => {
            let pages = json!({ "schema": reference("schemas", schema), "examples": named(names) });
            let stream = json!({ "schema": { "type": "string" } });
            response["content"] = json!({ "application/json": pages, "text/event-stream": stream });
            return response;
        }
        Content::Result => ("*/*", json!({ "schema": {} })),
        Content::Json(schema, examples) => {
            let mut content = json!({ "schema": reference("schemas", schema) });
            if !examples.is_empty() {
                content["examples"] = named(examples).into();
            }
            ("application/json", content)
        }
    };
    response["content"] = json!({ media_type: content });
    if matches!(answer.content, Content::Json("Operation", _)) && call.method != "GET" {
        let links = links().into_iter().map(|(name, _)| (name.clone(), reference("links", &name)));
        response["links"] = links.collect::<Map<_, _>>().into();
    }
    response
}

fn named(examples: &[&str]) -> Map<String, Value> {
    examples.iter().map(|name| ((*name).to_owned(), reference("examples", name))).collect()
}

fn failure(call: &Call, problems: &[&ProblemType]) -> Value {
    let about: Vec<_> = problems.iter().map(|problem| format!("`{}`: {}.", problem.name, problem.when)).collect();
    // An operation may have ended with a problem of any type, and of this status.
    let always = |name: &str| !call.tells_outcome && problems.iter().all(|problem| problem.headers.contains(&name));
    let any = problems.iter().flat_map(|problem| problem.headers).copied();
    let mut names: Vec<String> =
        any.map(|name| if always(name) { name.to_owned() } else { format!("{name}?") }).collect();
    // Who is not known has no quota.
    if call.counts && !problems.iter().any(|problem| problem.name == "unauthorized") {
        names.extend(["RateLimit?", "RateLimit-Policy?"].map(str::to_owned));
    }
    let types: Vec<_> = problems.iter().map(|problem| problem.uri()).collect();
    let mut schema = reference("schemas", "Problem");
    if !call.tells_outcome {
        schema["properties"] = json!({ "type": { "enum": types } });
    }
    let examples: Map<_, _> = problems
        .iter()
        .map(|problem| (problem.name.rsplit('#').next().unwrap_or_default(), problem.example()))
        .map(|(name, value)| (name.to_owned(), json!({ "value": value })))
        .collect();
    json!({
        "description": about.join("\n"),
        "headers": headers(names.iter().map(String::as_str)),
        "content": { problem::CONTENT_TYPE: { "schema": schema, "examples": examples } },
    })
}

/// What is sent to a `Callback-Url`.
fn outcome_webhook() -> Value {
    let header = |name, about| json!({ "name": name, "in": "header", "required": true, "description": about, "schema": { "type": "string" } });
    json!({
        "operationId": "receiveOutcome",
        "summary": "Told to `Callback-Url` when an operation has ended",
        "description": "Signed as Standard Webhooks 1.0 want it; libraries verify it. Sent again until it is answered with \
            2xx, or with 410 by a receiver that wants no more. `Retry-After` is respected, redirects are not followed.",
        "parameters": [
            header("webhook-id", "The same in each attempt to tell one outcome."),
            header("webhook-timestamp", "When it was sent, in seconds since 1970."),
            header("webhook-signature", "`v1,` and the base64 of HMAC-SHA256; one for each secret."),
        ],
        "requestBody": { "required": true, "content": { "application/json": {
            "schema": reference("schemas", "WebhookDocument"),
        } } },
        "responses": {
            "2XX": { "description": "The receiver has it." },
            "410": { "description": "The receiver wants no more." },
        },
        "security": [],
    })
}

fn outcome(call: &Call) -> Value {
    let names: &[&str] = match call.counts {
        true => &["Content-Location?", "Operation-Location?", "Preference-Applied?", "RateLimit?", "RateLimit-Policy?"],
        false => &[],
    };
    json!({
        "description": "The problem that the operation has ended with, of any type and with the problem's own status.",
        "headers": headers(names.iter().copied()),
        "content": { problem::CONTENT_TYPE: {
            "schema": reference("schemas", "Problem"),
            "examples": { "outcome": reference("examples", "outcome") },
        } },
    })
}

fn headers<'a>(names: impl Iterator<Item = &'a str>) -> Map<String, Value> {
    let named = names.map(|name| match name.strip_suffix('?') {
        Some(name) => (name.to_owned(), reference("headers", &format!("{name}.optional"))),
        None => (name.to_owned(), reference("headers", name)),
    });
    named.chain(COMMON_HEADERS.map(|name| (name.to_owned(), reference("headers", name)))).collect()
}

/// What can be done with an operation that an answer tells of.
fn links() -> Map<String, Value> {
    ["getOperation", "getResult", "getEvents", "cancelOperation", "deleteOperation", "retryOperation"]
        .map(|id| (id.to_owned(), json!({ "operationId": id, "parameters": { "id": "$response.body#/id" } })))
        .into_iter()
        .collect()
}

fn reference(section: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{section}/{name}") })
}
