use super::caller::Caller;
use super::store::StoreOfTest;
use serde_json::{Value, json};

/// The mice there are before the first order, by the provider's default configuration.
pub const MICE: i64 = 5000;

/// One mouse, please.
#[must_use]
pub fn order() -> Value {
    json!({"customer": "Ada", "items": [{"sku": "mouse", "quantity": 1, "unitPriceCents": 1999}]})
}

/// Places `count` orders one after another; the operations' ids.
pub async fn place(caller: &Caller, count: usize) -> Vec<String> {
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        ids.push(caller.submit("order.place", &order()).await);
    }
    ids
}

/// Waits until all orders have succeeded and checks that the ledger has each of them once and no other.
///
/// # Panics
/// When one was lost, failed or had its effect twice.
pub async fn placed_once(caller: &Caller, ids: &[String], ledger: &StoreOfTest) {
    for id in ids {
        caller.result(id).await;
    }
    let count = i64::try_from(ids.len()).unwrap();
    assert_eq!(taken(ledger).await, (count, count), "stock taken and orders stored");
}

/// The mice that were taken and the orders that were stored, by the ledger.
///
/// # Panics
/// When there is no ledger yet.
pub async fn taken(ledger: &StoreOfTest) -> (i64, i64) {
    let sql = "select stock, (select count(*) from orders) from inventory where sku = 'mouse'";
    let [stock, orders] = ledger.numbers(sql).await;
    (MICE - stock, orders)
}
