//! Examples: requests as people would write them, and answers as the code makes them.

use super::fields::EXAMPLE_ID;
use crate::http::OperationView;
use crate::operation::{Operation, State};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use shared::message::Progress;
use shared::problem::Problem;
use std::time::Duration;

const URL: &str = "https://requests.example.com/v1/operations/0199a3b2-7c1e-7f43-9d5a-2b8e4c6f1a07";

/// A request of each kind that comes with the product.
pub(super) fn bodies() -> Vec<(&'static str, Value)> {
    let video = "file:///var/lib/arr/objects/captured.mp4";
    vec![
        ("echo", json!({ "hello": "world" })),
        (
            "order.place",
            json!({ "customer": "Ada", "items": [{ "sku": "keyboard", "quantity": 2, "unitPriceCents": 4999 }] }),
        ),
        ("payment.charge", json!({ "amountCents": 4999, "customer": "Ada" })),
        (
            "risk.analyze",
            json!({ "weights": [0.6, 0.4], "means": [0.0004, 0.0002], "covariance": [[0.0001, 0.0], [0.0, 0.00005]],
                "horizonDays": 10, "paths": 100_000, "seed": 42 }),
        ),
        ("video.capture", json!({ "source": { "test": { "seconds": 5 } } })),
        ("video.compress", json!({ "url": video, "codec": "h264" })),
        ("video.deliver", json!({ "url": video })),
    ]
}

/// The same as an OpenAPI document wants it.
pub(super) fn requests() -> Map<String, Value> {
    bodies().into_iter().map(|(kind, body)| (kind.to_owned(), json!({ "value": body }))).collect()
}

/// Answers, by the names that calls have for them.
pub(super) fn answers() -> Map<String, Value> {
    let (accepted, out_of_stock) = (operation(), problem());
    let progress = Progress {
        step: 1,
        attempt: 1,
        sequence: 1,
        percent: Some(42.0),
        message: Some("420000 of 1000000 paths".into()),
        lease: None,
    };
    let with = |state| Operation { state, expires_at: accepted.expires_at, ..operation() };
    let ended = |state| Operation { expires_at: "2026-01-05T09:00:00Z".parse().ok(), ..with(state) };
    let operations = [
        ("accepted", accepted.clone()),
        ("running", with(State::Running(progress))),
        ("succeeded", ended(State::Succeeded)),
        ("failed", ended(State::Failed(out_of_stock.clone()))),
        ("canceled", Operation { cancel_requested: true, ..ended(State::Canceled(Problem::canceled())) }),
    ];
    let mut examples: Map<_, _> = operations
        .iter()
        .map(|(name, operation)| ((*name).to_owned(), json!(OperationView::new(operation, URL))))
        .collect();
    let page = json!({ "operations": [examples["succeeded"]], "nextPageToken": null });
    let first = operation().record_created();
    let event = json!({ "number": first.number, "at": first.at, "type": first.event_type, "data": first.data });
    examples.insert("operations".into(), page);
    let mut of_all = event.clone();
    (of_all["sequence"], of_all["operation"], of_all["kind"]) = (json!(1), json!(EXAMPLE_ID), json!("order.place"));
    examples.insert("events".into(), json!({ "events": [event] }));
    examples.insert("log".into(), json!({ "events": [of_all], "gone": false }));
    examples.insert("kinds".into(), json!({ "kinds": [kind()] }));
    examples.insert("kind".into(), kind());
    examples.insert("outcome".into(), json!(out_of_stock));
    examples.into_iter().map(|(name, value)| (name, json!({ "value": value }))).collect()
}

fn operation() -> Operation {
    let at = "2026-01-02T09:00:00Z".parse().unwrap_or(Timestamp::UNIX_EPOCH);
    let mut operation = Operation::new("order.place", at, Duration::from_secs(300), Duration::from_secs(2));
    operation.id = EXAMPLE_ID.parse().unwrap_or(operation.id);
    operation
}

fn kind() -> Value {
    json!({ "kind": "video.publish", "configured": true, "live": false, "providersSeen": 0, "timeoutSeconds": 14400,
        "attempts": 3, "steps": ["video.capture", "video.compress", "video.deliver"] })
}

fn problem() -> Problem {
    let shortages = json!([{ "sku": "unicorn", "requested": 1, "available": 0 }]);
    Problem::new("out-of-stock", 409, "Out of stock", "not enough in stock of 1 article").with("shortages", shortages)
}
