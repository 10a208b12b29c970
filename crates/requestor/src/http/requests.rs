use super::App;
use super::auth::Caller;
use super::error::Error;
use super::idempotency::{self, Answering};
use super::prefer::{Prefer, applied};
use super::reading::{Given, Submission};
use super::view::{OPERATION_LOCATION, PREFERENCE_APPLIED, RATE_LIMIT, RATE_LIMIT_POLICY, insert};
use crate::callers::Left;
use crate::operation::Operation;
use crate::outcomes::{Awaiting, Seen};
use crate::store::{Created, NewOperation, Room, StoreError};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use shared::http::problem_response;
use shared::problem::Problem;
use std::time::Duration;

/// After how many seconds a caller with all of its operations open, or with no room for bodies, may ask again: when
/// there is room again is not known.
const OPEN_AGAIN_SECONDS: u64 = 5;
const BYTES_AGAIN_SECONDS: u64 = 60;

/// `POST /v1/requests/{kind}`: stores the request, sends it, and answers 202; or the result if the caller waits and
/// it comes in time.
pub(super) async fn submit(State(app): State<App>, caller: Caller, given: Result<Given, Error>) -> Response {
    // On the heap, since it is long.
    let answer = Box::pin(async {
        let given = given?;
        let headers = given.headers.clone();
        let submission = given.read(&app, &caller).await?;
        let prefer = Prefer::from_headers(&headers);
        let wait = prefer.wait_at_most(app.0.http.wait_max);
        let awaiting = (!wait.is_zero()).then(|| app.0.engine.outcomes.expect(submission.operation.id));
        let (operation, _answering) = accept(&app, &caller, submission).await?;
        Ok(accepted(&app, &caller, operation, (&prefer, wait, awaiting), &headers).await)
    });
    counted(&app, &caller, answer).await
}

/// `POST /v1/call/{kind}`: the same for callers who know synchronous calls only. Answers with the result, or with the
/// problem that the operation ended with.
pub(super) async fn call(State(app): State<App>, caller: Caller, given: Result<Given, Error>) -> Response {
    // On the heap, since it is long.
    let answer = Box::pin(async {
        let given = given?;
        let headers = given.headers.clone();
        let submission = given.read(&app, &caller).await?;
        // First, since what is accepted can no longer be refused.
        let slot = app.0.callers.waiter(&caller)?;
        let awaiting = app.0.engine.outcomes.expect(submission.operation.id);
        let (operation, _answering) = accept(&app, &caller, submission).await?;
        let prefer = Prefer::from_headers(&headers);
        let wait = prefer.wait.map_or(app.0.http.wait_max, |_| prefer.wait_at_most(app.0.http.wait_max));
        let waited = app.wait_in(slot, &caller, operation.id, (wait, Some(awaiting))).await;
        let seen = waited.ok().flatten().unwrap_or(Seen { operation, result: None });
        let mut response = match outcome(&app, &caller, &seen, &headers).await {
            Some(outcome) => outcome,
            None => not_in_time(&app, &seen.operation, &headers),
        };
        if let Some(applied) = applied(false, prefer.wait.map(|_| wait)) {
            response.headers_mut().insert(PREFERENCE_APPLIED, applied);
        }
        Ok(response)
    });
    counted(&app, &caller, answer).await
}

/// Counts the request, and answers it if it is not one too many. Every answer tells what is left.
async fn counted(app: &App, caller: &Caller, answer: impl Future<Output = Result<Response, Error>>) -> Response {
    let left = app.0.callers.count(caller);
    let answered = match left.refused {
        true => Err(Error::over_quota("rate", left.quotas.rate_requests.get(), left.seconds)),
        false => answer.await,
    };
    let mut response = answered.into_response();
    tell(&mut response, &left);
    response
}

