//! What can be asked for, and who serves it.

use super::App;
use super::auth::Caller;
use super::error::Error;
use crate::kinds::Description;
use crate::kinds::announced::Provider;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use shared::message::Effect;
use shared::schema::Schemas;

/// A kind as callers see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct KindView {
    kind: String,
    configured: bool,
    /// Not known of a plain RPC server, which announces nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<bool>,
    providers_seen: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps: Vec<String>,
    timeout_seconds: u64,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
    #[serde(flatten)]
    schemas: Schemas,
    #[serde(flatten)]
    served: Option<Served>,
}

/// What the providers of a kind have said.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Served {
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    concurrency: u32,
    schemas_differ: bool,
    last_seen_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    providers: Option<Vec<ProviderView>>,
}

/// One instance of a provider.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProviderView {
    group: String,
    instance: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    concurrency: u32,
    live: bool,
    schemas_differ: bool,
    first_seen_at: Timestamp,
    last_seen_at: Timestamp,
}

/// `GET /v1/kinds`: all kinds, by name.
pub(super) async fn list(State(app): State<App>, _: Caller) -> Response {
    let now = Timestamp::now();
    let described = app.0.kinds.names().into_iter().filter_map(|name| app.0.kinds.describe(&name));
    let views: Vec<_> = described.map(|kind| app.kind_view(kind, now, false)).collect();
    Json(json!({ "kinds": views })).into_response()
}

/// `GET /v1/kinds/{kind}`: one kind, with its providers.
pub(super) async fn show(State(app): State<App>, _: Caller, Path(name): Path<String>) -> Result<Response, Error> {
    let kind = app.0.kinds.describe(&name).ok_or_else(|| app.0.kinds.no_such_kind(&name))?;
    Ok(Json(app.kind_view(kind, Timestamp::now(), true)).into_response())
}

impl App {
    fn kind_view(&self, kind: Description, now: Timestamp, with_providers: bool) -> KindView {
        let seen = |name: &String| self.0.kinds.providers(name, now).0;
        // A pipeline is served if each of its steps is.
        let providers_seen = kind.steps.iter().map(seen).min().unwrap_or_else(|| seen(&kind.name));
        let plain = kind.steps.iter().chain([&kind.name]).any(|name| self.0.kinds.queue(name).is_some());
        let served = kind.announced.map(|announced| {
            let newest = announced.providers.get(&announced.known.instance);
            let effect = newest.and_then(|provider| provider.effect);
            let concurrency = announced.live(now).fold(0u32, |slots, one| slots.saturating_add(one.concurrency));
            let schemas_differ = announced.live(now).any(|provider| provider.differs);
            Served {
                effect,
                concurrency,
                schemas_differ,
                last_seen_at: announced.known.announced_at,
                version: announced.known.version,
                providers: with_providers.then(|| {
                    let each = announced.providers.into_iter();
                    each.map(|(instance, provider)| ProviderView::new(instance, provider, now)).collect()
                }),
            }
        });
        KindView {
            live: (!plain).then_some(providers_seen > 0),
            queue: self.0.kinds.queue(&kind.name).map(str::to_owned),
            kind: kind.name,
            configured: kind.configured,
            providers_seen,
            steps: kind.steps,
            timeout_seconds: kind.timeout.as_secs(),
            attempts: kind.attempts,
            fallback: kind.fallback,
            schemas: kind.schemas,
            served,
        }
    }
}

impl ProviderView {
    fn new(instance: String, provider: Provider, now: Timestamp) -> Self {
        Self {
            live: provider.is_live(now),
            instance,
            group: provider.group,
            version: provider.version,
            effect: provider.effect,
            concurrency: provider.concurrency,
            schemas_differ: provider.differs,
            first_seen_at: provider.first_seen_at,
            last_seen_at: provider.last_seen_at,
        }
    }
}
