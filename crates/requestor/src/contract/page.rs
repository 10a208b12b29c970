//! The documents as a page to be read: no script, nothing from elsewhere.

use super::problems::PROBLEMS;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// What the page may load: its own style, and nothing else.
pub(super) fn policy() -> String {
    let hash = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The page of a service that is reached at `base`.
pub(super) fn html(openapi: &Value, asyncapi: &Value, base: &str) -> String {
    let (title, about) = (text(&openapi["info"]["title"]), text(&openapi["info"]["description"]));
    let calls = calls(openapi);
    let groups = openapi["tags"].as_array().into_iter().flatten();
    let (mut index, mut body) = (String::new(), String::new());
    for group in groups {
        let (name, about) = (text(&group["name"]), text(&group["description"]));
        add(&mut index, format!("<h2>{name}</h2>"));
        add(&mut body, format!("<h2>{name}</h2><p>{}</p>", marked(about)));
        for call in calls.iter().filter(|call| call.operation["tags"][0] == name) {
            add(&mut index, format!("<a href=\"#{}\">{}</a>", call.id(), marked(text(&call.operation["summary"]))));
            add(&mut body, call.html(openapi, base));
        }
    }
    add(
        &mut index,
        "<h2>More</h2><a href=\"#problems\">Problem types</a><a href=\"#payloads\">Payloads</a>\
         <a href=\"#messages\">Messages</a>",
    );
    add(&mut index, "<a href=\"/openapi.json\">openapi.json</a><a href=\"/asyncapi.json\">asyncapi.json</a>");
    add(&mut body, problems());
    add(&mut body, payloads(openapi));
    add(&mut body, messages(asyncapi));
    let about: Vec<_> = about.split("\n\n").map(|part| format!("<p>{}</p>", marked(part))).collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body><nav>{index}</nav><main>\
         <h1>{title}</h1>{}{body}</main></body></html>",
        about.concat()
    )
}

struct Call<'a> {
    method: String,
    path: &'a str,
    operation: &'a Value,
}

fn calls(openapi: &Value) -> Vec<Call<'_>> {
    let known = super::calls::calls();
    let find = |call: &super::call::Call| {
        let (path, item) = openapi["paths"].as_object()?.get_key_value(call.path)?;
        Some(Call { method: call.method.to_owned(), path, operation: &item[call.method.to_lowercase()] })
    };
    known.iter().filter_map(find).collect()
}

impl Call<'_> {
    fn id(&self) -> &str {
        text(&self.operation["operationId"])
    }

    fn html(&self, openapi: &Value, base: &str) -> String {
        let Self { method, path, operation } = self;
        let parameters: Vec<_> =
            operation["parameters"].as_array().into_iter().flatten().map(|given| resolved(openapi, given)).collect();
        let mut html = format!(
            "<article id=\"{}\"><h3>{}</h3><div class=\"call\"><span class=\"method {method}\">{method}</span>\
             <code>{}</code></div><p>{}</p>",
            self.id(),
            marked(text(&operation["summary"])),
            escaped(path),
            marked(text(&operation["description"]))
        );
        if !parameters.is_empty() {
            add(&mut html, "<h4>Parameters</h4><table><tr><th>name</th><th>in</th><th>what</th></tr>");
            parameters.iter().for_each(|parameter| add(&mut html, parameter_row(parameter)));
            add(&mut html, "</table>");
        }
        if let Some(about) = operation["requestBody"]["description"].as_str() {
            add(&mut html, format!("<h4>Body</h4><p>{}</p>", marked(about)));
        }
        add(&mut html, "<h4>Answers</h4><table><tr><th>status</th><th>what</th><th>headers</th></tr>");
        for (status, response) in operation["responses"].as_object().into_iter().flatten() {
            add(&mut html, answer_row(status, response));
        }
        add(
            &mut html,
            format!("</table><h4>Example</h4><pre>{}</pre></article>", escaped(&self.curl(&parameters, base))),
        );
        html
    }

    /// A command that makes this call.
    fn curl(&self, parameters: &[&Value], base: &str) -> String {
        let mut path = self.path.to_owned();
        for parameter in parameters.iter().filter(|parameter| parameter["in"] == "path") {
            path = path.replace(&format!("{{{}}}", text(&parameter["name"])), text(&parameter["example"]));
        }
        let mut command = format!("curl -i {base}{path}");
        if self.method != "GET" && self.operation["requestBody"].is_null() || self.method == "DELETE" {
            let _ = write!(command, " -X {}", self.method);
        }
        if !self.operation["requestBody"].is_null() {
            let body = &self.operation["requestBody"]["content"]["application/json"]["examples"]["echo"]["value"];
            let _ = write!(command, " \\\n  -H 'Content-Type: application/json' -d '{body}'");
        }
        command
    }
}

