//! `order.place`: takes items out of an inventory, once for each operation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kind's name.
pub const KIND: &str = "order.place";

/// An order. Either all of it is taken from the inventory or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Order {
    /// Who orders, 1 to 100 characters.
    #[schemars(length(min = 1, max = 100))]
    pub customer: String,
    /// What is ordered, 1 to 100 lines; each article at most once.
    #[schemars(length(min = 1, max = 100))]
    pub items: Vec<OrderItem>,
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OrderItem {
    /// The article (stock keeping unit), 1 to 50 characters.
    #[schemars(length(min = 1, max = 50))]
    pub sku: String,
    /// How many, 1 to 10,000.
    #[schemars(range(min = 1, max = 10_000))]
    pub quantity: u32,
    /// The price of one in cents as the caller knows it, at most 100,000,000; refused if the inventory has another.
    #[schemars(range(min = 0, max = 100_000_000))]
    pub unit_price_cents: u64,
}

/// A placed order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OrderConfirmation {
    /// The order's number: the same however often the request is repeated.
    pub order_id: String,
    /// What it costs altogether, in cents.
    pub total_cents: u64,
    /// The lines with what is left of each article.
    pub items: Vec<ConfirmedItem>,
}

/// One line of a placed order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConfirmedItem {
    /// The article.
    pub sku: String,
    /// How many were ordered.
    pub quantity: u32,
    /// How many are left in stock after this order.
    pub stock_left: u64,
}
