//! What can be asked for, and who serves it.

use super::App;
use super::auth::Caller;
use super::error::Error;
use super::path::Name;
use crate::kinds::Description;
use crate::kinds::announced::Provider;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use shared::message::Effect;
use shared::schema::Schemas;

/// All kinds, by name.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct KindPage {
    /// The kinds.
    kinds: Vec<KindView>,
}

/// A kind as callers see it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Kind", description = "What can be asked for, and who serves it.")]
pub(crate) struct KindView {
    /// Its name.
    kind: String,
    /// Whether the requestor's configuration has it; else a provider has announced it.
    configured: bool,
    /// Whether a provider of it was heard lately; of a pipeline, of each of its steps. Not known of a plain RPC server,
    /// which announces nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<bool>,
    /// How many were.
    providers_seen: usize,
    /// The queue of the plain RPC server that serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    /// The kinds of its steps, if it is a pipeline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps: Vec<String>,
    /// How long an operation may take unless its caller says otherwise.
    timeout_seconds: u64,
    /// How often it is attempted when its provider says that trying again may help.
    attempts: u32,
    /// The kind that is asked when no attempt is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
    #[serde(flatten)]
    schemas: Schemas,
    #[serde(flatten)]
    served: Option<Served>,
}

/// What the providers of a kind have said.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Served {
    /// The version of the provider that was heard last.
    version: String,
    /// What kind of effect a request has, if its provider says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    /// How many requests its providers work on at once.
    concurrency: u32,
    /// Whether providers that live have announced other schemas than these.
    schemas_differ: bool,
    /// When a provider was last heard.
    last_seen_at: Timestamp,
    /// The instances; only where one kind is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    providers: Option<Vec<ProviderView>>,
}

/// One instance of a provider.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Provider")]
struct ProviderView {
    /// The group that it is of.
    group: String,
    /// What tells this process from others.
    instance: String,
    /// Its version; empty if it has none.
    version: String,
    /// What kind of effect a request has, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    /// How many requests it works on at once.
    concurrency: u32,
    /// Whether it was heard lately.
    live: bool,
    /// Whether it has announced other schemas than the kind's.
    schemas_differ: bool,
    /// When it was first heard.
    first_seen_at: Timestamp,
    /// When it was last heard.
    last_seen_at: Timestamp,
}

/// `GET /v1/kinds`: all kinds, by name.
pub(super) async fn list(State(app): State<App>, _: Caller) -> Response {
    let now = Timestamp::now();
    let described = app.0.engine.kinds.names().into_iter().filter_map(|name| app.0.engine.kinds.describe(&name));
    Json(KindPage { kinds: described.map(|kind| app.kind_view(kind, now, false)).collect() }).into_response()
}

/// `GET /v1/kinds/{kind}`: one kind, with its providers.
pub(super) async fn show(State(app): State<App>, _: Caller, Name(name): Name) -> Result<Response, Error> {
    let kind = app.0.engine.kinds.describe(&name).ok_or_else(|| app.0.engine.kinds.no_such_kind(&name))?;
    Ok(Json(app.kind_view(kind, Timestamp::now(), true)).into_response())
}

impl App {
    fn kind_view(&self, kind: Description, now: Timestamp, with_providers: bool) -> KindView {
        let seen = |name: &String| self.0.engine.kinds.providers(name, now).0;
        // A pipeline is served if each of its steps is.
        let providers_seen = kind.steps.iter().map(seen).min().unwrap_or_else(|| seen(&kind.name));
        let plain = kind.steps.iter().chain([&kind.name]).any(|name| self.0.engine.kinds.queue(name).is_some());
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
            queue: self.0.engine.kinds.queue(&kind.name).map(str::to_owned),
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
