//! Operations in a PostgreSQL database, which any number of instances may use at once. What is due is claimed by moving
//! its time a little: an instance that dies with it delays it by no more than that.

mod announced;
mod batch;
mod columns;
mod due;
mod log;
mod purge;
mod rows;
mod tables;
mod used;
mod webhooks;
mod writer;

use super::{Applied, Changed, Created, Filter, NewOperation, STATUSES, Scope, StoreError};
use crate::operation::{Event, Operation, to_millisecond};
use crate::rules::RulesByKind;
use batch::{Outcome, Work};
use jiff::Timestamp;
use shared::database::Postgres;
use shared::message::{Content, OperationId};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{QueryBuilder, Row};
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use writer::Writer;

/// The requestor's operations in a PostgreSQL database.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    database: Postgres,
    writer: Writer,
    /// Writes that end even if nobody waits for them any more.
    writes: TaskTracker,
    /// Tells this process from the others.
    instance: Uuid,
}

impl PostgresStore {
    pub(in crate::store) async fn open(
        url: &str,
        connections_max: u32,
        rules: RulesByKind,
        committed: impl Fn(Vec<Changed>) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let database = Postgres::open(url, connections_max, "store", &tables::MIGRATIONS).await?;
        let writer = Writer::start(&TaskTracker::new(), database.clone(), rules, committed);
        Ok(Self { database, writer, writes: TaskTracker::new(), instance: Uuid::now_v7() })
    }

    pub(in crate::store) async fn get(&self, scope: Scope, id: OperationId) -> Result<Option<Operation>, StoreError> {
        let sql = "select * from operations where id = $1 and ($2::text is null or owner = $2)";
        let found = self.rows(sqlx::query(sql).bind(id.0).bind(scope.owner()), tables::operation).await?;
        Ok(found.into_iter().next())
    }

    pub(in crate::store) async fn result(&self, scope: Scope, id: OperationId) -> Result<Option<Content>, StoreError> {
        let sql = "select r.* from operations o join results r on r.id = o.id
            where o.id = $1 and ($2::text is null or o.owner = $2)";
        let found = self.rows(sqlx::query(sql).bind(id.0).bind(scope.owner()), content).await?;
        Ok(found.into_iter().next())
    }

    pub(in crate::store) async fn list(&self, scope: Scope, filter: Filter) -> Result<Vec<Operation>, StoreError> {
        let status = filter.status.and_then(|name| STATUSES.iter().position(|status| *status == name));
        let mut sql = QueryBuilder::new("select * from operations where true");
        if let Some(owner) = scope.owner() {
            sql.push(" and owner = ").push_bind(owner);
        }
        if let Some(kind) = &filter.kind {
            sql.push(" and kind = ").push_bind(kind);
        }
        if let Some(status) = status {
            sql.push(" and status = ").push_bind(status as i16);
        }
        if let Some(before) = filter.before {
            sql.push(" and id < ").push_bind(before.0);
        }
        sql.push(" order by id desc limit ").push_bind(filter.limit as i64);
        self.rows(sql.build(), tables::operation).await
    }

    pub(in crate::store) async fn create(&self, new: NewOperation) -> Result<Created, StoreError> {
        match self.writer.write(Work::Create(Box::new(new))).await? {
            Outcome::Created(created) => Ok(created),
            Outcome::Applied(_) | Outcome::Again => Err(StoreError::Busy),
        }
    }

    pub(in crate::store) async fn apply_in(
        &self,
        scope: Scope,
        id: OperationId,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<Applied>, StoreError> {
        // So that what a webhook tells is what will be read.
        let now = to_millisecond(now);
        match self.writer.write(Work::Apply { scope, id, event, now }).await? {
            Outcome::Applied(applied) => Ok(*applied),
            Outcome::Created(_) | Outcome::Again => Err(StoreError::Busy),
        }
    }

    pub(in crate::store) async fn was_forgotten(&self, scope: Scope, id: OperationId) -> Result<bool, StoreError> {
        let sql = "select id from forgotten where id = $1 and ($2::text is null or owner = $2)";
        let found = self.rows(sqlx::query(sql).bind(id.0).bind(scope.owner()), tables::id).await?;
        Ok(!found.is_empty())
    }

    /// Carries `write` out to its end, as SQLite's writer does, whatever becomes of who waits for it.
    async fn to_its_end<T: Send + 'static>(
        &self,
        write: impl Future<Output = sqlx::Result<T>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = self.database.clone();
        let written = self.writes.spawn(async move { database.run(write).await });
        written.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
    }

    pub(in crate::store) async fn close(&self) {
        self.writes.close();
        self.writes.wait().await;
    }

    /// What `read` makes of each row of `query`.
    async fn rows<T>(
        &self,
        query: Query<'_, sqlx::Postgres, PgArguments>,
        read: impl Fn(&PgRow) -> sqlx::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.database.run(query.fetch_all(self.database.pool())).await?;
        Ok(rows.iter().map(read).collect::<sqlx::Result<_>>()?)
    }
}

fn content(row: &PgRow) -> sqlx::Result<Content> {
    Ok(Content { content_type: row.try_get("content_type")?, body: row.try_get::<Vec<u8>, _>("body")?.into() })
}
