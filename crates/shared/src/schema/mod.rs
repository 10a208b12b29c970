//! The payloads of the kinds that come with the product: one module a kind.
//!
//! JSON in camelCase, unknown fields refused. The JSON Schema made from these types is what the requestor validates
//! with.

pub mod order;
pub mod payment;
pub mod risk;
pub mod video;

use serde_json::Value;

/// The kind that answers with what it was sent: any JSON.
pub const ECHO: &str = "echo";

/// The kinds that come with the product, each with the JSON Schema of its request.
#[must_use]
pub fn built_in() -> Vec<(&'static str, Value)> {
    vec![
        (ECHO, Value::Bool(true)),
        (order::KIND, schemars::schema_for!(order::Order).to_value()),
        (payment::KIND, schemars::schema_for!(payment::Charge).to_value()),
        (risk::KIND, schemars::schema_for!(risk::RiskRequest).to_value()),
        (video::CAPTURE, schemars::schema_for!(video::Capture).to_value()),
        (video::COMPRESS, schemars::schema_for!(video::Compress).to_value()),
        (video::DELIVER, schemars::schema_for!(video::Deliver).to_value()),
    ]
}
