//! What one transaction writes: the effects are found in memory, then each table has one statement. Rows are locked in
//! this order, so that instances never wait for each other in a circle: operations by id, keys, what is used by owner,
//! and last, since it holds up all others, the counter of events.

use super::columns::{Changing, Fixed};
use super::rows::{Loaded, SAVE_REQUESTS, SAVE_RESULTS, load, save_contents, save_entries};
use super::tables;
use super::used::Used;
use crate::operation::{Change, Entry, Event, Operation};
use crate::rules::RulesByKind;
use crate::store::types::RECORD_BYTES;
use crate::store::{Applied, Changed, Created, NewOperation, Scope};
use crate::webhook::Delivery;
use jiff::Timestamp;
use shared::message::{Content, OperationId};
use sqlx::{PgConnection, Row};
use std::collections::{BTreeMap, HashMap, HashSet};

const BY_KEY: &str = "select o.* from operations o join unnest($1::text[], $2::text[]) as n (owner, key)
    on o.owner = n.owner and o.idempotency_key = n.key";

/// What is asked of the writer.
#[derive(Debug)]
pub(super) enum Work {
    Create(Box<NewOperation>),
    Apply { scope: Scope, id: OperationId, event: Event, now: Timestamp },
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Created(Created),
    Applied(Box<Option<Applied>>),
    /// It must be tried once more: what it met is gone.
    Again,
}

/// What a transaction has written, to be committed.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) changed: Vec<Changed>,
    /// Its number at the server, if it has written events.
    pub(super) transaction: Option<String>,
}

/// A new operation that is stored already, and is committed if its owner has room for it.
struct New<'a> {
    place: usize,
    operation: Operation,
    entry: Entry,
    request: &'a NewOperation,
}

#[derive(Default)]
struct Batch {
    outcomes: Vec<Outcome>,
    requests: BTreeMap<OperationId, Content>,
    results: BTreeMap<OperationId, Content>,
    deliveries: Vec<(Delivery, Timestamp)>,
    used: Used,
    /// In the order of the work that they belong to.
    entries: BTreeMap<usize, (OperationId, String, Entry)>,
}

pub(super) async fn write(connection: &mut PgConnection, rules: &RulesByKind, work: &[Work]) -> sqlx::Result<Written> {
    let mut batch = Batch { outcomes: vec![Outcome::Again; work.len()], ..Batch::default() };
    batch.apply_all(connection, rules, work).await?;
    let new = batch.insert_all(connection, work).await?;
    save_contents(connection, SAVE_REQUESTS, std::mem::take(&mut batch.requests)).await?;
    save_contents(connection, SAVE_RESULTS, std::mem::take(&mut batch.results)).await?;
    super::webhooks::save(connection, std::mem::take(&mut batch.deliveries)).await?;
    batch.take_room(connection, new).await?;
    batch.used.save(connection).await?;
    let entries: Vec<_> = batch.entries.into_values().collect();
    let transaction = save_entries(connection, &entries).await?;
    let changed = entries.into_iter().map(|(id, owner, _)| Changed { id, owner: owner.into() }).collect();
    Ok(Written { outcomes: batch.outcomes, changed, transaction })
}

impl Batch {
    async fn apply_all(
        &mut self,
        connection: &mut PgConnection,
        rules: &RulesByKind,
        work: &[Work],
    ) -> sqlx::Result<()> {
        let mut loaded = load(connection, work).await?;
        for (place, work) in work.iter().enumerate() {
            if let Work::Apply { scope, id, event, now } = work {
                let found = loaded.get_mut(id).filter(|it| scope.owner().is_none_or(|who| who == it.operation.owner));
                let applied = found.map(|it| self.apply(place, it, event.clone(), *now, rules));
                self.outcomes[place] = Outcome::Applied(Box::new(applied));
            }
        }
        let mut changing = Changing::default();
        let mut any = false;
        for it in loaded.into_values().filter(|it| it.changed) {
            changing.push(&it.operation);
            any = true;
        }
        if any {
            changing.update().execute(connection).await?;
        }
        Ok(())
    }

