//! Messages with everything that the code puts into one, made by the code.

use super::examples;
use super::fields::EXAMPLE_ID;
use jiff::Timestamp;
use shared::message::{
    self, Announcement, Cancel, Content, Message, Outcome, Progress, Reply, Request, ReturnAddress, Unreadable,
};
use shared::problem::Problem;
use std::time::Duration;

fn sample() -> Result<Request, Unreadable> {
    let body = examples::bodies().into_iter().find(|(kind, _)| *kind == "order.place");
    Ok(Request {
        operation: Some(EXAMPLE_ID.parse()?),
        correlation_id: EXAMPLE_ID.into(),
        kind: "order.place".into(),
        step: 1,
        attempt: 1,
        deadline: deadline().checked_add(Duration::from_secs(300)).ok(),
        expiration: None,
        reply_to: Some(ReturnAddress::Group("default".into())),
        priority: Some(5),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        content: Content::json(body.map(|(_, body)| body.to_string()).unwrap_or_default()),
    })
}

fn deadline() -> Timestamp {
    "2026-01-02T09:00:00Z".parse().unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(super) fn request() -> Result<Message, Unreadable> {
    sample()?.to_message(EXAMPLE_ID.parse()?, "default", deadline())
}

pub(super) fn progress() -> Result<Message, Unreadable> {
    let progress = Progress {
        step: 1,
        attempt: 1,
        sequence: 1_767_344_400_000_000,
        percent: Some(42.0),
        message: Some("packing".into()),
        lease: Some(Duration::from_secs(45)),
    };
    sample()?.progress_message(&progress)?.ok_or_else(|| Unreadable("nobody to report to".into()))
}

pub(super) fn reply() -> Result<Message, Unreadable> {
    let result = r#"{"orderId":"o-1","totalCents":9998,"items":[{"sku":"keyboard","quantity":2,"stockLeft":98}]}"#;
    answer(Reply::new(1, 1, Outcome::Succeeded(Content::json(result))))
}

pub(super) fn error() -> Result<Message, Unreadable> {
    let problem = Problem::new("payment-unavailable", 503, "The payment service cannot be reached", "it is down");
    let failed = Reply::new(1, 1, Outcome::Failed(problem));
    answer(Reply { retryable: true, retry_after: Some(Duration::from_secs(3)), ..failed })
}

fn answer(reply: Reply) -> Result<Message, Unreadable> {
    message::answer(&ReturnAddress::Group("default".into()), EXAMPLE_ID, &reply)
}

pub(super) fn announcement() -> Result<Message, Unreadable> {
    let schemas = shared::schema::built_in().into_iter().find(|(kind, _)| *kind == "payment.charge");
    let announcement = Announcement {
        kind: "payment.charge".into(),
        group: "default".into(),
        instance: EXAMPLE_ID.into(),
        version: "1.4.2".into(),
        effect: Some(message::Effect::External),
        concurrency: 4,
        schemas: schemas.map(|(_, schemas)| schemas).unwrap_or_default(),
        lease_seconds: 45,
        leaving: false,
    };
    announcement.to_message()
}

pub(super) fn cancel() -> Result<Message, Unreadable> {
    let (operation, reply_to) = (EXAMPLE_ID.parse()?, ReturnAddress::Group("default".into()));
    let cancel = Cancel { operation, kind: "order.place".into(), step: 1, attempt: 1, deadline: deadline(), reply_to };
    cancel.to_message()
}
