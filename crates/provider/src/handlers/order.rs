//! `order.place`: takes items out of an inventory, all of them or none, once for each request.

use crate::config::Article;
use crate::handler::Failure;
use crate::ledger::Transaction;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;
use shared::problem::Problem;
use shared::schema::order::{ConfirmedItem, Order, OrderConfirmation, OrderItem};
use std::collections::HashSet;

const CREATE: &str = "
create table if not exists inventory (
    sku text primary key,
    price_cents integer not null check (price_cents >= 0),
    stock integer not null check (stock >= 0)
) strict;
create table if not exists orders (
    id text primary key,
    customer text not null,
    total_cents integer not null
) strict;
create table if not exists order_items (
    order_id text not null references orders (id),
    sku text not null references inventory (sku),
    quantity integer not null,
    price_cents integer not null,
    primary key (order_id, sku)
) strict, without rowid;
";

/// Creates the tables and the articles that are not there yet.
pub(crate) fn prepare(connection: &Connection, inventory: &[Article]) -> rusqlite::Result<()> {
    connection.execute_batch(CREATE)?;
    let mut insert = connection.prepare("insert or ignore into inventory values (?1, ?2, ?3)")?;
    for article in inventory {
        insert.execute(params![article.sku, article.price_cents, article.stock])?;
    }
    Ok(())
}

/// Places an order: takes the stock and stores the order, in the transaction that also records the outcome.
pub(crate) fn place(order: Order, transaction: &Transaction<'_>) -> Result<OrderConfirmation, Failure> {
    check(&order)?;
    let connection = transaction.connection();
    let articles = order.items.iter().map(|item| article(connection, item)).collect::<Result<Vec<_>, _>>()?;
    let shortages: Vec<_> = order
        .items
        .iter()
        .zip(&articles)
        .filter(|(item, stock)| u64::from(item.quantity) > **stock)
        .map(|(item, stock)| json!({ "sku": item.sku, "requested": item.quantity, "available": stock }))
        .collect();
    if !shortages.is_empty() {
        let detail = format!(
            "{} of {} articles are not in stock as ordered; nothing was taken",
            shortages.len(),
            articles.len()
        );
        return Err(Failure::Permanent(
            Problem::new("out-of-stock", 409, "Out of stock", detail).with("shortages", shortages),
        ));
    }
    store(connection, transaction.identity(), &order)?;
    let left = |(item, stock): (&OrderItem, u64)| ConfirmedItem {
        sku: item.sku.clone(),
        quantity: item.quantity,
        stock_left: stock - u64::from(item.quantity),
    };
    Ok(OrderConfirmation {
        order_id: transaction.identity().to_owned(),
        total_cents: total(&order),
        items: order.items.iter().zip(articles).map(left).collect(),
    })
}

/// What the schema cannot say, and what it says, for senders that did not ask it.
fn check(order: &Order) -> Result<(), Failure> {
    if order.items.is_empty() || order.items.len() > 100 {
        return Err(Failure::invalid("/items", "an order has 1 to 100 lines"));
    }
    let mut seen = HashSet::new();
    for (index, item) in order.items.iter().enumerate() {
        if !(1..=10_000).contains(&item.quantity) {
            return Err(Failure::invalid(&format!("/items/{index}/quantity"), "a quantity is 1 to 10,000"));
        }
        if !seen.insert(&item.sku) {
            let detail = format!("{} is ordered twice; use one line with the sum", item.sku);
            return Err(Failure::invalid(&format!("/items/{index}/sku"), detail));
        }
    }
    Ok(())
}

/// How many there are of an article whose price is as the order says.
fn article(connection: &Connection, item: &OrderItem) -> Result<u64, Failure> {
    let found: Option<(u64, u64)> = connection
        .prepare_cached("select price_cents, stock from inventory where sku = ?1")?
        .query_row([&item.sku], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        None => {
            let detail = format!("the inventory has no article {:?}", item.sku);
            Err(Failure::Permanent(
                Problem::new("unknown-article", 422, "Unknown article", detail).with("sku", item.sku.as_str()),
            ))
        }
        Some((price, _)) if price != item.unit_price_cents => {
            let detail = format!("{} costs {price} cents, not {}", item.sku, item.unit_price_cents);
            let problem = Problem::new("price-changed", 409, "The price has changed", detail);
            Err(Failure::Permanent(problem.with("sku", item.sku.as_str()).with("priceCents", price)))
        }
        Some((_, stock)) => Ok(stock),
    }
}

fn store(connection: &Connection, id: &str, order: &Order) -> rusqlite::Result<()> {
    connection.prepare_cached("insert into orders values (?1, ?2, ?3)")?.execute(params![
        id,
        order.customer,
        total(order)
    ])?;
    for item in &order.items {
        connection.prepare_cached("insert into order_items values (?1, ?2, ?3, ?4)")?.execute(params![
            id,
            item.sku,
            item.quantity,
            item.unit_price_cents
        ])?;
        connection
            .prepare_cached("update inventory set stock = stock - ?2 where sku = ?1")?
            .execute(params![item.sku, item.quantity])?;
    }
    Ok(())
}

fn total(order: &Order) -> u64 {
    order
        .items
        .iter()
        .map(|item| item.unit_price_cents.saturating_mul(item.quantity.into()))
        .fold(0, u64::saturating_add)
}
