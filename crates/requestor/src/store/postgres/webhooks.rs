//! Outcomes that are to be sent, and what came of it.

use super::PostgresStore;
use super::tables::{id, number, plain, time, time_if_any};
use crate::store::StoreError;
use crate::store::types::SHOWN_MAX;
use crate::webhook::{Attempt, Delivery, DeliveryId, State};
use jiff::Timestamp;
use shared::message::OperationId;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use std::time::Duration;

const SAVE: &str = "insert into webhooks (id, number, owner, url, host, type, body, state, attempts, next_at)
    select * from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[],
        $8::text[], $9::bigint[], $10::bigint[])";
// From host to host, so that one with many deliveries that wait does not hold up the others'.
const DUE: &str = "with recursive hosts (host) as (
        select min(host) from webhooks where next_at is not null
        union all
        select (select min(host) from webhooks where next_at is not null and host > hosts.host)
        from hosts where hosts.host is not null
    )
    select due.* from hosts cross join lateral (
        select * from webhooks where host = hosts.host and next_at <= $1 order by next_at limit $2
    ) due order by next_at limit $3";
// What was claimed is due again later, should this instance die with it.
const CLAIM: &str = "with free as (
        select w.id, w.number from webhooks w join unnest($1::uuid[], $2::bigint[]) as n (id, number)
        on w.id = n.id and w.number = n.number where w.next_at <= $3 for update of w skip locked)
    update webhooks w set next_at = $4 from free where w.id = free.id and w.number = free.number
    returning w.id, w.number";
// The attempt of an operation that was forgotten meanwhile is not noted, and one is noted once.
const ATTEMPTED: &str = "with noted as (
        update webhooks set attempts = $3, state = $4, next_at = $5 where id = $1 and number = $2 returning id, number)
    insert into webhook_attempts (id, number, attempt, at, milliseconds, status, error)
    select id, number, $3, $6, $7, $8, $9 from noted on conflict do nothing";

/// Each is due at once, from the time beside it on.
pub(super) async fn save(connection: &mut PgConnection, deliveries: Vec<(Delivery, Timestamp)>) -> sqlx::Result<()> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let all = || deliveries.iter().map(|(delivery, _)| delivery);
    sqlx::query(SAVE)
        .bind(all().map(|it| it.id.operation.0).collect::<Vec<_>>())
        .bind(all().map(|it| it.id.number.into()).collect::<Vec<i64>>())
        .bind(all().map(|it| it.owner.as_str()).collect::<Vec<_>>())
        .bind(all().map(|it| it.url.as_str()).collect::<Vec<_>>())
        .bind(all().map(|it| it.host.as_str()).collect::<Vec<_>>())
        .bind(all().map(|it| it.event_type.as_str()).collect::<Vec<_>>())
        .bind(all().map(|it| &it.body[..]).collect::<Vec<_>>())
        .bind(all().map(|it| it.state.name()).collect::<Vec<_>>())
        .bind(all().map(|it| it.attempts.into()).collect::<Vec<i64>>())
        .bind(deliveries.iter().map(|(_, now)| now.as_millisecond()).collect::<Vec<_>>())
        .execute(connection)
        .await
        .map(drop)
}

impl PostgresStore {
    pub(in crate::store) async fn webhooks_due(
        &self,
        now: Timestamp,
        limit: usize,
        per_host: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let due = sqlx::query(DUE).bind(now.as_millisecond()).bind(per_host as i64).bind(limit as i64);
        self.rows(due, delivery).await
    }

    pub(in crate::store) async fn claim_webhooks(
        &self,
        ids: Vec<DeliveryId>,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<DeliveryId>, StoreError> {
        if ids.is_empty() {
            return Ok(ids);
        }
        let (operations, numbers): (Vec<_>, Vec<i64>) =
            ids.iter().map(|it| (it.operation.0, i64::from(it.number))).unzip();
        let claim = sqlx::query(CLAIM).bind(operations).bind(numbers);
        self.rows(claim.bind(now.as_millisecond()).bind(until.as_millisecond()), delivery_id).await
    }

    pub(in crate::store) async fn webhook_attempted(
        &self,
        id: DeliveryId,
        attempt: Attempt,
        state: State,
        next_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let Attempt { number, at, took, status, error } = attempt;
        let note = sqlx::query(ATTEMPTED)
            .bind(id.operation.0)
            .bind(i64::from(id.number))
            .bind(i64::from(number))
            .bind(state.name())
            .bind(next_at.map(Timestamp::as_millisecond))
            .bind(at.as_millisecond())
            .bind(i64::try_from(took.as_millis()).unwrap_or(i64::MAX))
            .bind(status.map(i32::from))
            .bind(error.as_deref().map(plain));
        self.database.run(note.execute(self.database.pool())).await.map(drop)
    }

    pub(in crate::store) async fn webhooks(
        &self,
        of: OperationId,
    ) -> Result<Vec<(Delivery, Vec<Attempt>)>, StoreError> {
        let deliveries = sqlx::query("select * from webhooks where id = $1 order by number desc limit $2");
        let deliveries = self.rows(deliveries.bind(of.0).bind(SHOWN_MAX as i64), delivery).await?;
        let mut found = Vec::new();
        for delivery in deliveries {
            let attempts = "select * from webhook_attempts where id = $1 and number = $2 order by attempt";
            let attempts = sqlx::query(attempts).bind(of.0).bind(i64::from(delivery.id.number));
            found.push((delivery, self.rows(attempts, attempt).await?));
        }
        Ok(found)
    }
}

fn delivery_id(row: &PgRow) -> sqlx::Result<DeliveryId> {
    Ok(DeliveryId { operation: id(row)?, number: number(row, "number")? })
}

fn delivery(row: &PgRow) -> sqlx::Result<Delivery> {
    Ok(Delivery {
        id: delivery_id(row)?,
        owner: row.try_get("owner")?,
        url: row.try_get("url")?,
        host: row.try_get("host")?,
        event_type: row.try_get("type")?,
        body: row.try_get::<Vec<u8>, _>("body")?.into(),
        state: State::from_name(row.try_get("state")?),
        attempts: number(row, "attempts")?,
        next_at: time_if_any(row, "next_at")?,
    })
}

fn attempt(row: &PgRow) -> sqlx::Result<Attempt> {
    Ok(Attempt {
        number: number(row, "attempt")?,
        at: time(row, "at")?,
        took: Duration::from_millis(number(row, "milliseconds")?),
        status: row.try_get::<Option<i32>, _>("status")?.and_then(|status| status.try_into().ok()),
        error: row.try_get("error")?,
    })
}
