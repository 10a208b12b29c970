//! `order.place`: takes items out of an inventory, all of them or none, once for each request.

use crate::config::Article;
use crate::handler::Failure;
use crate::ledger::{PostgresTransaction, Transaction};
use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;
use shared::problem::Problem;
use shared::schema::order::{ConfirmedItem, Order, OrderConfirmation, OrderItem};
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};

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

const CREATE_ON_POSTGRES: &str = "
create table if not exists inventory (
    sku text primary key,
    price_cents bigint not null check (price_cents >= 0),
    stock bigint not null check (stock >= 0)
);
create table if not exists orders (
    id text primary key,
    customer text not null,
    total_cents bigint not null
);
create table if not exists order_items (
    order_id text not null references orders (id),
    sku text not null references inventory (sku),
    quantity bigint not null,
    price_cents bigint not null,
    primary key (order_id, sku)
);
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

/// As [`prepare`].
pub(crate) async fn prepare_on_postgres(connection: &mut PgConnection, inventory: Vec<Article>) -> sqlx::Result<()> {
    sqlx::raw_sql(CREATE_ON_POSTGRES).execute(&mut *connection).await?;
    let insert =
        "insert into inventory select * from unnest($1::text[], $2::bigint[], $3::bigint[]) on conflict do nothing";
    let (skus, (prices, stock)): (Vec<_>, (Vec<_>, Vec<_>)) = inventory
        .into_iter()
        .map(|article| (article.sku, (i64::from(article.price_cents), i64::from(article.stock))))
        .unzip();
    sqlx::query(insert).bind(skus).bind(prices).bind(stock).execute(connection).await?;
    Ok(())
}

/// Places an order: takes the stock and stores the order, in the transaction that also records the outcome.
pub(crate) fn place(order: Order, transaction: &Transaction<'_>) -> Result<OrderConfirmation, Failure> {
    check(&order)?;
    let connection = transaction.connection();
    let found = order.items.iter().map(|item| find(connection, item)).collect::<Result<Vec<_>, _>>()?;
    let confirmation = confirm(&order, transaction.identity(), &found)?;
    store(connection, transaction.identity(), &order)?;
    Ok(confirmation)
}

/// As [`place`].
pub(crate) fn place_on_postgres(
    order: Order,
    transaction: &mut PostgresTransaction,
) -> BoxFuture<'_, Result<OrderConfirmation, Failure>> {
    Box::pin(async move {
        check(&order)?;
        let id = transaction.identity().to_owned();
        let connection = transaction.connection();
        // In one order, so that two transactions never wait for each other.
        let find = "select sku, price_cents, stock from inventory where sku = any($1) order by sku for update";
        let skus: Vec<_> = order.items.iter().map(|item| item.sku.as_str()).collect();
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(find).bind(&skus).fetch_all(&mut *connection).await?;
        let articles: HashMap<_, _> = rows
            .iter()
            .map(|(sku, price, stock)| (sku.as_str(), (price.unsigned_abs(), stock.unsigned_abs())))
            .collect();
        let found: Vec<_> = skus.iter().map(|sku| articles.get(sku).copied()).collect();
        let confirmation = confirm(&order, &id, &found)?;
        let insert = "insert into orders values ($1, $2, $3)";
        let total = i64::try_from(confirmation.total_cents).unwrap_or(i64::MAX);
        sqlx::query(insert).bind(&id).bind(&order.customer).bind(total).execute(&mut *connection).await?;
        let quantities: Vec<_> = order.items.iter().map(|item| i64::from(item.quantity)).collect();
        let take = "with items as (select * from unnest($2::text[], $3::bigint[]) as items (sku, quantity)),
            taken as (
                update inventory set stock = stock - quantity from items where inventory.sku = items.sku
                returning inventory.sku, quantity, price_cents
            )
            insert into order_items select $1, sku, quantity, price_cents from taken";
        sqlx::query(take).bind(&id).bind(skus).bind(quantities).execute(connection).await?;
        Ok(confirmation)
    })
}

/// What is confirmed if each article has the price and the stock that were `found` for it; else what is wrong.
fn confirm(order: &Order, id: &str, found: &[Option<(u64, u64)>]) -> Result<OrderConfirmation, Failure> {
    let stocks =
        order.items.iter().zip(found).map(|(item, found)| stock(item, *found)).collect::<Result<Vec<_>, _>>()?;
    let shortages: Vec<_> = order
        .items
        .iter()
        .zip(&stocks)
        .filter(|(item, stock)| u64::from(item.quantity) > **stock)
        .map(|(item, stock)| json!({ "sku": item.sku, "requested": item.quantity, "available": stock }))
        .collect();
    if !shortages.is_empty() {
        let detail =
            format!("{} of {} articles are not in stock as ordered; nothing was taken", shortages.len(), stocks.len());
        return Err(Failure::Permanent(
            Problem::new("out-of-stock", 409, "Out of stock", detail).with("shortages", shortages),
        ));
    }
    let left = |(item, stock): (&OrderItem, u64)| ConfirmedItem {
        sku: item.sku.clone(),
        quantity: item.quantity,
        stock_left: stock - u64::from(item.quantity),
    };
    Ok(OrderConfirmation {
        order_id: id.to_owned(),
        total_cents: total(order),
        items: order.items.iter().zip(stocks).map(left).collect(),
    })
}

/// What the schema cannot say, and what it says, for senders that did not ask it.
fn check(order: &Order) -> Result<(), Failure> {
    if order.items.is_empty() || order.items.len() > 100 {
        return Err(Failure::invalid("/items", "an order has 1 to 100 lines"));
    }
    // PostgreSQL has no text with a zero in it.
    if order.customer.contains('\0') {
        return Err(Failure::invalid("/customer", "a name has no U+0000"));
    }
    let mut seen = HashSet::new();
    for (index, item) in order.items.iter().enumerate() {
        if !(1..=10_000).contains(&item.quantity) {
            return Err(Failure::invalid(&format!("/items/{index}/quantity"), "a quantity is 1 to 10,000"));
        }
        if item.sku.contains('\0') {
            return Err(Failure::invalid(&format!("/items/{index}/sku"), "an article has no U+0000"));
        }
        if !seen.insert(&item.sku) {
            let detail = format!("{} is ordered twice; use one line with the sum", item.sku);
            return Err(Failure::invalid(&format!("/items/{index}/sku"), detail));
        }
    }
    Ok(())
}

/// The price and the stock of an article.
fn find(connection: &Connection, item: &OrderItem) -> rusqlite::Result<Option<(u64, u64)>> {
    connection
        .prepare_cached("select price_cents, stock from inventory where sku = ?1")?
        .query_row([&item.sku], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// How many there are of an article whose price is as the order says.
fn stock(item: &OrderItem, found: Option<(u64, u64)>) -> Result<u64, Failure> {
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
