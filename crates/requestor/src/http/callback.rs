//! Where an outcome is to be sent, and what became of that.

use super::App;
use super::error::Error;
use crate::callers::Caller;
use crate::operation::{Callback, Operation};
use crate::store::StoreError;
use crate::webhook::{Attempt, Delivery};
use axum::http::HeaderMap;
use jiff::Timestamp;
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
    if app.0.secrets.of(&caller.name).is_empty() {
        return Err(refused("there is no secret here to sign webhooks with (webhooks.secrets)"));
    }
    let url = app.0.targets.check(text.trim()).map_err(refused)?;
    Ok(Some(Callback { url: url.into(), base_url: app.base_url(headers) }))
}

fn refused(reason: impl Into<String>) -> Error {
    Problem::new("callback-refused", 422, "The outcome cannot be sent to this Callback-Url", reason).into()
}

/// Where the outcome of an operation is sent, as its caller sees it.
#[derive(Debug, Serialize)]
pub(super) struct WebhookView<'a> {
    url: &'a str,
    /// Newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) deliveries: Vec<DeliveryView>,
}

impl<'a> WebhookView<'a> {
    pub(super) fn new(url: &'a str) -> Self {
        Self { url, deliveries: Vec::new() }
    }
}

/// One outcome on its way.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeliveryView {
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Timestamp>,
    attempts: Vec<AttemptView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttemptView {
    number: u32,
    at: Timestamp,
    milliseconds: u64,
    /// What the receiver answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
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
            Some(_) => Ok(self.0.store.webhooks(operation.id).await?.into_iter().map(DeliveryView::from).collect()),
            None => Ok(Vec::new()),
        }
    }
}
