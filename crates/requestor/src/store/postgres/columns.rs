//! Many operations as the columns of one statement: what a statement costs is for the most part that it is one.

use super::tables::plain;
use crate::operation::{Operation, State};
use crate::store::IdempotencyKey;
use crate::store::types::status_number;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

pub(super) type Statement = Query<'static, Postgres, PgArguments>;

/// What changes of operations, a column each.
#[derive(Debug, Default)]
pub(super) struct Changing {
    id: Vec<Uuid>,
    status: Vec<i16>,
    updated_at: Vec<i64>,
    deadline: Vec<i64>,
    ended_at: Vec<Option<i64>>,
    expires_at: Vec<Option<i64>>,
    asks: Vec<String>,
    step: Vec<i64>,
    position: Vec<i64>,
    attempt: Vec<i64>,
    attempts_before: Vec<i64>,
    version: Vec<i64>,
    progress_attempt: Vec<Option<i64>>,
    progress_sequence: Vec<Option<i64>>,
    percent: Vec<Option<f64>>,
    message: Vec<Option<String>>,
    error: Vec<Option<String>>,
    late_outcome: Vec<Option<String>>,
    last_problem: Vec<Option<String>>,
    sends: Vec<i64>,
    next_send_at: Vec<i64>,
    cancel_requested: Vec<bool>,
    cancels: Vec<i64>,
    next_cancel_at: Vec<Option<i64>>,
    events: Vec<i64>,
}

/// What never changes, a column each.
#[derive(Debug, Default)]
pub(super) struct Fixed {
    owner: Vec<String>,
    kind: Vec<String>,
    created_at: Vec<i64>,
    priority: Vec<Option<i16>>,
    traceparent: Vec<Option<String>>,
    steps: Vec<Option<String>>,
    callback: Vec<Option<String>>,
    key: Vec<Option<String>>,
    fingerprint: Vec<Option<Vec<u8>>>,
}

/// In the order in which [`Changing::bind`] gives them.
macro_rules! changing {
    () => {
        "unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[],
            $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
            $15::double precision[], $16::text[], $17::text[], $18::text[], $19::text[], $20::bigint[], $21::bigint[],
            $22::boolean[], $23::bigint[], $24::bigint[], $25::bigint[]"
    };
}

/// Those columns' names.
macro_rules! names {
    () => {
        "id, status, updated_at, deadline, ended_at, expires_at, asks, step, position, attempt, attempts_before, version,
            progress_attempt, progress_sequence, percent, message, error, late_outcome, last_problem, sends,
            next_send_at, cancel_requested, cancels, next_cancel_at, events"
    };
}

const UPDATE: &str = concat!(
    "update operations o set status = n.status, updated_at = n.updated_at, deadline = n.deadline, ended_at = n.ended_at,
        expires_at = n.expires_at, asks = n.asks, step = n.step, position = n.position, attempt = n.attempt,
        attempts_before = n.attempts_before, version = n.version, progress_attempt = n.progress_attempt,
        progress_sequence = n.progress_sequence, percent = n.percent, message = n.message, error = n.error,
        late_outcome = n.late_outcome, last_problem = n.last_problem, sends = n.sends, next_send_at = n.next_send_at,
        cancel_requested = n.cancel_requested, cancels = n.cancels, next_cancel_at = n.next_cancel_at, events = n.events
    from ",
    changing!(),
    ") as n (",
    names!(),
    ") where o.id = n.id"
);

// A key that another has just used is waited for until that is known; then the row is left out. In the order of keys, so
// that two instances do not wait for each other.
const INSERT: &str = concat!(
    "insert into operations (",
    names!(),
    ", owner, kind, created_at, priority, traceparent, steps, callback, idempotency_key, fingerprint)
    select * from ",
    changing!(),
    ", $26::text[], $27::text[], $28::bigint[], $29::smallint[], $30::text[], $31::text[], $32::text[], $33::text[],
        $34::bytea[]) as n (",
    names!(),
    ", owner, kind, created_at, priority, traceparent, steps, callback, idempotency_key, fingerprint)
    order by n.owner, n.idempotency_key
    on conflict (owner, idempotency_key) where idempotency_key is not null do nothing
    returning id"
);

