//! Forgets operations whose retention is over.

use super::PostgresStore;
use crate::store::StoreError;
use crate::store::types::{RECORD_BYTES, signed};
use jiff::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

// Another instance takes others.
const DUE: &str = "select id, owner from operations where status >= 2 and expires_at <= $1
    order by expires_at limit $2 for update skip locked";
const DELETE: [&str; 6] = [
    "delete from operations where id = any($1)",
    "delete from requests where id = any($1)",
    "delete from results where id = any($1)",
    "delete from events where id = any($1)",
    "delete from webhooks where id = any($1)",
    "delete from webhook_attempts where id = any($1)",
];
/// The sizes of bodies, which are not read for that, and the record of each operation.
const BYTES: &str = "select n.owner, (sum($3 + coalesce(octet_length(r.body), 0) + coalesce(octet_length(s.body), 0)
        + (select coalesce(sum(octet_length(body)), 0) from webhooks w where w.id = n.id)))::bigint
    from unnest($1::uuid[], $2::text[]) as n (id, owner)
    left join requests r on r.id = n.id left join results s on s.id = n.id group by n.owner order by n.owner";
/// Before its events are deleted: how far the log of all operations is no longer whole.
const LAST: &str = "select coalesce(max(sequence), 0) from events where id = any($1)";
const REMEMBER: &str = "insert into forgotten (id, owner) select * from unnest($1::uuid[], $2::text[])";
const FORGET_BEYOND: &str = "delete from forgotten where number <= (select max(number) from forgotten) - $1";
const FORGOTTEN_UP_TO: &str = "update events_forgotten set sequence = greatest(sequence, $1)";
const GIVE_BACK: &str = "update used set bytes = bytes - $2 where owner = $1";

impl PostgresStore {
    pub(in crate::store) async fn purge(&self, now: Timestamp, limit: usize, keep: u64) -> Result<usize, StoreError> {
        let work = async {
            let mut transaction = self.database.begin().await?;
            let due = sqlx::query_as(DUE).bind(now.as_millisecond()).bind(limit as i64);
            let due: Vec<(Uuid, String)> = due.fetch_all(&mut *transaction).await?;
            if !due.is_empty() {
                let (ids, owners) = due.iter().cloned().unzip();
                forget(&mut transaction, ids, owners, keep).await?;
            }
            transaction.commit().await?;
            Ok(due.len())
        };
        self.database.run(work).await
    }
}

/// What other writers wait for is touched last: what is used by owner.
async fn forget(connection: &mut PgConnection, ids: Vec<Uuid>, owners: Vec<String>, keep: u64) -> sqlx::Result<()> {
    let bytes = sqlx::query_as(BYTES).bind(&ids).bind(&owners).bind(RECORD_BYTES);
    let bytes: Vec<(String, i64)> = bytes.fetch_all(&mut *connection).await?;
    let last: i64 = sqlx::query_scalar(LAST).bind(&ids).fetch_one(&mut *connection).await?;
    for sql in DELETE {
        sqlx::query(sql).bind(&ids).execute(&mut *connection).await?;
    }
    sqlx::query(REMEMBER).bind(&ids).bind(&owners).execute(&mut *connection).await?;
    sqlx::query(FORGET_BEYOND).bind(signed(keep)).execute(&mut *connection).await?;
    sqlx::query(FORGOTTEN_UP_TO).bind(last).execute(&mut *connection).await?;
    for (owner, bytes) in bytes {
        sqlx::query(GIVE_BACK).bind(owner).bind(bytes).execute(&mut *connection).await?;
    }
    Ok(())
}
