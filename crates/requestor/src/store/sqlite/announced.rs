//! What providers have announced, so that it is known after a restart.

use super::SqliteStore;
use super::tables::{column_error, time};
use crate::kinds::announced::{Known, Provider};
use crate::store::{AnnouncedRow, StoreError};
use jiff::Timestamp;
use rusqlite::{Row, params};
use shared::message::Effect;
use shared::schema::Schemas;
use std::collections::BTreeMap;

// Times are milliseconds since 1970; schemas are JSON.
pub(super) const CREATE: &str = "
create table announced_kinds (
    kind text primary key,
    request_schema text,
    result_schema text,
    version text not null,
    instance text not null,
    announced_at integer not null
) strict, without rowid;
create table announced_providers (
    kind text not null,
    instance text not null,
    provider_group text not null,
    version text not null,
    effect text,
    concurrency integer not null,
    first_seen_at integer not null,
    last_seen_at integer not null,
    gone_at integer not null,
    differs integer not null,
    primary key (kind, instance)
) strict, without rowid;
";

impl SqliteStore {
    pub(in crate::store) async fn announce(
        &self,
        rows: Vec<AnnouncedRow>,
        kinds: Vec<String>,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        let kinds = serde_json::Value::from(kinds).to_string();
        self.database
            .write(move |connection| {
                let mut kind = connection
                    .prepare_cached("insert or replace into announced_kinds values (?1, ?2, ?3, ?4, ?5, ?6)")?;
                let mut provider = connection.prepare_cached(
                    "insert or replace into announced_providers values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                )?;
                for AnnouncedRow { kind: name, instance, known, provider: one } in &rows {
                    let [request, result] = [&known.schemas.request, &known.schemas.result]
                        .map(|schema| schema.as_ref().map(ToString::to_string));
                    let at = known.announced_at.as_millisecond();
                    kind.execute(params![name, request, result, known.version, known.instance, at])?;
                    let [first, last, gone] =
                        [one.first_seen_at, one.last_seen_at, one.gone_at].map(|at| at.as_millisecond());
                    let effect = one.effect.map(Effect::name);
                    let (group, version, slots) = (&one.group, &one.version, one.concurrency);
                    provider.execute(params![
                        name,
                        instance,
                        group,
                        version,
                        effect,
                        slots,
                        first,
                        last,
                        gone,
                        one.differs
                    ])?;
                }
                connection
                    .prepare_cached("delete from announced_kinds where kind not in (select value from json_each(?1))")?
                    .execute([&kinds])?;
                connection
                    .prepare_cached(
                        "delete from announced_providers
                        where gone_at <= ?1 or kind not in (select kind from announced_kinds)",
                    )?
                    .execute([before.as_millisecond()])?;
                Ok(())
            })
            .await
    }

    pub(in crate::store) async fn announced(
        &self,
    ) -> Result<Vec<(String, Known, BTreeMap<String, Provider>)>, StoreError> {
        self.database
            .read(|connection| {
                let mut kinds = connection.prepare_cached("select * from announced_kinds")?;
                let mut providers = connection.prepare_cached("select * from announced_providers where kind = ?1")?;
                let mut found = Vec::new();
                for row in kinds.query_map([], |row| Ok((row.get::<_, String>("kind")?, known(row)?)))? {
                    let (kind, known) = row?;
                    let of_kind = providers.query_map([&kind], |row| Ok((row.get("instance")?, provider(row)?)))?;
                    let of_kind = of_kind.collect::<rusqlite::Result<_>>()?;
                    found.push((kind, known, of_kind));
                }
                Ok(found)
            })
            .await
    }
}

fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    let schema = |column: &str| {
        let text: Option<String> = row.get(column)?;
        text.map(|text| serde_json::from_str(&text)).transpose().map_err(column_error)
    };
    Ok(Known {
        schemas: Schemas { request: schema("request_schema")?, result: schema("result_schema")? },
        version: row.get("version")?,
        instance: row.get("instance")?,
        announced_at: time(row.get("announced_at")?)?,
    })
}

fn provider(row: &Row<'_>) -> rusqlite::Result<Provider> {
    let effect: Option<String> = row.get("effect")?;
    Ok(Provider {
        group: row.get("provider_group")?,
        version: row.get("version")?,
        effect: effect.as_deref().and_then(Effect::named),
        concurrency: row.get("concurrency")?,
        first_seen_at: time(row.get("first_seen_at")?)?,
        last_seen_at: time(row.get("last_seen_at")?)?,
        gone_at: time(row.get("gone_at")?)?,
        differs: row.get("differs")?,
    })
}
