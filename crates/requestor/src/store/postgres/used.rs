//! What is used of the quotas, counted in the commit that uses it.

use crate::store::types::signed;
use crate::store::{Created, Room};
use sqlx::{PgConnection, Row};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Operations that were opened less those that have ended, and bytes, by owner.
#[derive(Debug, Default)]
pub(super) struct Used(BTreeMap<String, (i64, i64)>);

/// What owners use, which nobody else changes before the commit.
#[derive(Debug)]
pub(super) struct Locked(HashMap<String, (i64, i64)>);

const LOCK: &str = "insert into used select owner, 0, 0 from unnest($1::text[]) as n (owner) order by owner
    on conflict (owner) do update set open = used.open returning owner, open, bytes";
const SAVE: &str = "insert into used select * from unnest($1::text[], $2::bigint[], $3::bigint[]) as n (owner, open, bytes)
    order by owner on conflict (owner) do update set open = used.open + excluded.open, bytes = used.bytes + excluded.bytes";

impl Used {
    pub(super) fn more(&mut self, owner: &str, open: i64, bytes: i64) {
        if (open, bytes) != (0, 0) {
            let used = self.0.entry(owner.to_owned()).or_default();
            *used = (used.0 + open, used.1 + bytes);
        }
    }

    /// What `owners` use, with what is counted here.
    pub(super) async fn lock(&self, connection: &mut PgConnection, owners: BTreeSet<&str>) -> sqlx::Result<Locked> {
        if owners.is_empty() {
            return Ok(Locked(HashMap::new()));
        }
        // With those that are only counted, so that all rows are locked in one order.
        let owners: BTreeSet<_> = owners.into_iter().chain(self.0.keys().map(String::as_str)).collect();
        let rows = sqlx::query(LOCK).bind(owners.into_iter().collect::<Vec<_>>()).fetch_all(connection).await?;
        let used = |row: &sqlx::postgres::PgRow| {
            let owner: String = row.try_get("owner")?;
            let (open, bytes) = self.0.get(&owner).copied().unwrap_or_default();
            let (before, bytes_before): (i64, i64) = (row.try_get("open")?, row.try_get("bytes")?);
            Ok((owner, (before + open, bytes_before + bytes)))
        };
        rows.iter().map(used).collect::<sqlx::Result<_>>().map(Locked)
    }

    pub(super) async fn save(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (owners, used): (Vec<_>, Vec<_>) = self.0.into_iter().unzip();
        let (open, bytes): (Vec<_>, Vec<_>) = used.into_iter().unzip();
        sqlx::query(SAVE).bind(owners).bind(open).bind(bytes).execute(connection).await.map(drop)
    }
}

impl Locked {
    /// Counts one more open operation with `bytes`, or says what there is no room for.
    pub(super) fn take(&mut self, owner: &str, bytes: i64, room: Room) -> Option<Created> {
        let (open, used) = self.0.entry(owner.to_owned()).or_default();
        if *open >= signed(room.open_max) {
            return Some(Created::TooManyOpen);
        }
        if *used + bytes > signed(room.bytes_max) {
            return Some(Created::TooManyBytes);
        }
        (*open, *used) = (*open + 1, *used + bytes);
        None
    }
}
