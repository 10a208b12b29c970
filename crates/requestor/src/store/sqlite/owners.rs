//! What is kept for each owner: idempotency keys, what is used of the quotas, and which operations were forgotten.

use super::tables::{insert, load, save_content};
use super::{Log, SqliteStore};
use crate::operation::Operation;
use crate::store::types::{RECORD_BYTES, signed};
use crate::store::{Created, NewOperation, Room, Scope, StoreError};
use rusqlite::{Connection, OptionalExtension, params};
use shared::message::OperationId;

impl SqliteStore {
    pub(in crate::store) async fn create(&self, new: NewOperation) -> Result<Created, StoreError> {
        let log = self.log();
        self.database.write_new(move |connection| create(connection, &log, &new)).await
    }

    pub(in crate::store) async fn was_forgotten(&self, scope: Scope, id: OperationId) -> Result<bool, StoreError> {
        let sql = "select 1 from forgotten where id = ?1 and (?2 is null or owner = ?2)";
        self.database.read(move |connection| connection.prepare_cached(sql)?.exists(params![id.0, scope.owner()])).await
    }
}

fn create(connection: &Connection, log: &Log, new: &NewOperation) -> rusqlite::Result<Created> {
    let NewOperation { operation, request, key, room } = new;
    if let Some(key) = key
        && let Some((before, fingerprint)) = with_key(connection, &operation.owner, &key.key)?
    {
        return Ok(if fingerprint == key.fingerprint { Created::Before(before.into()) } else { Created::OtherPayload });
    }
    if !take_room(connection, &operation.owner, RECORD_BYTES + request.body.len() as i64, *room)? {
        return refusal(connection, &operation.owner, *room);
    }
    let mut operation = operation.clone();
    let entry = operation.record_created();
    insert(connection, &operation, key.as_ref())?;
    log.write(connection, &operation, &entry)?;
    save_content(connection, "requests", operation.id, request)?;
    Ok(Created::New)
}

/// The operation that was created with that key, and what its request was.
fn with_key(connection: &Connection, owner: &str, key: &str) -> rusqlite::Result<Option<(Operation, Vec<u8>)>> {
    let sql = "select id, fingerprint from operations where owner = ?1 and idempotency_key = ?2";
    let found = connection
        .prepare_cached(sql)?
        .query_row([owner, key], |row| Ok((OperationId(row.get(0)?), row.get(1)?)))
        .optional()?;
    let Some((id, fingerprint)) = found else { return Ok(None) };
    Ok(load(connection, &Scope::All, id)?.map(|operation| (operation, fingerprint)))
}

/// Counts one more open operation with `bytes`, if there is room for it.
fn take_room(connection: &Connection, owner: &str, bytes: i64, room: Room) -> rusqlite::Result<bool> {
    let sql = "insert into used (owner, open, bytes) select ?1, 1, ?2 where ?2 <= ?4
        on conflict (owner) do update set open = open + 1, bytes = bytes + ?2 where open < ?3 and bytes + ?2 <= ?4";
    let parameters = params![owner, bytes, signed(room.open_max), signed(room.bytes_max)];
    Ok(connection.prepare_cached(sql)?.execute(parameters)? == 1)
}

/// What there was no room for.
fn refusal(connection: &Connection, owner: &str, room: Room) -> rusqlite::Result<Created> {
    let open: Option<i64> = connection
        .prepare_cached("select open from used where owner = ?1")?
        .query_row([owner], |row| row.get("open"))
        .optional()?;
    let many = open.is_some_and(|open| open >= signed(room.open_max));
    Ok(if many { Created::TooManyOpen } else { Created::TooManyBytes })
}

/// Counts operations that were opened or have ended, and bytes that were stored or removed.
pub(super) fn use_more(connection: &Connection, owner: &str, open: i64, bytes: i64) -> rusqlite::Result<()> {
    if (open, bytes) != (0, 0) {
        let sql = "insert into used (owner, open, bytes) values (?1, ?2, ?3)
            on conflict (owner) do update set open = open + excluded.open, bytes = bytes + excluded.bytes";
        connection.prepare_cached(sql)?.execute(params![owner, open, bytes])?;
    }
    Ok(())
}

/// Notes that an operation with bodies of `bytes` is forgotten. Of the oldest such notes nothing is kept beyond `keep`.
pub(super) fn forget(connection: &Connection, id: OperationId, bytes: i64, keep: u64) -> rusqlite::Result<()> {
    let owner: String = connection
        .prepare_cached("select owner from operations where id = ?1")?
        .query_row([id.0], |row| row.get("owner"))?;
    use_more(connection, &owner, 0, -(RECORD_BYTES + bytes))?;
    connection.prepare_cached("insert into forgotten (id, owner) values (?1, ?2)")?.execute(params![id.0, owner])?;
    let sql = "delete from forgotten where number <= (select max(number) from forgotten) - ?1";
    connection.prepare_cached(sql)?.execute([signed(keep)])?;
    Ok(())
}
