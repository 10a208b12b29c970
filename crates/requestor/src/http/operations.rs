use super::App;
use super::auth::Caller;
use super::error::Error;
use super::etag;
use super::pages::Pages;
use super::path::Name;
use super::prefer::{Prefer, applied};
use super::view::{OperationView, PREFERENCE_APPLIED, insert};
use crate::operation::{Operation, State as OperationState};
use crate::outcomes::Seen;
use crate::store::{Filter, STATUSES};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared::message::OperationId;
use shared::problem::Problem;

/// Operations or events in a page unless the caller says otherwise.
const PAGE_SIZE: usize = 50;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatusQuery {
    #[serde(default = "yes")]
    redirect: bool,
}

fn yes() -> bool {
    true
}

/// `GET /v1/operations/{id}`: how far it is; 303 to the result once there is one. `Prefer: wait=N` waits for the end.
pub(super) async fn status(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
    query: Result<Query<StatusQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let Query(query) = query.map_err(|error| Error::bad_request(error.body_text()))?;
    let wait = Prefer::from_headers(&headers).wait_at_most(app.0.http.wait_max);
    let id = parse_id(&id)?;
    let (seen, waited) = app.wait(&caller, id, wait, None).await?;
    let Some(Seen { operation, .. }) = seen else { return Err(app.missing(&caller, id).await) };
    let redirects = query.redirect && operation.state == OperationState::Succeeded;
    let status = if redirects { StatusCode::SEE_OTHER } else { StatusCode::OK };
    let deliveries = app.deliveries(&operation).await?;
    let mut response = app.operation_with_deliveries(status, &operation, deliveries, &headers);
    if redirects {
        let url = app.operation_url(&headers, operation.id);
        insert(&mut response, header::LOCATION, &format!("{url}/result"));
    }
    if let Some(applied) = applied(false, waited.then_some(wait)) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(etag::unless_known(response, &headers))
}

/// `GET /v1/operations/{id}/result`: the result, or the problem that the operation ended with.
pub(super) async fn result(State(app): State<App>, caller: Caller, Name(id): Name) -> Result<Response, Error> {
    let operation = find(&app, &caller, &id).await?;
    if operation.has_ended() {
        return app.outcome_response(&caller, &Seen { operation, result: None }).await;
    }
    let problem = Problem::new("not-finished", 404, "Not finished", "the operation has no result yet");
    Err(Error { problem, retry_after_seconds: Some(app.0.engine.pace.retry_after(&operation, Timestamp::now())) })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ListQuery {
    kind: Option<String>,
    status: Option<String>,
    page_size: Option<u32>,
    page_token: Option<String>,
}

/// Some operations of a list, newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperationPage<'a> {
    /// The operations.
    operations: Vec<OperationView<'a>>,
    /// What to give as `pageToken` for the next page; null in the last.
    next_page_token: Option<&'a str>,
}

/// `GET /v1/operations`: newest first, in pages.
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    query: Result<Query<ListQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let Query(query) = query.map_err(|error| Error::bad_request(error.body_text()))?;
    let size = app.page_size(query.page_size);
    let pages = Pages::of(&caller, query.kind.as_deref(), query.status.as_deref());
    let filter = Filter {
        kind: query.kind.clone(),
        status: query.status.as_deref().map(status_filter).transpose()?,
        before: query.page_token.as_deref().map(|token| pages.read(token)).transpose()?,
        limit: size + 1,
    };
    let mut found = app.0.engine.store.list(caller.scope(), filter).await?;
    let more = found.len() > size;
    found.truncate(size);
    let next = found.last().filter(|_| more).map(|last| pages.token(last.id));
    let urls: Vec<_> = found.iter().map(|operation| app.operation_url(&headers, operation.id)).collect();
    let view = |(operation, url): (_, &String)| {
        OperationView::new(operation, url).with_providers(&app.0.engine.kinds, operation)
    };
    let operations = found.iter().zip(&urls).map(view).collect();
    let page = OperationPage { operations, next_page_token: next.as_deref() };
    let mut response = Json(page).into_response();
    if let Some(next) = next {
        let link = format!("<{}{}>; rel=\"next\"", app.base_url(&headers), next_page(&query, size, &next));
        insert(&mut response, header::LINK, &link);
    }
    Ok(response)
}

impl App {
    /// How many operations or events a page has, if the caller has `asked` for so many.
    pub(super) fn page_size(&self, asked: Option<u32>) -> usize {
        let asked = asked.map_or(PAGE_SIZE, |size| usize::try_from(size).unwrap_or(usize::MAX));
        asked.clamp(1, self.0.http.page_size_max)
    }
}

fn next_page(query: &ListQuery, size: usize, next: &str) -> String {
    let mut parameters = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in [("kind", &query.kind), ("status", &query.status)] {
        if let Some(value) = value {
            parameters.append_pair(name, value);
        }
    }
    parameters.append_pair("pageSize", &size.to_string()).append_pair("pageToken", next);
    format!("/v1/operations?{}", parameters.finish())
}

fn status_filter(given: &str) -> Result<&'static str, Error> {
    STATUSES
        .into_iter()
        .find(|status| *status == given)
        .ok_or_else(|| Error::bad_request(format!("status is one of {}", STATUSES.join(", "))))
}

pub(super) async fn find(app: &App, caller: &Caller, id: &str) -> Result<Operation, Error> {
    let id = parse_id(id)?;
    match app.0.engine.store.get(caller.scope(), id).await? {
        Some(operation) => Ok(operation),
        None => Err(app.missing(caller, id).await),
    }
}

/// What is no id names no operation.
pub(super) fn parse_id(id: &str) -> Result<OperationId, Error> {
    id.parse().map_err(|_| Error::not_found())
}
