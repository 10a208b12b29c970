//! Outcomes that are to be sent, and what came of it.

use super::SqliteStore;
use super::tables::time;
use crate::store::StoreError;
use crate::store::types::SHOWN_MAX;
use crate::webhook::{Attempt, Delivery, DeliveryId, State};
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};
use shared::message::OperationId;
use std::time::Duration;

/// Returns the bytes of its body, which count for its owner.
pub(super) fn save_delivery(connection: &Connection, delivery: &Delivery, now: Timestamp) -> rusqlite::Result<i64> {
    let Delivery { id, owner, url, host, event_type, body, state, attempts, .. } = delivery;
    let sql = "insert into webhooks (id, number, owner, url, host, type, body, state, attempts, next_at)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    connection.prepare_cached(sql)?.execute(params![
        id.operation.0,
        id.number,
        owner,
        url,
        host,
        event_type,
        &body[..],
        state.name(),
        attempts,
        now.as_millisecond()
    ])?;
    Ok(body.len() as i64)
}

impl SqliteStore {
    pub(in crate::store) async fn webhooks_due(
        &self,
        now: Timestamp,
        limit: usize,
        per_host: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let sql = "with recursive hosts (host) as (
                select min(host) from webhooks where next_at is not null
                union all
                select (select min(host) from webhooks where next_at is not null and host > hosts.host)
                from hosts where hosts.host is not null
            )
            select webhooks.* from hosts join webhooks on webhooks.rowid in (
                select rowid from webhooks where host = hosts.host and next_at <= ?1 order by next_at limit ?2
            ) order by next_at limit ?3";
        self.database
            .read(move |connection| {
                let parameters = params![now.as_millisecond(), per_host, limit];
                connection.prepare_cached(sql)?.query_map(parameters, delivery_from_row)?.collect()
            })
            .await
    }

    pub(in crate::store) async fn webhook_attempted(
        &self,
        id: DeliveryId,
        attempt: Attempt,
        state: State,
        next_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let update = "update webhooks set attempts = ?3, state = ?4, next_at = ?5 where id = ?1 and number = ?2";
        let insert = "insert into webhook_attempts (id, number, attempt, at, milliseconds, status, error)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        self.database
            .write(move |connection| {
                let Attempt { number, at, took, status, error } = &attempt;
                let next_at = next_at.map(Timestamp::as_millisecond);
                let parameters = params![id.operation.0, id.number, number, state.name(), next_at];
                if connection.prepare_cached(update)?.execute(parameters)? == 0 {
                    // The operation was forgotten meanwhile.
                    return Ok(());
                }
                let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                let parameters = params![id.operation.0, id.number, number, at.as_millisecond(), took, status, error];
                connection.prepare_cached(insert)?.execute(parameters).map(drop)
            })
            .await
    }

    pub(in crate::store) async fn webhooks(
        &self,
        id: OperationId,
    ) -> Result<Vec<(Delivery, Vec<Attempt>)>, StoreError> {
        let deliveries = "select * from webhooks where id = ?1 order by number desc limit ?2";
        let attempts = "select * from webhook_attempts where id = ?1 and number = ?2 order by attempt";
        self.database
            .read(move |connection| {
                let mut statement = connection.prepare_cached(deliveries)?;
                let rows = statement.query_map(params![id.0, SHOWN_MAX], delivery_from_row)?;
                let mut found = Vec::new();
                for delivery in rows {
                    let delivery = delivery?;
                    let mut statement = connection.prepare_cached(attempts)?;
                    let attempts = statement.query_map(params![id.0, delivery.id.number], attempt_from_row)?;
                    found.push((delivery, attempts.collect::<rusqlite::Result<_>>()?));
                }
                Ok(found)
            })
            .await
    }
}

fn delivery_from_row(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        id: DeliveryId { operation: OperationId(row.get("id")?), number: row.get("number")? },
        owner: row.get("owner")?,
        url: row.get("url")?,
        host: row.get("host")?,
        event_type: row.get("type")?,
        body: row.get::<_, Vec<u8>>("body")?.into(),
        state: State::from_name(&row.get::<_, String>("state")?),
        attempts: row.get("attempts")?,
        next_at: row.get::<_, Option<i64>>("next_at")?.map(time).transpose()?,
    })
}

fn attempt_from_row(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    Ok(Attempt {
        number: row.get("attempt")?,
        at: time(row.get("at")?)?,
        took: Duration::from_millis(row.get("milliseconds")?),
        status: row.get("status")?,
        error: row.get("error")?,
    })
}
