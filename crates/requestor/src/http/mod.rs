//! The HTTP side: routes in one place, each group of handlers in a file.

mod auth;
mod callback;
mod control;
mod dashboard;
mod error;
mod etag;
mod events;
pub(crate) mod idempotency;
mod kinds;
mod operations;
mod pages;
mod path;
mod prefer;
mod reading;
mod requests;
pub(crate) mod view;

use crate::callers::{Caller, Callers, Slot};
use crate::config::{Config, HttpConfig};
use crate::contract;
use crate::engine::Engine;
use crate::outcomes::{Awaiting, Seen};
use crate::store::StoreError;
use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
pub(crate) use error::Error;
use events::SharedPages;
pub(crate) use events::{EventPage, LogPage};
use idempotency::BeingAnswered;
pub(crate) use kinds::{KindPage, KindView};
pub(crate) use operations::OperationPage;
use shared::http::problem_response;
use shared::message::OperationId;
use shared::problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
pub(crate) use view::OperationView;

/// What the handlers need.
#[derive(Clone, Debug)]
pub(crate) struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: HttpConfig,
    timeout: Duration,
    timeout_max: Duration,
    retry_window: Duration,
    unconfirmed: Duration,
    callers: Callers,
    being_answered: BeingAnswered,
    engine: Engine,
    pages: SharedPages,
    shutdown: CancellationToken,
}

impl App {
    pub(crate) fn new(config: &Config, engine: Engine, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            http: config.http.clone(),
            timeout: config.operations.timeout,
            timeout_max: config.operations.timeout_max,
            retry_window: config.operations.retry_window,
            unconfirmed: config.redrive.unconfirmed,
            callers: Callers::new(&config.callers, &config.quotas, &config.http),
            being_answered: BeingAnswered::default(),
            engine,
            pages: SharedPages::default(),
            shutdown,
        }))
    }

    /// As [`Self::wait_in`], and whether there was room to wait.
    async fn wait(
        &self,
        caller: &Caller,
        id: OperationId,
        wait: Duration,
        awaiting: Option<Awaiting>,
    ) -> Result<(Option<Seen>, bool), StoreError> {
        let slot = if wait.is_zero() { None } else { self.0.callers.waiter(caller).ok() };
        match slot {
            Some(slot) => Ok((self.wait_in(slot, caller, id, (wait, awaiting)).await?, true)),
            None => {
                let operation = self.0.engine.store.get(caller.scope(), id).await?;
                Ok((operation.map(|operation| Seen { operation, result: None }), false))
            }
        }
    }

    /// The operation when it has ended or `wait` is over, whichever is first.
    async fn wait_in(
        &self,
        _slot: Slot,
        caller: &Caller,
        id: OperationId,
        wait: (Duration, Option<Awaiting>),
    ) -> Result<Option<Seen>, StoreError> {
        self.0.engine.wait(&caller.scope(), id, wait, &self.0.shutdown).await
    }

    /// Why there is no operation of that id for the caller. It makes no difference whether it is another's, or never was.
    async fn missing(&self, caller: &Caller, id: OperationId) -> Error {
        match self.0.engine.store.was_forgotten(caller.scope(), id).await {
            Ok(true) => Error::gone(),
            Ok(false) => Error::not_found(),
            Err(error) => error.into(),
        }
    }

    /// What callers put before `/v1`.
    fn base_url(&self, headers: &HeaderMap) -> String {
        match self.0.http.public_url.trim_end_matches('/') {
            "" => {
                let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
                format!(
                    "{}://{}",
                    self.0.http.scheme(),
                    host.map_or_else(|| self.0.http.listen.to_string(), str::to_owned)
                )
            }
            url => url.to_owned(),
        }
    }

    /// The absolute URL of an operation.
    fn operation_url(&self, headers: &HeaderMap, id: OperationId) -> String {
        format!("{}/v1/operations/{id}", self.base_url(headers))
    }
}

/// All routes.
pub(crate) fn router(app: App, config: &Config) -> Router {
    let broker = app.0.engine.gateway.subscribe();
    let contract = contract::routes(config);
    Router::new()
        .route("/v1/requests/{kind}", post(requests::submit))
        .route("/v1/kinds", get(kinds::list))
        .route("/v1/kinds/{kind}", get(kinds::show))
        .route("/v1/call/{kind}", post(requests::call))
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{id}", get(operations::status).delete(control::cancel))
        .route("/v1/operations/{id}/cancel", post(control::cancel))
        .route("/v1/operations/{id}/retry", post(control::retry))
        .route("/v1/operations/{id}/events", get(events::of_operation))
        .route("/v1/operations/{id}/result", get(operations::result))
        .route("/v1/events", get(events::of_all))
        .merge(shared::http::health_routes(broker))
        .merge(contract)
        .merge(dashboard::routes())
        .fallback(|| async { problem_response(&Problem::new("not-found", 404, "Not found", "there is nothing here")) })
        .method_not_allowed_fallback(|| async {
            problem_response(&Problem::new("method-not-allowed", 405, "Method not allowed", "see the header Allow"))
        })
        .layer(middleware::from_fn(common_headers))
        .with_state(app)
}

/// What a page of ours may load that is none.
pub(crate) const NOTHING: &str = "default-src 'none'; sandbox";

/// What is the same each time, and may load what `policy` says.
pub(crate) fn fixed<S: Clone + Send + Sync + 'static>(
    content_type: &'static str,
    policy: &str,
    body: impl Into<Bytes>,
) -> MethodRouter<S> {
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    if let Ok(policy) = policy.parse() {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    let body = body.into();
    get(move || async { (headers, body) })
}

/// Answers change from one moment to the next, and what a provider made must not run as a page of ours.
async fn common_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(NOTHING));
    response
}
