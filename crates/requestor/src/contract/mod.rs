mod asyncapi;
mod call;
mod calls;
mod examples;
mod fields;
mod headers;
mod messages;
mod openapi;
mod page;
mod problems;
mod samples;
mod schemas;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::http::{NOTHING, fixed};
use axum::Router;
use serde_json::Value;

/// `/openapi.json` and `/asyncapi.json`, and `/docs` for people. Made once: they do not change while the service runs.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(config: &Config) -> Router<S> {
    let (openapi, asyncapi) = (openapi::document(config), asyncapi::document());
    let page = page::html(&openapi, &asyncapi, &base(config));
    let json = |document: &Value| fixed(shared::message::JSON, NOTHING, document.to_string());
    Router::new()
        .route("/openapi.json", json(&openapi))
        .route("/asyncapi.json", json(&asyncapi))
        .route("/docs", fixed("text/html; charset=utf-8", &page::policy(), page))
}

/// Where the examples of the page find this service.
fn base(config: &Config) -> String {
    match config.http.public_url.trim_end_matches('/') {
        "" => format!("http://{}", shared::http::reachable(config.http.listen)),
        url => url.to_owned(),
    }
}
