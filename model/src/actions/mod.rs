mod fault;
mod provider;
mod requestor;

pub use fault::Fault;

use crate::state::{Outcome, Reply, Row, State, Status};
use crate::{Mechanism, Model};

/// One step, by whoever takes it. It is atomic: a commit, a publish, a settlement, or a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Requestor: the operation is committed.
    Store,
    /// Requestor: the caller has its 202.
    Answer202,
    /// Requestor: publishes the request; it stays due if it is returned.
    Send,
    /// Sweeper: publishes the request again, even though nothing may be wrong with the last.
    Redrive,
    /// Requestor: a reply is applied to the record and committed.
    StoreReply(Reply),
    /// Requestor: acknowledges a reply.
    AckReply(Reply),
    /// Requestor: the deadline has passed by its clock.
    DeadlinePasses,
    /// The caller wants it canceled.
    AskCancel,
    /// Requestor: publishes the wish to cancel.
    SendCancel,
    /// A person has the failed operation attempted again.
    RetryByHand,
    /// Requestor: a request that was dead-lettered comes back as a failure.
    AnswerDeadLetter(u8),
    /// A provider declares the queue.
    DeclareQueue,
    /// The broker delivers the request of an attempt to a worker.
    Deliver(u8),
    /// A worker asks the ledger: it claims the request, or finds an answer there.
    Claim,
    /// A worker's handler succeeds without an effect elsewhere; a transactional one commits its effect and DONE.
    Finish,
    /// A worker's handler fails for now, and its claim is released unless there is an INTENT.
    FailForNow,
    /// A worker's handler fails for good.
    FailForGood,
    /// A worker commits INTENT.
    WriteIntent,
    /// A worker calls the other service.
    CallEffect,
    /// A worker calls the other service, which does as asked, but its answer is lost.
    CallEffectUnanswered,
    /// A worker commits DONE after the effect.
    WriteDone,
    /// A worker publishes its reply, and the broker confirms it.
    Reply,
    /// A worker acknowledges the request.
    Ack,
    /// A long execution acknowledges the request early and lives on its lease.
    AckUnderLease,
    /// A provider has a wish to cancel and commits a tombstone.
    WriteTombstone,
    /// A provider answers a wish to cancel from the ledger, and acknowledges it.
    AnswerCancel(u8),
    /// Something goes wrong.
    Fault(Fault),
}

/// What came of a step.
pub type Next = (Action, State);

impl Model {
    /// Everything that can happen next.
    #[must_use]
    pub fn next(&self, state: &State) -> Vec<Next> {
        let mut next = Vec::new();
        // A step that could as well be earlier or later for everybody else is taken at once: the broker can delay
        // what it announces for as long. Only faults come before it.
        self.requestor_at_once(state, &mut next);
        self.provider_at_once(state, &mut next);
        if next.is_empty() || self.every_order {
            self.requestor_steps(state, &mut next);
            self.provider_steps(state, &mut next);
        }
        if state.faults > 0 {
            self.faults_from(state, &mut next);
        }
        for (_, state) in &mut next {
            self.forget(state);
            *state = state.normal();
        }
        next
    }

    /// Takes away the messages to the requestor that will never change anything again.
    fn forget(&self, state: &mut State) {
        let requestor = &state.requestor;
        let over = match requestor.status {
            Status::Absent | Status::Open => false,
            Status::Succeeded | Status::Canceled => true,
            Status::Failed => !self.retry_by_hand || requestor.retried_by_hand,
        };
        let over = over && self.has(Mechanism::TerminalCas);
        for reply in state.broker.replies.each() {
            let failure = matches!(reply.outcome, Outcome::Retryable | Outcome::Failed);
            if over || failure && reply.attempt < requestor.attempt {
                state.broker.replies.take(reply);
            }
        }
        for attempt in state.broker.dead.each() {
            if over || attempt < requestor.attempt {
                state.broker.dead.take(attempt);
            }
        }
        if over && state.ledger.row != Row::Absent {
            state.broker.controls.purge();
        }
    }

    /// A message that no queue takes is lost, but the publisher knows it: unless it does not ask.
    fn publish_request(&self, state: &mut State) -> bool {
        if state.broker.bound {
            state.broker.requests.push(state.requestor.attempt);
        }
        state.broker.bound || !self.has(Mechanism::Mandatory)
    }
}

/// Adds a step that changes a copy of `state`.
fn step(next: &mut Vec<Next>, state: &State, action: Action, change: impl FnOnce(&mut State)) {
    let mut after = *state;
    change(&mut after);
    next.push((action, after));
}

/// The answer to an attempt.
fn reply(attempt: u8, outcome: Outcome) -> Reply {
    Reply { attempt, outcome }
}
