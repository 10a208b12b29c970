//! Fills a store with operations that have ended: copies of one that really has, with ids and times of their own.

use super::{ready, url};
use anyhow::{Context, ensure};
use harness::process::Service;
use jiff::Timestamp;
use rand::RngExt;
use rusqlite::types::Value as Field;
use rusqlite::{Connection, params_from_iter};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Over how long the times are spread.
const SPAN: Duration = Duration::from_hours(24);
/// What the quotas count of each operation beside its bodies.
const RECORD_BYTES: i64 = 1024;

/// Lets one operation end, which the others are copies of.
pub(super) async fn first(requestor: &Service, http: &reqwest::Client) -> anyhow::Result<()> {
    let mut process = requestor.start().await;
    let url = url(requestor);
    ready(&url).await;
    let request = http.post(format!("{url}/v1/requests/echo")).header("prefer", "wait=30");
    let response = request.json(&super::payload(256)).send().await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    super::end(&mut process).await
}

/// Adds `count` operations that ended within [`SPAN`] before `age` ago; the ids of some hundred thousand of them.
pub(super) async fn more(folder: &Path, count: usize, age: Duration) -> anyhow::Result<Vec<String>> {
    let file = folder.join("requestor.db");
    tokio::task::spawn_blocking(move || insert(&file, count, age)).await?
}

/// How many operations there are.
pub(super) fn count(folder: &Path) -> anyhow::Result<u64> {
    Ok(Connection::open(folder.join("requestor.db"))?
        .query_row("select count(*) from operations", [], |row| row.get(0))?)
}

/// A row with its columns' names.
struct Row {
    table: &'static str,
    names: Vec<String>,
    fields: Vec<Field>,
}

fn insert(file: &Path, count: usize, age: Duration) -> anyhow::Result<Vec<String>> {
    let mut store = Connection::open(file)?;
    store.execute_batch("pragma synchronous = off; pragma cache_size = -200000;")?;
    let sample: Field = store.query_row("select id from operations where status = 2 limit 1", [], |row| row.get(0))?;
    let mut rows = Vec::new();
    for table in ["operations", "requests", "results", "events"] {
        rows.extend(read(&store, table, &sample)?);
    }
    ensure!(rows.len() > 3, "an operation has a row in each table");
    let ended = rows[0].field("ended_at")?;
    let newest = Timestamp::now().checked_sub(age)?.as_millisecond();
    let transaction = store.transaction()?;
    let mut ids = Vec::new();
    for number in 0..count {
        let back = SPAN.as_millis() as f64 * (1.0 - number as f64 / count as f64);
        let moved = newest - back as i64 - ended;
        let id = id(ended + moved);
        for row in &rows {
            row.copy(&transaction, id, moved)?;
        }
        if ids.len() < 200_000 {
            ids.push(id.to_string());
        }
    }
    let bodies = "(select coalesce(sum(length(body)), 0) from requests where id = ?1)
        + (select coalesce(sum(length(body)), 0) from results where id = ?1)";
    let each: i64 = transaction.query_row(&format!("select {RECORD_BYTES} + {bodies}"), [&sample], |row| row.get(0))?;
    transaction.execute("update used set bytes = bytes + ?1", [each * i64::try_from(count)?])?;
    transaction.commit()?;
    store.execute_batch("pragma wal_checkpoint(truncate);")?;
    Ok(ids)
}

/// A UUID of version 7 of that time.
fn id(millisecond: i64) -> Uuid {
    let random: [u8; 10] = rand::rng().random();
    uuid::Builder::from_unix_timestamp_millis(millisecond.unsigned_abs(), &random).into_uuid()
}

fn read(store: &Connection, table: &'static str, id: &Field) -> anyhow::Result<Vec<Row>> {
    let mut statement = store.prepare(&format!("select * from {table} where id = ?1"))?;
    let names: Vec<_> = statement.column_names().into_iter().map(str::to_owned).collect();
    let rows = statement.query_map([id], |row| (0..names.len()).map(|column| row.get(column)).collect())?;
    rows.map(|fields| Ok(Row { table, names: names.clone(), fields: fields? })).collect()
}

impl Row {
    fn field(&self, name: &str) -> anyhow::Result<i64> {
        let column = self.names.iter().position(|column| column == name).context("no such column")?;
        match self.fields[column] {
            Field::Integer(value) => Ok(value),
            _ => anyhow::bail!("{name} is no number"),
        }
    }

    /// The same for another operation, at another time.
    fn copy(&self, store: &Connection, id: Uuid, moved: i64) -> rusqlite::Result<()> {
        // The sequence of an event is given anew.
        let columns: Vec<_> = (0..self.names.len()).filter(|column| self.names[*column] != "sequence").collect();
        let names: Vec<_> = columns.iter().map(|column| self.names[*column].as_str()).collect();
        let places: Vec<_> = (1..=columns.len()).map(|place| format!("?{place}")).collect();
        let sql = format!("insert into {} ({}) values ({})", self.table, names.join(","), places.join(","));
        let values = columns.iter().map(|column| match (self.names[*column].as_str(), &self.fields[*column]) {
            ("id", _) => Field::Blob(id.as_bytes().to_vec()),
            ("at" | "created_at" | "updated_at" | "deadline" | "ended_at" | "expires_at", Field::Integer(at)) => {
                Field::Integer(at + moved)
            }
            (_, field) => field.clone(),
        });
        store.prepare_cached(&sql)?.execute(params_from_iter(values)).map(drop)
    }
}
