//! What providers have announced, so that it is known after a restart.

use super::PostgresStore;
use super::tables::{number, plain, time, unreadable};
use crate::kinds::announced::{Known, Provider};
use crate::store::{AnnouncedRow, StoreError};
use jiff::Timestamp;
use shared::message::Effect;
use shared::schema::Schemas;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use std::collections::BTreeMap;

const KIND: &str = "insert into announced_kinds values ($1, $2, $3, $4, $5, $6) on conflict (kind) do update
    set request_schema = excluded.request_schema, result_schema = excluded.result_schema, version = excluded.version,
        instance = excluded.instance, announced_at = excluded.announced_at";
const PROVIDER: &str = "insert into announced_providers values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    on conflict (kind, instance) do update
    set provider_group = excluded.provider_group, version = excluded.version, effect = excluded.effect,
        concurrency = excluded.concurrency, first_seen_at = excluded.first_seen_at,
        last_seen_at = excluded.last_seen_at, gone_at = excluded.gone_at, differs = excluded.differs";
const FORGET_KINDS: &str = "delete from announced_kinds where kind <> all($1)";
const FORGET_PROVIDERS: &str = "delete from announced_providers
    where gone_at <= $1 or kind not in (select kind from announced_kinds)";

impl PostgresStore {
    pub(in crate::store) async fn announce(
        &self,
        mut rows: Vec<AnnouncedRow>,
        kinds: Vec<String>,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        // Each instance hears the same, so all write in one order.
        rows.sort_by(|a, b| (&a.kind, &a.instance).cmp(&(&b.kind, &b.instance)));
        let database = self.database.clone();
        let work = async move {
            let mut transaction = database.begin().await?;
            // One instance at a time, since what one has heard and another not yet is deleted and comes again.
            sqlx::query("lock table announced_kinds in share row exclusive mode").execute(&mut *transaction).await?;
            for row in &rows {
                save(&mut transaction, row).await?;
            }
            sqlx::query(FORGET_KINDS).bind(kinds).execute(&mut *transaction).await?;
            sqlx::query(FORGET_PROVIDERS).bind(before.as_millisecond()).execute(&mut *transaction).await?;
            transaction.commit().await
        };
        self.to_its_end(work).await
    }

    pub(in crate::store) async fn announced(
        &self,
    ) -> Result<Vec<(String, Known, BTreeMap<String, Provider>)>, StoreError> {
        let kinds = sqlx::query("select * from announced_kinds");
        let kinds = self.rows(kinds, |row| Ok((row.try_get::<String, _>("kind")?, known(row)?))).await?;
        let mut found = Vec::new();
        for (kind, known) in kinds {
            let providers = sqlx::query("select * from announced_providers where kind = $1").bind(&kind);
            let providers = self.rows(providers, |row| Ok((row.try_get("instance")?, provider(row)?))).await?;
            found.push((kind, known, providers.into_iter().collect()));
        }
        Ok(found)
    }
}

async fn save(connection: &mut PgConnection, row: &AnnouncedRow) -> sqlx::Result<()> {
    let AnnouncedRow { kind, instance, known, provider } = row;
    let [request, result] =
        [&known.schemas.request, &known.schemas.result].map(|schema| schema.as_ref().map(ToString::to_string));
    sqlx::query(KIND)
        .bind(kind)
        .bind(request)
        .bind(result)
        .bind(plain(&known.version))
        .bind(plain(&known.instance))
        .bind(known.announced_at.as_millisecond())
        .execute(&mut *connection)
        .await?;
    sqlx::query(PROVIDER)
        .bind(kind)
        .bind(plain(instance))
        .bind(plain(&provider.group))
        .bind(plain(&provider.version))
        .bind(provider.effect.map(Effect::name))
        .bind(i64::from(provider.concurrency))
        .bind(provider.first_seen_at.as_millisecond())
        .bind(provider.last_seen_at.as_millisecond())
        .bind(provider.gone_at.as_millisecond())
        .bind(provider.differs)
        .execute(connection)
        .await
        .map(drop)
}

fn known(row: &PgRow) -> sqlx::Result<Known> {
    let schema = |column: &str| {
        let text: Option<&str> = row.try_get(column)?;
        text.map(|text| serde_json::from_str(text).map_err(|error| unreadable(column, error))).transpose()
    };
    Ok(Known {
        schemas: Schemas { request: schema("request_schema")?, result: schema("result_schema")? },
        version: row.try_get("version")?,
        instance: row.try_get("instance")?,
        announced_at: time(row, "announced_at")?,
    })
}

fn provider(row: &PgRow) -> sqlx::Result<Provider> {
    Ok(Provider {
        group: row.try_get("provider_group")?,
        version: row.try_get("version")?,
        effect: row.try_get::<Option<&str>, _>("effect")?.and_then(Effect::named),
        concurrency: number(row, "concurrency")?,
        first_seen_at: time(row, "first_seen_at")?,
        last_seen_at: time(row, "last_seen_at")?,
        gone_at: time(row, "gone_at")?,
        differs: row.try_get("differs")?,
    })
}
