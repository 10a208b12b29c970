use super::caller::Caller;
use serde_json::{Value, json};
use std::path::Path;

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

/// Waits until all orders have succeeded and checks that the ledger in `folder` has each of them once and no other.
///
/// # Panics
/// When one was lost, failed or had its effect twice.
pub async fn placed_once(caller: &Caller, ids: &[String], folder: &Path) {
    for id in ids {
        caller.result(id).await;
    }
    let count = i64::try_from(ids.len()).unwrap();
    assert_eq!(taken(folder), (count, count), "stock taken and orders stored");
}

/// The mice that were taken and the orders that were stored, by the ledger in `folder`.
///
/// # Panics
/// When there is no ledger yet.
#[must_use]
pub fn taken(folder: &Path) -> (i64, i64) {
    let ledger = rusqlite::Connection::open(folder.join("provider.db")).unwrap();
    let ask = |sql| ledger.query_row::<i64, _, _>(sql, [], |row| row.get(0)).unwrap();
    (MICE - ask("select stock from inventory where sku = 'mouse'"), ask("select count(*) from orders"))
}
