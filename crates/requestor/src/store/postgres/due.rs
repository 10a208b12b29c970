//! What the sweeper asks for and writes down.

use super::tables::{id, operation, time};
use super::{PostgresStore, content};
use crate::operation::{Operation, after};
use crate::rules::{doubled, half_jittered};
use crate::store::{Sent, StoreError};
use jiff::Timestamp;
use shared::message::{Content, OperationId};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a request that one instance was given to send is not given to another. Sending is noted within less.
const CLAIM: Duration = Duration::from_secs(5);
/// For how long one instance alone gives up operations, unless it goes on.
const DEADLINES_CLAIM_SECONDS: f64 = 2.0;

const TO_SEND: &str = "with due as (
        select id, next_send_at as due_at from operations where status < 2 and next_send_at <= $1
        order by next_send_at limit $2 for update skip locked),
    claimed as (update operations o set next_send_at = $3 from due where o.id = due.id returning o.*)
    select claimed.*, r.content_type, r.body from claimed join requests r on r.id = claimed.id
    join due on due.id = claimed.id order by due.due_at";
// What a provider has said since, of how long to wait, stands. Rows are locked in the order in which all are.
const SENT: &str = "with locked as (
        select n.* from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
            as n (id, step, attempt, sends, sent_at, next_send_at)
        join operations o on o.id = n.id order by o.id for update of o)
    update operations o set sends = n.sends, next_send_at =
        case when o.progress_sequence > 0 and o.updated_at >= n.sent_at then o.next_send_at else n.next_send_at end
    from locked n where o.id = n.id and o.status < 2 and o.step = n.step and o.attempt = n.attempt";
const TO_CANCEL: &str = "select * from operations where status < 2 and cancel_requested and next_cancel_at <= $1
    order by next_cancel_at limit $2 for update skip locked";
const CANCELED: &str = "update operations o set cancels = cancels + 1, next_cancel_at = n.at
    from unnest($1::uuid[], $2::bigint[]) as n (id, at) where o.id = n.id";
const OVERDUE: &str = "select id from operations where status < 2 and deadline <= $1 order by deadline limit $2";
// By the server's clock, which is one for all.
const CLAIM_WORK: &str = "insert into claims values ($1, $2, clock_timestamp() + make_interval(secs => $3))
    on conflict (work) do update set holder = excluded.holder, until = excluded.until
    where claims.holder = excluded.holder or claims.until <= clock_timestamp()";
const BACKLOG: &str = "select kind, count(*) from operations where status < 2 group by kind";
const TOOK_LATELY: &str = "select created_at, ended_at from operations where kind >= $1 and kind <= $1 and status = 2
    and attempts_before = 0 and ended_at is not null order by kind desc, id desc limit $2";
const OPEN_OF_KIND: &str = "select id from operations where kind = $1 and status < 2 order by id limit $2";

impl PostgresStore {
    pub(in crate::store) async fn to_send(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Operation, Content)>, StoreError> {
        let due = sqlx::query(TO_SEND).bind(now.as_millisecond()).bind(limit as i64);
        let due = due.bind(after(now, CLAIM).as_millisecond());
        self.rows(due, |row| Ok((operation(row)?, content(row)?))).await
    }

    pub(in crate::store) async fn sent(&self, sent: Vec<Sent>) -> Result<(), StoreError> {
        let note = sqlx::query(SENT)
            .bind(sent.iter().map(|it| it.request.id.0).collect::<Vec<_>>())
            .bind(sent.iter().map(|it| it.request.step.into()).collect::<Vec<i64>>())
            .bind(sent.iter().map(|it| it.request.attempt.into()).collect::<Vec<i64>>())
            .bind(sent.iter().map(|it| it.sends.into()).collect::<Vec<i64>>())
            .bind(sent.iter().map(|it| it.sent_at.as_millisecond()).collect::<Vec<_>>())
            .bind(sent.iter().map(|it| it.next_send_at.as_millisecond()).collect::<Vec<_>>());
        let pool = self.database.pool().clone();
        self.to_its_end(async move { note.execute(&pool).await.map(drop) }).await
    }

    pub(in crate::store) async fn to_cancel(
        &self,
        now: Timestamp,
        limit: usize,
        (resend, longest): (Duration, Duration),
    ) -> Result<Vec<Operation>, StoreError> {
        let next = |operation: &Operation| {
            let pause = half_jittered(doubled(resend, longest, operation.cancels + 1));
            (operation.id.0, after(now, pause).as_millisecond())
        };
        let work = async {
            let mut transaction = self.database.begin().await?;
            let due = sqlx::query(TO_CANCEL).bind(now.as_millisecond()).bind(limit as i64);
            let found = due.fetch_all(&mut *transaction).await?;
            let found = found.iter().map(operation).collect::<sqlx::Result<Vec<_>>>()?;
            if !found.is_empty() {
                let (ids, next): (Vec<_>, Vec<_>) = found.iter().map(next).unzip();
                sqlx::query(CANCELED).bind(ids).bind(next).execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            Ok(found)
        };
        self.database.run(work).await
    }

    pub(in crate::store) async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<OperationId>, StoreError> {
        let overdue = sqlx::query(OVERDUE).bind(now.as_millisecond()).bind(limit as i64);
        let found = self.rows(overdue, id).await?;
        let ours = !found.is_empty() && self.claim("deadlines", DEADLINES_CLAIM_SECONDS).await?;
        Ok(if ours { found } else { Vec::new() })
    }

    /// Whether `work` is this instance's to do, for so long at least.
    async fn claim(&self, work: &'static str, seconds: f64) -> Result<bool, StoreError> {
        let claim = sqlx::query(CLAIM_WORK).bind(work).bind(self.instance).bind(seconds);
        let claimed = self.database.run(claim.execute(self.database.pool())).await?;
        Ok(claimed.rows_affected() == 1)
    }

    pub(in crate::store) async fn took_lately(
        &self,
        kind: String,
        limit: usize,
    ) -> Result<Vec<(Timestamp, Timestamp)>, StoreError> {
        let lately = sqlx::query(TOOK_LATELY).bind(kind).bind(limit as i64);
        let mut found = self.rows(lately, |row| Ok((time(row, "created_at")?, time(row, "ended_at")?))).await?;
        found.reverse();
        Ok(found)
    }

    pub(in crate::store) async fn backlog(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let count = |row: &PgRow| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?.unsigned_abs()));
        Ok(self.rows(sqlx::query(BACKLOG), count).await?.into_iter().collect())
    }

    pub(in crate::store) async fn open_of_kind(
        &self,
        kind: String,
        limit: usize,
    ) -> Result<Vec<OperationId>, StoreError> {
        self.rows(sqlx::query(OPEN_OF_KIND).bind(kind).bind(limit as i64), id).await
    }
}
