//! What a receiver is told.

use crate::http::view::OperationView;
use crate::operation::{Operation, State, summary};
use crate::store::status_name;
use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::message::{Content, JSON};

/// The largest result that is sent along; a larger one is a link. Receivers may refuse bodies above 20 KB (Standard
/// Webhooks 1.0, "Payload size").
const RESULT_BYTES_MAX: usize = 16 * 1024;

/// The body of a delivery.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "WebhookDocument", description = "What the receiver of a webhook is told.")]
pub(crate) struct Document<'a> {
    /// What happened: `operation.succeeded`, `operation.failed` or `operation.canceled`.
    #[serde(rename = "type")]
    event_type: &'a str,
    /// When it happened.
    timestamp: Timestamp,
    /// The operation, and its result if that is JSON and small.
    data: Data<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "WebhookData")]
struct Data<'a> {
    #[serde(flatten)]
    operation: OperationView<'a>,
    /// The URL of the operation.
    operation_location: &'a str,
    /// The result, if it is JSON and small; else see `resultLocation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    result: Option<Box<RawValue>>,
}

/// The type and the body of what the receiver is told of an operation that has just ended. The body is made once, in the
/// commit of the outcome: every attempt says the same, whatever becomes of the operation afterwards.
pub(super) fn document(operation: &Operation, result: Option<&Content>) -> Option<(String, Bytes)> {
    let callback = operation.callback.as_ref()?;
    let url = format!("{}/v1/operations/{}", callback.base_url, operation.id);
    let event_type = format!("operation.{}", status_name(operation).to_ascii_lowercase());
    let timestamp = operation.ended_at.unwrap_or(operation.updated_at);
    let operation = with_short_problem(operation);
    let data =
        Data { operation: OperationView::new(&operation, &url), operation_location: &url, result: inline(result) };
    let body = serde_json::to_vec(&Document { event_type: &event_type, timestamp, data }).ok()?;
    Some((event_type, body.into()))
}

/// A small result that is JSON as everybody reads it.
fn inline(result: Option<&Content>) -> Option<Box<RawValue>> {
    let result = result.filter(|result| result.content_type == JSON && result.body.len() <= RESULT_BYTES_MAX)?;
    shared::json::check(&result.body).ok()?;
    serde_json::from_slice(&result.body).ok()
}

/// A large problem loses what a link leads to.
fn with_short_problem(operation: &Operation) -> Operation {
    let mut operation = operation.clone();
    if let State::Failed(problem) | State::Canceled(problem) = &mut operation.state
        && problem.to_json().len() > RESULT_BYTES_MAX
    {
        *problem = summary(problem);
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Callback;
    use serde_json::{Value, json};
    use shared::problem::Problem;
    use std::time::Duration;

    fn ended(state: State) -> Operation {
        let minute = Duration::from_secs(60);
        let mut operation = Operation::new("echo", Timestamp::UNIX_EPOCH, minute, minute);
        operation.callback =
            Some(Callback { url: "https://example.com/".into(), base_url: "https://requests.example".into() });
        (operation.state, operation.ended_at) = (state, Some(Timestamp::UNIX_EPOCH));
        operation
    }

    fn read(operation: &Operation, result: Option<&Content>) -> Value {
        serde_json::from_slice(&document(operation, result).unwrap().1).unwrap()
    }

    #[test]
    fn a_small_result_is_sent_along_and_any_other_is_a_link() {
        let operation = ended(State::Succeeded);
        let document = read(&operation, Some(&Content::json("{\"a\": [1.0]}")));
        let url = format!("https://requests.example/v1/operations/{}", operation.id);
        assert_eq!(document["type"], "operation.succeeded");
        assert_eq!(document["timestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(document["data"]["result"], json!({"a": [1.0]}));
        assert_eq!(document["data"]["status"], "Succeeded");
        assert_eq!(document["data"]["resultLocation"], format!("{url}/result"));
        assert_eq!(document["data"]["operationLocation"], url);
        let large = format!("\"{}\"", "x".repeat(RESULT_BYTES_MAX));
        let text = Content { content_type: "text/plain".into(), body: "1".into() };
        for linked in [Content::json(large), Content::json("{\"a\":1,\"a\":2}"), Content::json("no JSON"), text] {
            let document = read(&operation, Some(&linked));
            assert_eq!(document["data"].get("result"), None);
            assert_eq!(document["data"]["resultLocation"], format!("{url}/result"));
        }
    }

    #[test]
    fn a_failure_is_told_with_its_problem_and_a_large_one_in_short() {
        let problem = Problem::new("broken", 500, "Broken", "no").with("part", 7);
        let failed = read(&ended(State::Failed(problem.clone())), None);
        assert_eq!((&failed["type"], &failed["data"]["error"]["part"]), (&json!("operation.failed"), &json!(7)));
        let large = problem.with("trace", "x".repeat(RESULT_BYTES_MAX));
        let canceled = read(&ended(State::Canceled(large)), None);
        assert_eq!(canceled["type"], "operation.canceled");
        assert_eq!(
            (&canceled["data"]["error"]["title"], canceled["data"]["error"].get("trace")),
            (&json!("Broken"), None)
        );
        assert!(document(&Operation { callback: None, ..ended(State::Succeeded) }, None).is_none());
    }
}