impl Changing {
    pub(super) fn push(&mut self, operation: &Operation) {
        let progress = match &operation.state {
            State::Running(progress) => Some(progress),
            State::NotStarted | State::Succeeded | State::Failed(_) | State::Canceled(_) => None,
        };
        self.id.push(operation.id.0);
        self.status.push(status_number(operation) as i16);
        self.updated_at.push(operation.updated_at.as_millisecond());
        self.deadline.push(operation.deadline.as_millisecond());
        self.ended_at.push(operation.ended_at.map(Timestamp::as_millisecond));
        self.expires_at.push(operation.expires_at.map(Timestamp::as_millisecond));
        self.asks.push(operation.asks.clone());
        self.step.push(operation.step.into());
        self.position.push(operation.position.into());
        self.attempt.push(operation.attempt.into());
        self.attempts_before.push(operation.attempts_before.into());
        self.version.push(operation.version.into());
        self.progress_attempt.push(progress.map(|p| p.attempt.into()));
        self.progress_sequence.push(progress.map(|p| p.sequence));
        self.percent.push(progress.and_then(|p| p.percent));
        self.message.push(progress.and_then(|p| p.message.as_deref()).map(plain));
        self.error.push(operation.error().and_then(json));
        self.late_outcome.push(operation.late_outcome.as_ref().and_then(json));
        self.last_problem.push(operation.last_problem.as_ref().and_then(json));
        self.sends.push(operation.sends.into());
        self.next_send_at.push(operation.next_send_at.as_millisecond());
        self.cancel_requested.push(operation.cancel_requested);
        self.cancels.push(operation.cancels.into());
        self.next_cancel_at.push(operation.next_cancel_at.map(Timestamp::as_millisecond));
        self.events.push(operation.events.into());
    }

    pub(super) fn update(self) -> Statement {
        self.bind(sqlx::query(UPDATE))
    }

    /// Returns the ids of those whose key was not there before.
    pub(super) fn insert(self, fixed: Fixed) -> Statement {
        fixed.bind(self.bind(sqlx::query(INSERT)))
    }

    fn bind(self, statement: Statement) -> Statement {
        statement
            .bind(self.id)
            .bind(self.status)
            .bind(self.updated_at)
            .bind(self.deadline)
            .bind(self.ended_at)
            .bind(self.expires_at)
            .bind(self.asks)
            .bind(self.step)
            .bind(self.position)
            .bind(self.attempt)
            .bind(self.attempts_before)
            .bind(self.version)
            .bind(self.progress_attempt)
            .bind(self.progress_sequence)
            .bind(self.percent)
            .bind(self.message)
            .bind(self.error)
            .bind(self.late_outcome)
            .bind(self.last_problem)
            .bind(self.sends)
            .bind(self.next_send_at)
            .bind(self.cancel_requested)
            .bind(self.cancels)
            .bind(self.next_cancel_at)
            .bind(self.events)
    }
}

impl Fixed {
    pub(super) fn push(&mut self, operation: &Operation, key: Option<&IdempotencyKey>) {
        self.owner.push(operation.owner.clone());
        self.kind.push(operation.kind.clone());
        self.created_at.push(operation.created_at.as_millisecond());
        self.priority.push(operation.priority.map(Into::into));
        self.traceparent.push(operation.traceparent.clone());
        self.steps.push(Some(&operation.steps).filter(|steps| !steps.is_empty()).and_then(json));
        self.callback.push(operation.callback.as_ref().and_then(json));
        self.key.push(key.map(|key| key.key.clone()));
        self.fingerprint.push(key.map(|key| key.fingerprint.clone()));
    }

    fn bind(self, statement: Statement) -> Statement {
        statement
            .bind(self.owner)
            .bind(self.kind)
            .bind(self.created_at)
            .bind(self.priority)
            .bind(self.traceparent)
            .bind(self.steps)
            .bind(self.callback)
            .bind(self.key)
            .bind(self.fingerprint)
    }
}

/// None cannot happen: all that is stored so has text for keys.
fn json(value: &impl Serialize) -> Option<String> {
    serde_json::to_string(value).ok()
}
