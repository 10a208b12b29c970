//! The payloads of the kinds that come with the product: one module a kind.
//!
//! JSON in camelCase, unknown fields refused. The JSON Schema made from these types is what the requestor validates
//! with.

pub mod order;
pub mod payment;
pub mod risk;
pub mod video;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kind that answers with what it was sent: any JSON.
pub const ECHO: &str = "echo";

/// What requests and results of a kind look like, as JSON Schemas; none where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Schemas {
    /// Of a request.
    #[serde(rename = "requestSchema", default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
    /// Of a result.
    #[serde(rename = "resultSchema", default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

impl Schemas {
    /// Those of two types.
    #[must_use]
    pub fn of<Q: JsonSchema, P: JsonSchema>() -> Self {
        let schema = |schema: schemars::Schema| Some(schema.to_value());
        Self { request: schema(schemars::schema_for!(Q)), result: schema(schemars::schema_for!(P)) }
    }
}

/// The kinds that come with the product.
#[must_use]
pub fn built_in() -> Vec<(&'static str, Schemas)> {
    vec![
        (ECHO, Schemas { request: Some(Value::Bool(true)), result: Some(Value::Bool(true)) }),
        (order::KIND, Schemas::of::<order::Order, order::OrderConfirmation>()),
        (payment::KIND, Schemas::of::<payment::Charge, payment::Receipt>()),
        (risk::KIND, Schemas::of::<risk::RiskRequest, risk::RiskReport>()),
        (video::CAPTURE, Schemas::of::<video::Capture, video::Compress>()),
        (video::COMPRESS, Schemas::of::<video::Compress, video::Deliver>()),
        (video::DELIVER, Schemas::of::<video::Deliver, video::Stream>()),
    ]
}