fn parameter_row(parameter: &Value) -> String {
    let schema = &parameter["schema"];
    let limits = schema.as_object().into_iter().flatten().map(|(name, value)| match value.as_str() {
        Some(text) if name == "type" => text.to_owned(),
        Some(text) => format!("{name} {text}"),
        None => format!("{name} {value}"),
    });
    let example = match &parameter["example"] {
        Value::Null => String::new(),
        Value::String(example) => format!(" Such as <code>{}</code>.", escaped(example)),
        example => format!(" Such as <code>{example}</code>."),
    };
    format!(
        "<tr><td><code>{}</code></td><td>{}</td><td>{}{example}<br><span class=\"quiet\">{}</span></td></tr>",
        escaped(text(&parameter["name"])),
        text(&parameter["in"]),
        marked(text(&parameter["description"])),
        escaped(&limits.collect::<Vec<_>>().join(" · "))
    )
}

fn answer_row(status: &str, response: &Value) -> String {
    let headers = response["headers"].as_object().into_iter().flatten();
    let headers = headers.map(|(name, _)| name.as_str()).filter(|name| !super::headers::COMMON_HEADERS.contains(name));
    let headers: Vec<_> = headers.map(|name| format!("<code>{name}</code>")).collect();
    let content = response["content"].as_object().into_iter().flatten().map(|(media_type, _)| media_type.as_str());
    format!(
        "<tr><td><code>{status}</code></td><td>{}<br><span class=\"quiet\">{}</span></td><td>{}</td></tr>",
        marked(text(&response["description"])),
        escaped(&content.collect::<Vec<_>>().join(", ")),
        headers.join(" ")
    )
}

fn problems() -> String {
    let mut html =
        "<h2 id=\"problems\">Problem types</h2><table><tr><th>type</th><th>status</th><th>when</th></tr>".to_owned();
    for problem in PROBLEMS {
        let statuses: Vec<_> = problem.statuses.iter().map(u16::to_string).collect();
        let (name, statuses) = (problem.name.rsplit('#').next().unwrap_or_default(), statuses.join(", "));
        add(
            &mut html,
            format!(
                "<tr><td><code title=\"{}\">{name}</code></td><td>{statuses}</td><td>{}</td></tr>",
                problem.uri(),
                marked(problem.when)
            ),
        );
    }
    html + "</table>"
}

fn payloads(openapi: &Value) -> String {
    let mut html = "<h2 id=\"payloads\">Payloads</h2><p>JSON Schemas of what is sent and answered.</p>".to_owned();
    for (name, schema) in openapi["components"]["schemas"].as_object().into_iter().flatten() {
        let about = text(&schema["description"]).lines().next().unwrap_or_default();
        let pretty = serde_json::to_string_pretty(schema).unwrap_or_default();
        add(
            &mut html,
            format!(
                "<details><summary><code>{name}</code> <span class=\"quiet\">{}</span></summary><pre>{}</pre></details>",
                marked(about),
                escaped(&pretty)
            ),
        );
    }
    html
}

fn messages(asyncapi: &Value) -> String {
    let about = marked(text(&asyncapi["info"]["description"]));
    let mut html = format!(
        "<h2 id=\"messages\">Messages over RabbitMQ</h2><p>{about}</p><table><tr><th>queue</th><th>bound to</th><th>what</th></tr>"
    );
    for channel in asyncapi["channels"].as_object().into_iter().flatten().map(|(_, channel)| channel) {
        let (exchange, key) = (text(&channel["x-exchange"]["name"]), text(&channel["x-exchange"]["routingKey"]));
        add(
            &mut html,
            format!(
                "<tr><td><code>{}</code></td><td><code>{exchange}</code> by <code>{key}</code></td><td>{}</td></tr>",
                text(&channel["address"]),
                marked(text(&channel["description"]))
            ),
        );
    }
    add(&mut html, "</table><h4>Types</h4><table><tr><th>type</th><th>headers</th><th>what</th></tr>");
    for name in ["request", "progress", "reply", "error", "cancel"] {
        let message = &asyncapi["components"]["messages"][name];
        let headers = message["headers"]["properties"].as_object().into_iter().flatten();
        let headers: Vec<_> = headers.map(|(name, _)| format!("<code>{name}</code>")).collect();
        add(
            &mut html,
            format!(
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                text(&message["title"]),
                headers.join(" "),
                marked(text(&message["summary"]))
            ),
        );
    }
    html + "</table>"
}

fn resolved<'a>(openapi: &'a Value, value: &'a Value) -> &'a Value {
    let pointer = value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    pointer.and_then(|pointer| openapi.pointer(pointer)).unwrap_or(value)
}

fn add(html: &mut String, more: impl AsRef<str>) {
    html.push_str(more.as_ref());
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What is in backquotes as code, and each line on a line of its own.
fn marked(text: &str) -> String {
    let parts = escaped(text);
    let parts = parts.split('`').enumerate();
    let marked: String =
        parts.map(|(at, part)| if at % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() }).collect();
    marked.replace('\n', "<br>")
}