/// draft-ietf-httpapi-ratelimit-headers-10.
fn tell(response: &mut Response, left: &Left) {
    let (requests, window, open) = (left.quotas.rate_requests, left.quotas.rate_window.as_secs(), left.quotas.open_max);
    let policy = format!(r#""rate";q={requests};w={window}, "open";q={open};qu="concurrent-requests""#);
    insert(response, RATE_LIMIT_POLICY, &policy);
    insert(response, RATE_LIMIT, &format!(r#""rate";r={};t={}"#, left.requests, left.seconds));
}

/// Stores the request and sends it, or finds what was stored for it before. No other request with its key is taken
/// until what is returned with it is dropped.
async fn accept(app: &App, caller: &Caller, submission: Submission) -> Result<(Operation, Option<Answering>), Error> {
    let Submission { operation, content, key } = submission;
    let answering = key.as_ref().map(|key| app.0.being_answered.begin(caller, key)).transpose()?;
    let quotas = app.0.callers.quotas(caller);
    let room = Room { open_max: quotas.open_max, bytes_max: quotas.bytes_max };
    let new = NewOperation { operation: operation.clone(), request: content, key, room };
    match app.0.engine.accept(new).await.map_err(not_accepted)? {
        Created::New => Ok((operation, answering)),
        Created::Before(operation) => Ok((*operation, answering)),
        Created::OtherPayload => Err(idempotency::reused()),
        Created::TooManyOpen => Err(Error::over_quota("open", quotas.open_max, OPEN_AGAIN_SECONDS)),
        Created::TooManyBytes => Err(Error::over_quota("bytes", quotas.bytes_max, BYTES_AGAIN_SECONDS)),
    }
}

/// The request is accepted whatever happens now: a store that cannot be read leaves it at 202.
async fn accepted(
    app: &App,
    caller: &Caller,
    mut operation: Operation,
    (prefer, wait, awaiting): (&Prefer, Duration, Option<Awaiting>),
    headers: &HeaderMap,
) -> Response {
    let mut waited: Option<Duration> = None;
    let mut in_time = None;
    if !wait.is_zero()
        && let Ok((Some(now), had_room)) = app.wait(caller, operation.id, wait, awaiting).await
    {
        in_time = outcome(app, caller, &now, headers).await;
        (operation, waited) = (now.operation, had_room.then_some(wait));
    }
    let respond_async = prefer.respond_async && in_time.is_none();
    let mut response = in_time.unwrap_or_else(|| {
        let mut accepted = app.operation_response(StatusCode::ACCEPTED, &operation, headers);
        insert(&mut accepted, header::LOCATION, &app.operation_url(headers, operation.id));
        accepted
    });
    if let Some(applied) = applied(respond_async, waited) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    response
}

/// The result or the problem, if the operation has ended and can be read.
async fn outcome(app: &App, caller: &Caller, seen: &Seen, headers: &HeaderMap) -> Option<Response> {
    if !seen.operation.has_ended() {
        return None;
    }
    let mut response = app.outcome_response(caller, seen).await.ok()?;
    let url = app.operation_url(headers, seen.operation.id);
    insert(&mut response, header::CONTENT_LOCATION, &format!("{url}/result"));
    insert(&mut response, OPERATION_LOCATION, &url);
    Some(response)
}

/// What a synchronous caller is told of an operation that takes longer.
fn not_in_time(app: &App, operation: &Operation, headers: &HeaderMap) -> Response {
    let url = app.operation_url(headers, operation.id);
    let detail = "the request was accepted and is still carried out; its outcome will be at the URL in operation";
    let problem = Problem::new("not-in-time", 504, "No outcome yet", detail).with("operation", url.as_str());
    let mut response = problem_response(&problem);
    let seconds = app.0.engine.pace.retry_after(operation, Timestamp::now());
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    insert(&mut response, header::LINK, &format!("<{url}>; rel=\"status\""));
    insert(&mut response, OPERATION_LOCATION, &url);
    response
}

/// The one failure of the store after which the caller may simply ask again.
fn not_accepted(error: StoreError) -> Error {
    let mut error = Error::from(error);
    if let Some(detail) = &mut error.problem.detail {
        detail.push_str("; nothing was accepted");
    }
    error
}
