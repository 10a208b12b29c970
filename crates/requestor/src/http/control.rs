use super::App;
use super::auth::Caller;
use super::error::Error;
use super::operations::parse_id;
use super::path::Name;
use super::reading::timeout;
use super::view::insert;
use crate::operation::{Change, Event, Operation, RetryRefused};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use shared::problem::Problem;

/// `DELETE /v1/operations/{id}` and `POST /v1/operations/{id}/cancel`: asks its providers not to carry it out. Only their
/// answer ends the operation, as `Canceled` if its effect has not happened.
pub(super) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let (operation, change) = apply(&app, &caller, &id, Event::Cancel).await?;
    if change == Change::CancelRequested {
        app.0.engine.gateway.cancel(&operation);
    }
    let status = if operation.has_ended() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(located(&app, status, &operation, &headers))
}

/// `POST /v1/operations/{id}/retry`: a failed operation is open again, under the same URL. `Operation-Timeout` says for
/// how long.
pub(super) async fn retry(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let operation = super::operations::find(&app, &caller, &id).await?;
    // A kind that is no longer configured may still be retried.
    let of_kind = app.0.engine.kinds.get(&operation.kind).map_or(app.0.timeout, |kind| kind.timeout);
    let timeout = timeout(&headers, of_kind, app.0.timeout_max)?;
    let (operation, change) = apply(&app, &caller, &id, Event::Retry { timeout }).await?;
    match (change, operation.retry_refused(Timestamp::now(), app.0.retry_window)) {
        (Change::None, Some(refused)) => Err(refusal(refused, &operation).into()),
        // It was still allowed a moment ago, or was allowed again: the caller may ask once more.
        (Change::None, None) => Err(refusal(RetryRefused::NotFailed, &operation).into()),
        _ => Ok(located(&app, StatusCode::ACCEPTED, &operation, &headers)),
    }
}

async fn apply(app: &App, caller: &Caller, id: &str, event: Event) -> Result<(Operation, Change), Error> {
    let id = parse_id(id)?;
    let applied = app.0.engine.store.apply_in(caller.scope(), id, event, Timestamp::now()).await?;
    let Some(applied) = applied else { return Err(app.missing(caller, id).await) };
    if applied.change != Change::None {
        app.0.engine.gateway.changed(&applied.operation, &applied.change);
    }
    Ok((applied.operation, applied.change))
}

fn located(app: &App, status: StatusCode, operation: &Operation, headers: &HeaderMap) -> Response {
    let mut response = app.operation_response(status, operation, headers);
    insert(&mut response, header::LOCATION, &app.operation_url(headers, operation.id));
    response
}

fn refusal(refused: RetryRefused, operation: &Operation) -> Problem {
    let status = crate::store::status_name(operation);
    let not_failed = |detail: &str| Problem::new("not-failed", 409, "There is nothing to retry", detail);
    match refused {
        RetryRefused::NotFailed => not_failed(&format!("only a failed operation can be retried; this is {status}")),
        RetryRefused::CancelRequested => {
            not_failed("it was to be canceled, so its provider may refuse it for good; submit a new request")
        }
        RetryRefused::SucceededLate => not_failed("it succeeded after its deadline; see lateOutcome"),
        RetryRefused::TooLate => Problem::new(
            "too-late-to-retry",
            409,
            "Too late to retry",
            "its provider may no longer know what it has done for it; submit a new request",
        ),
    }
}