    /// What SQLite's store does in one job, but for what is left for the end of the batch.
    fn apply(&mut self, place: usize, it: &mut Loaded, event: Event, now: Timestamp, rules: &RulesByKind) -> Applied {
        let operation = &mut it.operation;
        let (rules, open) = (rules.draw(&operation.asks), !operation.has_ended());
        let change = operation.apply(event, now, &rules);
        if let Some(entry) = operation.record(&change, now, rules.events_max) {
            self.entries.insert(place, (operation.id, operation.owner.clone(), entry));
        }
        it.changed |= change != Change::None;
        let mut bytes = 0;
        match &change {
            Change::Ended(Some(result)) => {
                bytes += result.body.len() as i64;
                self.results.insert(operation.id, result.clone());
            }
            Change::StepSucceeded { result, .. } => {
                bytes += result.body.len() as i64 - it.request_bytes;
                it.request_bytes = result.body.len() as i64;
                self.requests.insert(operation.id, result.clone());
            }
            _ => {}
        }
        if let Change::Ended(result) = &change
            && let Some(delivery) = Delivery::of(operation, result.as_ref())
        {
            bytes += delivery.body.len() as i64;
            self.deliveries.push((delivery, now));
        }
        let opened = i64::from(!operation.has_ended()) - i64::from(open);
        self.used.more(&operation.owner, opened, bytes);
        Applied { operation: operation.clone(), change }
    }

    /// Stores the new operations, except those whose key was there before: what these come to is known now.
    async fn insert_all<'a>(&mut self, connection: &mut PgConnection, work: &'a [Work]) -> sqlx::Result<Vec<New<'a>>> {
        let (mut all, mut changing, mut fixed) = (Vec::new(), Changing::default(), Fixed::default());
        for (place, work) in work.iter().enumerate() {
            if let Work::Create(request) = work {
                let mut operation = request.operation.clone();
                let entry = operation.record_created();
                changing.push(&operation);
                fixed.push(&operation, request.key.as_ref());
                all.push(New { place, operation, entry, request });
            }
        }
        if all.is_empty() {
            return Ok(all);
        }
        let inserted = changing.insert(fixed).fetch_all(&mut *connection).await?;
        let inserted = inserted.iter().map(tables::id).collect::<sqlx::Result<HashSet<_>>>()?;
        let (new, known): (Vec<_>, Vec<_>) = all.into_iter().partition(|new| inserted.contains(&new.operation.id));
        self.find_before(connection, known).await?;
        self.requests.extend(new.iter().map(|new| (new.operation.id, new.request.request.clone())));
        Ok(new)
    }

    async fn find_before(&mut self, connection: &mut PgConnection, known: Vec<New<'_>>) -> sqlx::Result<()> {
        if known.is_empty() {
            return Ok(());
        }
        let keys =
            known.iter().filter_map(|new| Some((new.operation.owner.clone(), new.request.key.as_ref()?.key.clone())));
        let (owners, keys): (Vec<_>, Vec<_>) = keys.unzip();
        let rows = sqlx::query(BY_KEY).bind(owners).bind(keys).fetch_all(connection).await?;
        let mut before = HashMap::new();
        for row in &rows {
            let key: (String, String) = (row.try_get("owner")?, row.try_get("idempotency_key")?);
            before.insert(key, (tables::operation(row)?, row.try_get::<Vec<u8>, _>("fingerprint")?));
        }
        for New { place, operation, request, .. } in known {
            let Some(key) = &request.key else { continue };
            // One that is gone again by now leaves the key to this one, which is tried once more.
            if let Some((before, fingerprint)) = before.get(&(operation.owner, key.key.clone())) {
                let same = *fingerprint == key.fingerprint;
                let outcome = if same { Created::Before(before.clone().into()) } else { Created::OtherPayload };
                self.outcomes[place] = Outcome::Created(outcome);
            }
        }
        Ok(())
    }

    /// Takes away again what its owner has no room for.
    async fn take_room(&mut self, connection: &mut PgConnection, new: Vec<New<'_>>) -> sqlx::Result<()> {
        let owners = new.iter().map(|new| new.operation.owner.as_str()).collect();
        let mut room = self.used.lock(connection, owners).await?;
        let mut refused = Vec::new();
        for New { place, operation, entry, request } in new {
            let bytes = RECORD_BYTES + request.request.body.len() as i64;
            let refusal = room.take(&operation.owner, bytes, request.room);
            match &refusal {
                Some(_) => refused.push(operation.id.0),
                None => {
                    self.used.more(&operation.owner, 1, bytes);
                    self.entries.insert(place, (operation.id, operation.owner, entry));
                }
            }
            self.outcomes[place] = Outcome::Created(refusal.unwrap_or(Created::New));
        }
        if refused.is_empty() {
            return Ok(());
        }
        for outcome in &mut self.outcomes {
            // It had the key of one that is not stored after all.
            if matches!(outcome, Outcome::Created(Created::Before(before)) if refused.contains(&before.id.0)) {
                *outcome = Outcome::Again;
            }
        }
        for sql in ["delete from operations where id = any($1)", "delete from requests where id = any($1)"] {
            sqlx::query(sql).bind(refused.clone()).execute(&mut *connection).await?;
        }
        Ok(())
    }
}
