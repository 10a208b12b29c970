//! What can go wrong.

use super::{Action, Next, step};
use crate::state::{Phase, State, Status, Worker};
use crate::{Mechanism, Model};

/// A fault. Each costs one of those that the model allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of a worker; the broker delivers what it held again.
    WorkerKilled,
    /// kill -9 of the requestor; the broker delivers what it held again.
    RequestorKilled,
    /// A provider's connection is lost: what it held is delivered again while it works on. A lost acknowledgement
    /// is this at the last moment.
    ConnectionLost,
    /// Someone empties the request queue.
    RequestsPurged,
    /// Someone empties the reply queue.
    RepliesPurged,
    /// Someone empties the control queue.
    ControlsPurged,
    /// A confirm is lost, so a request was published twice: its copy comes when the first is being worked on.
    RequestDuplicated,
    /// A confirm is lost, so a reply was published twice.
    ReplyDuplicated,
    /// The delivery limit makes a request a dead letter.
    DeadLettered,
    /// The request queue is not there: requests are returned.
    QueueMissing,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::WorkerKilled,
        Self::RequestorKilled,
        Self::ConnectionLost,
        Self::RequestsPurged,
        Self::RepliesPurged,
        Self::ControlsPurged,
        Self::RequestDuplicated,
        Self::ReplyDuplicated,
        Self::DeadLettered,
        Self::QueueMissing,
    ];
}

impl Model {
    pub(super) fn faults_from(&self, state: &State, next: &mut Vec<Next>) {
        for fault in &self.fault_kinds {
            let first = next.len();
            self.strike(*fault, state, next);
            for (_, after) in &mut next[first..] {
                after.faults -= 1;
            }
        }
    }

    fn strike(&self, fault: Fault, state: &State, next: &mut Vec<Next>) {
        let broker = &state.broker;
        let mut act = |change: &dyn Fn(&mut State)| step(next, state, Action::Fault(fault), |state| change(state));
        match fault {
            Fault::WorkerKilled | Fault::ConnectionLost => {
                for at in 0..state.workers.len() {
                    let worker = state.workers[at];
                    if worker.phase != Phase::Idle && (fault == Fault::WorkerKilled || worker.holds_delivery) {
                        act(&|state| lose(state, at, fault));
                    }
                }
            }
            Fault::RequestorKilled if self.remembers(state) => act(&|state| self.kill_requestor(state)),
            Fault::RequestsPurged if !broker.requests.is_empty() => act(&|state| state.broker.requests.purge()),
            Fault::RepliesPurged if !broker.replies.is_empty() => act(&|state| state.broker.replies.purge()),
            Fault::ControlsPurged if !broker.controls.is_empty() => act(&|state| state.broker.controls.purge()),
            Fault::RequestDuplicated => {
                for worker in state.workers.into_iter().filter(|worker| worker.phase != Phase::Idle) {
                    act(&|state| state.broker.requests.push(worker.attempt));
                }
            }
            Fault::ReplyDuplicated => {
                if let Some(reply) = state.requestor.in_hand {
                    act(&|state| state.broker.replies.push(reply));
                }
            }
            Fault::DeadLettered => {
                for attempt in broker.requests.each() {
                    act(&|state| {
                        state.broker.requests.take(attempt);
                        state.broker.dead.push(attempt);
                    });
                }
            }
            Fault::QueueMissing if broker.bound => act(&|state| state.broker.bound = false),
            _ => {}
        }
    }

    /// Whether the requestor has anything in memory that could be lost.
    fn remembers(&self, state: &State) -> bool {
        let requestor = &state.requestor;
        requestor.submitting || requestor.in_hand.is_some() || !self.has(Mechanism::Outbox) && requestor.due
    }

    fn kill_requestor(&self, state: &mut State) {
        let requestor = &mut state.requestor;
        requestor.submitting = false;
        if let Some(reply) = requestor.in_hand.take()
            && self.has(Mechanism::StoreBeforeAck)
        {
            state.broker.replies.push(reply);
        }
        if !self.has(Mechanism::Outbox) && requestor.status == Status::Open {
            requestor.due = false;
        }
    }
}

/// A worker dies or loses its connection, and the broker gets back what it held.
fn lose(state: &mut State, at: usize, fault: Fault) {
    let worker = state.workers[at];
    if worker.holds_delivery {
        state.broker.requests.push(worker.attempt);
    }
    state.workers[at] = match fault {
        Fault::WorkerKilled => Worker::IDLE,
        _ => Worker { holds_delivery: false, ..worker },
    };
}
