//! Where an outcome is to be sent, and what became of that.

use super::App;
use super::error::Error;
use crate::callers::Caller;
use crate::operation::{Callback, Operation};
use crate::store::StoreError;
use crate::webhook::{Attempt, Delivery, State};
use axum::http::HeaderMap;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use shared::problem::Problem;

/// The request header `Callback-Url`.
pub(super) fn callback(app: &App, caller: &Caller, headers: &HeaderMap) -> Result<Option<Callback>, Error> {
    let mut values = headers.get_all("callback-url").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::bad_request("Callback-Url is there twice; an outcome is sent to one receiver"));
    }
    let text = value.to_str().map_err(|_| Error::bad_request("Callback-Url has characters that no URL has"))?;
    if app.0.engine.secrets.of(&caller.name).is_empty() {
        return Err(refused("there is no secret here to sign webhooks with (webhooks.secrets)"));
    }
    let url = app.0.engine.targets.check(text.trim()).map_err(refused)?;
    Ok(Some(Callback { url: url.into(), base_url: app.base_url(headers) }))
}

fn refused(reason: impl Into<String>) -> Error {
    Problem::new("callback-refused", 422, "The outcome cannot be sent to this Callback-Url", reason).into()
}

/// Where the outcome of an operation is sent, as its caller sees it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Webhook")]
pub(super) struct WebhookView<'a> {
    /// The receiver.
    url: &'a str,
    /// What was sent, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) deliveries: Vec<DeliveryView>,
}

impl<'a> WebhookView<'a> {
    pub(super) fn new(url: &'a str) -> Self {
        Self { url, deliveries: Vec::new() }
    }
}

/// One outcome on its way.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Delivery")]
pub(super) struct DeliveryView {
    /// The header `webhook-id` of each attempt.
    id: String,
    /// What is told, such as `operation.succeeded`.
    #[serde(rename = "type")]
    event_type: String,
    /// What became of it so far.
    #[schemars(extend("enum" = State::ALL.map(State::name)))]
    status: &'static str,
    /// When it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Timestamp>,
    /// When it was tried, and what came of that.
    attempts: Vec<AttemptView>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "DeliveryAttempt")]
struct AttemptView {
    /// From 1.
    number: u32,
    /// When it began.
    at: Timestamp,
    /// How long it took.
    milliseconds: u64,
    /// What the receiver answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<(Delivery, Vec<Attempt>)> for DeliveryView {
    fn from((delivery, attempts): (Delivery, Vec<Attempt>)) -> Self {
        Self {
            id: delivery.id.to_string(),
            event_type: delivery.event_type,
            status: delivery.state.name(),
            next_attempt_at: delivery.next_at,
            attempts: attempts.into_iter().map(AttemptView::from).collect(),
        }
    }
}

impl From<Attempt> for AttemptView {
    fn from(Attempt { number, at, took, status, error }: Attempt) -> Self {
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Self { number, at, milliseconds, status, error }
    }
}

impl App {
    /// What became of the webhooks of `operation`, if its caller wanted any.
    pub(super) async fn deliveries(&self, operation: &Operation) -> Result<Vec<DeliveryView>, StoreError> {
        match operation.callback {
            Some(_) => {
                Ok(self.0.engine.store.webhooks(operation.id).await?.into_iter().map(DeliveryView::from).collect())
            }
            None => Ok(Vec::new()),
        }
    }
}
