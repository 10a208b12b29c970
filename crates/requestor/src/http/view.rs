use super::App;
use super::auth::Caller;
use super::callback::{DeliveryView, WebhookView};
use super::error::Error;
use super::etag;
use crate::kinds::Kinds;
use crate::operation::{ANONYMOUS, LateOutcome, Operation, State};
use crate::outcomes::Seen;
use crate::store::{STATUSES, status_name};
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use shared::http::problem_response;
use shared::message::{self, Content, OperationId, Progress};
use shared::problem::Problem;
use std::borrow::Cow;

pub(super) const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// An operation as callers see it (Azure REST guidelines, status monitor). The table may look otherwise.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Operation", description = "A request that was accepted, and what is known of it so far.")]
pub(crate) struct OperationView<'a> {
    /// Names it; also the correlation id of its messages.
    id: OperationId,
    /// Who asked for it. Absent while nobody has a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    /// What was asked for.
    kind: &'a str,
    /// How far it is; the last three are the end.
    #[schemars(extend("enum" = STATUSES))]
    status: &'static str,
    /// When it was accepted.
    created_at: Timestamp,
    /// When its state last changed.
    last_updated_at: Timestamp,
    /// How far the whole is, if its provider can tell.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    percent_complete: Option<f64>,
    /// What is being done, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cow<'a, str>>,
    /// How many providers of what it asks for were seen lately; until one has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    providers_seen: Option<usize>,
    /// The request under way, from 1: each step of a pipeline and each fallback is a request of its own.
    #[schemars(range(min = 1))]
    step: u32,
    /// What that request asks for.
    step_kind: &'a str,
    /// Which of `steps` is under way, from 1.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u32>,
    /// The kinds of its steps, if it is a pipeline.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    steps: &'a [String],
    /// The attempt under way, from 1 in each step.
    #[schemars(range(min = 1))]
    attempt: u32,
    /// Whether somebody wants it canceled. It may end otherwise all the same.
    cancel_requested: bool,
    /// When the next attempt begins, while none is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Timestamp>,
    /// Why the last attempt failed, while another follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_problem: Option<&'a Problem>,
    /// When it is given up.
    deadline: Timestamp,
    /// When it is forgotten; known once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// Where its result is, once it has succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(url)]
    result_location: Option<String>,
    /// Why it failed or was canceled.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Problem>,
    /// What became of it after it had ended otherwise, such as a success after its deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    late_outcome: Option<&'a LateOutcome>,
    /// Where its outcome is sent, if its caller wanted that.
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<WebhookView<'a>>,
}

impl<'a> OperationView<'a> {
    pub(crate) fn new(operation: &'a Operation, url: &str) -> Self {
        let progress = match &operation.state {
            State::Running(progress) => Some(progress),
            State::NotStarted | State::Succeeded | State::Failed(_) | State::Canceled(_) => None,
        };
        let succeeded = operation.state == State::Succeeded;
        Self {
            id: operation.id,
            owner: Some(operation.owner.as_str()).filter(|owner| *owner != ANONYMOUS),
            kind: &operation.kind,
            status: status_name(operation),
            created_at: operation.created_at,
            last_updated_at: operation.updated_at,
            percent_complete: if succeeded { Some(100.0) } else { percent(operation, progress) },
            message: progress.and_then(|progress| progress.message.as_deref()).map(Cow::Borrowed),
            providers_seen: None,
            step: operation.step,
            step_kind: &operation.asks,
            position: (!operation.steps.is_empty()).then_some(operation.position),
            steps: &operation.steps,
            cancel_requested: operation.cancel_requested,
            attempt: operation.attempt,
            next_attempt_at: operation.next_attempt_at(),
            last_problem: operation.last_problem.as_ref().filter(|_| !operation.has_ended()),
            deadline: operation.deadline,
            expires_at: operation.expires_at,
            result_location: succeeded.then(|| format!("{url}/result")),
            error: operation.error(),
            late_outcome: operation.late_outcome.as_ref(),
            webhook: operation.callback.as_ref().map(|callback| WebhookView::new(&callback.url)),
        }
    }

    fn with_deliveries(mut self, deliveries: Vec<DeliveryView>) -> Self {
        if let Some(webhook) = &mut self.webhook {
            webhook.deliveries = deliveries;
        }
        self
    }

    /// The same, with how many providers of what it asks for were seen lately: of interest until one has begun.
    pub(super) fn with_providers(mut self, kinds: &Kinds, operation: &Operation) -> Self {
        if operation.state == State::NotStarted && kinds.queue(&operation.asks).is_none() {
            let (seen, _) = kinds.providers(&operation.asks, Timestamp::now());
            let asks = &operation.asks;
            let nobody = || format!("no provider of {asks} was seen lately; the request waits for one").into();
            self.providers_seen = Some(seen);
            self.message = (seen == 0).then(nobody);
        }
        self
    }
}

/// How far the whole is; the steps of a pipeline count alike.
fn percent(operation: &Operation, progress: Option<&Progress>) -> Option<f64> {
    let percent = progress.and_then(|progress| progress.percent);
    match operation.steps.len() {
        0 | 1 => percent,
        steps => {
            let done = f64::from(operation.position - 1) * 100.0 + percent.unwrap_or_default();
            Some((done / steps as f64 * 10.0).round() / 10.0)
        }
    }
}

impl App {
    /// An operation as a response; while it is open with `Retry-After`.
    pub(super) fn operation_response(
        &self,
        status: StatusCode,
        operation: &Operation,
        headers: &HeaderMap,
    ) -> Response {
        self.operation_with_deliveries(status, operation, Vec::new(), headers)
    }

    /// The same, with what became of its webhooks.
    pub(super) fn operation_with_deliveries(
        &self,
        status: StatusCode,
        operation: &Operation,
        deliveries: Vec<DeliveryView>,
        headers: &HeaderMap,
    ) -> Response {
        let url = self.operation_url(headers, operation.id);
        let view = OperationView::new(operation, &url);
        let view = view.with_deliveries(deliveries).with_providers(&self.0.engine.kinds, operation);
        let body = Bytes::from(serde_json::to_vec(&view).unwrap_or_default());
        let mut response = (status, [(header::CONTENT_TYPE, message::JSON)], body.clone()).into_response();
        if status == StatusCode::OK {
            etag::mark(&mut response, &body);
        }
        if !operation.has_ended() {
            let seconds = self.0.engine.pace.retry_after(operation, Timestamp::now());
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        insert(&mut response, OPERATION_LOCATION, &url);
        response
    }

    /// The result of an operation that has ended, or the problem that it ended with.
    pub(super) async fn outcome_response(&self, caller: &Caller, seen: &Seen) -> Result<Response, Error> {
        let Seen { operation, result } = seen;
        if let Some(problem) = operation.error() {
            return Ok(problem_response(problem));
        }
        let result = match result {
            Some(result) => Some(result.clone()),
            None => self.0.engine.store.result(caller.scope(), operation.id).await?,
        };
        match result {
            Some(content) => Ok(content_response(content)),
            None => Err(self.missing(caller, operation.id).await),
        }
    }
}

fn content_response(content: Content) -> Response {
    let content_type = HeaderValue::from_str(&content.content_type)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    let mut response = content.body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// Sets a header whose value was made here or is a URL; a value that HTTP cannot carry is left out.
pub(super) fn insert(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
