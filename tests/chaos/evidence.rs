//! What is there after the run: operations as the requestor tells them, effects as the ledger's tables and the payment
//! server's journal have them.

use crate::history::Came;
use crate::load::Answer;
use crate::sink::{self, Call};
use crate::stack::Stack;
use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};
use harness::caller::Caller;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Results that are read at a time.
const READERS: usize = 16;

/// An operation as the requestor tells it.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) operation: Value,
    /// Its result, if it has succeeded.
    pub(crate) result: Option<Value>,
}

/// An order as the ledger's tables have it.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) id: String,
    /// The request's reference.
    pub(crate) customer: String,
    pub(crate) total_cents: u64,
}

/// An event of an operation's log.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) number: u64,
    pub(crate) sort: String,
}

/// What the provider's ledger has.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) orders: Vec<Order>,
    /// How many mice were ordered, by the order lines.
    pub(crate) ordered: i64,
    /// How many are left.
    pub(crate) stock: i64,
}

/// All operations, also those whose 202 was lost, by id.
///
/// # Errors
/// When the requestor does not tell.
pub(crate) async fn operations(caller: &Caller) -> anyhow::Result<BTreeMap<String, Told>> {
    let (mut told, mut token) = (BTreeMap::new(), String::new());
    loop {
        let page = ask(caller, &format!("/v1/operations?pageSize=200{token}")).await?;
        for operation in page["operations"].as_array().context("no operations in a page")? {
            let id = operation["id"].as_str().context("an operation without id")?.to_owned();
            told.insert(id, Told { operation: operation.clone(), result: None });
        }
        match page["nextPageToken"].as_str() {
            Some(next) => token = format!("&pageToken={next}"),
            None => break,
        }
    }
    let succeeded = told.iter_mut().filter(|(_, told)| told.operation["status"] == "Succeeded");
    let mut read = stream::iter(succeeded)
        .map(|(id, told)| async move {
            told.result = Some(ask(caller, &format!("/v1/operations/{id}/result")).await?);
            anyhow::Ok(())
        })
        .buffer_unordered(READERS);
    while let Some(read) = read.next().await {
        read?;
    }
    drop(read);
    Ok(told)
}

/// How many operations are open, at most a page.
///
/// # Errors
/// When the requestor does not tell.
pub(crate) async fn open(caller: &Caller) -> anyhow::Result<usize> {
    let mut open = 0;
    for status in ["NotStarted", "Running"] {
        let page = ask(caller, &format!("/v1/operations?status={status}&pageSize=200")).await?;
        open += page["operations"].as_array().context("no operations in a page")?.len();
    }
    Ok(open)
}

async fn ask(caller: &Caller, path: &str) -> anyhow::Result<Value> {
    let answer = Answer::of(caller.request("GET", path).send().await).await;
    ensure!(answer.came == Came::Ok, "GET {path}: {}", answer.body);
    Ok(answer.body)
}

/// The ledger's tables, after the provider has ended.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn ledger(folder: &Path) -> anyhow::Result<Ledger> {
    let database = database(&folder.join("provider.db"))?;
    let mut statement = database.prepare("select id, customer, total_cents from orders")?;
    let order =
        |row: &rusqlite::Row<'_>| Ok(Order { id: row.get(0)?, customer: row.get(1)?, total_cents: row.get(2)? });
    let orders = statement.query_map([], order)?.collect::<Result<_, _>>()?;
    let number = |sql| database.query_row(sql, [], |row| row.get(0));
    Ok(Ledger {
        orders,
        ordered: number("select coalesce(sum(quantity), 0) from order_items where sku = 'mouse'")?,
        stock: number("select stock from inventory where sku = 'mouse'")?,
    })
}

/// How many requests were sent more than once, after the requestor has ended.
///
/// # Errors
/// When its store cannot be read.
pub(crate) fn resent(folder: &Path) -> anyhow::Result<usize> {
    let database = database(&folder.join("requestor.db"))?;
    Ok(database.query_row("select count(*) from operations where sends > 1", [], |row| row.get(0))?)
}

/// The operations' event logs, by operation id, after the requestor has ended.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn events(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<Event>>> {
    let database = database(&folder.join("requestor.db"))?;
    let mut statement = database.prepare("select id, number, type from events order by id, number")?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, uuid::Uuid>(0)?, Event { number: row.get(1)?, sort: row.get(2)? })))?;
    let mut events = BTreeMap::<String, Vec<Event>>::new();
    for row in rows {
        let (id, event) = row?;
        events.entry(id.to_string()).or_default().push(event);
    }
    Ok(events)
}

/// What the payment server did.
///
/// # Errors
/// When its journal cannot be read.
pub(crate) fn payments(stack: &Stack) -> anyhow::Result<Vec<Call>> {
    sink::calls(&stack.sink_journal())
}

fn database(path: &Path) -> anyhow::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .with_context(|| format!("cannot open {}", path.display()))
}
