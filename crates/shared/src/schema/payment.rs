//! `payment.charge`: takes money from a customer through a payment service, once for each operation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kind's name.
pub const KIND: &str = "payment.charge";

/// What is to be charged to whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Charge {
    /// The amount in cents, 1 to 100,000,000.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub amount_cents: u64,
    /// Who pays, 1 to 100 characters.
    #[schemars(length(min = 1, max = 100))]
    pub customer: String,
}

/// A charge that the payment service has accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Receipt {
    /// The idempotency key under which the service knows the charge.
    pub idempotency_key: String,
    /// The amount in cents.
    pub amount_cents: u64,
    /// Who pays.
    pub customer: String,
    /// The service's answer, if it was JSON.
    pub answer: serde_json::Value,
}
