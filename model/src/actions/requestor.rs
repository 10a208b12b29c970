//! The requestor: front, gateway, sweeper, and the rules that `Operation::apply` follows.

use super::{Action, Next, reply, step};
use crate::state::{Outcome, REDRIVES_MAX, Reply, Requestor, State, Status};
use crate::{Mechanism, Model};

impl Model {
    /// What nothing else depends on.
    pub(super) fn requestor_at_once(&self, state: &State, next: &mut Vec<Next>) {
        self.accept(state, next);
        if let Some(reply) = state.requestor.in_hand {
            let store_first = self.has(Mechanism::StoreBeforeAck);
            let action = if store_first { Action::AckReply(reply) } else { Action::StoreReply(reply) };
            step(next, state, action, |state| {
                state.requestor.in_hand = None;
                if !store_first {
                    self.apply(&mut state.requestor, reply);
                }
            });
        }
    }

    pub(super) fn requestor_steps(&self, state: &State, next: &mut Vec<Next>) {
        self.send(state, next);
        self.receive(state, next);
        self.callers_wishes(state, next);
    }

    fn accept(&self, state: &State, next: &mut Vec<Next>) {
        let requestor = &state.requestor;
        let store_first = self.has(Mechanism::CommitBefore202);
        if !requestor.submitting {
            return;
        }
        if requestor.status == Status::Absent && (store_first || requestor.accepted) {
            step(next, state, Action::Store, |state| {
                state.requestor.status = Status::Open;
                state.requestor.due = true;
                state.requestor.submitting = store_first;
            });
        }
        if !requestor.accepted && (!store_first || requestor.status != Status::Absent) {
            step(next, state, Action::Answer202, |state| {
                state.requestor.accepted = true;
                state.requestor.submitting = !store_first;
            });
        }
    }

    fn send(&self, state: &State, next: &mut Vec<Next>) {
        let requestor = &state.requestor;
        if requestor.status != Status::Open {
            return;
        }
        if requestor.due {
            step(next, state, Action::Send, |state| state.requestor.due = !self.publish_request(state));
        } else if self.may_redrive(requestor) {
            step(next, state, Action::Redrive, |state| {
                state.requestor.due = !self.publish_request(state);
                if !self.has(Mechanism::UnlimitedRedrive) {
                    state.requestor.redrives += 1;
                }
            });
        }
        if requestor.cancel_due || requestor.cancel_requested && self.has(Mechanism::Redrive) {
            step(next, state, Action::SendCancel, |state| {
                // A later one takes the place of an earlier: they say the same.
                state.broker.controls.purge();
                state.broker.controls.push(state.requestor.attempt);
                state.requestor.cancel_due = false;
            });
        }
    }

    fn may_redrive(&self, requestor: &Requestor) -> bool {
        let capped = !self.has(Mechanism::UnlimitedRedrive);
        self.has(Mechanism::Redrive) && !(capped && requestor.redrives == REDRIVES_MAX)
    }

    fn receive(&self, state: &State, next: &mut Vec<Next>) {
        for reply in state.broker.replies.each().filter(|_| state.requestor.in_hand.is_none()) {
            let store_first = self.has(Mechanism::StoreBeforeAck);
            let action = if store_first { Action::StoreReply(reply) } else { Action::AckReply(reply) };
            step(next, state, action, |state| {
                state.broker.replies.take(reply);
                state.requestor.in_hand = Some(reply);
                if store_first {
                    self.apply(&mut state.requestor, reply);
                }
            });
        }
        for attempt in state.broker.dead.each() {
            step(next, state, Action::AnswerDeadLetter(attempt), |state| {
                state.broker.dead.take(attempt);
                state.broker.replies.push(reply(attempt, Outcome::Failed));
            });
        }
    }

    /// What a reply makes of the record.
    fn apply(&self, requestor: &mut Requestor, reply: Reply) {
        if requestor.status.is_terminal() && self.has(Mechanism::TerminalCas) {
            return;
        }
        match reply.outcome {
            Outcome::Succeeded => requestor.status = Status::Succeeded,
            Outcome::Canceled if requestor.cancel_requested => requestor.status = Status::Canceled,
            // A failure of an attempt that was given up.
            _ if reply.attempt < requestor.attempt => {}
            Outcome::Retryable if requestor.attempt < requestor.last_attempt => {
                requestor.attempt += 1;
                requestor.due = true;
            }
            Outcome::Retryable | Outcome::Failed | Outcome::Canceled => requestor.status = Status::Failed,
        }
    }

    fn callers_wishes(&self, state: &State, next: &mut Vec<Next>) {
        let requestor = &state.requestor;
        if self.deadline && requestor.status == Status::Open {
            step(next, state, Action::DeadlinePasses, |state| state.requestor.status = Status::Failed);
        }
        if self.cancel && requestor.status == Status::Open && !requestor.cancel_requested {
            step(next, state, Action::AskCancel, |state| {
                state.requestor.cancel_requested = true;
                state.requestor.cancel_due = true;
                if !self.has(Mechanism::TwoPhaseCancel) {
                    state.requestor.status = Status::Canceled;
                }
            });
        }
        if self.retry_by_hand && requestor.status == Status::Failed && !requestor.retried_by_hand {
            step(next, state, Action::RetryByHand, |state| {
                let requestor = &mut state.requestor;
                requestor.status = Status::Open;
                requestor.attempt += 1;
                requestor.last_attempt = requestor.attempt;
                requestor.retried_by_hand = true;
                (requestor.due, requestor.cancel_requested, requestor.cancel_due) = (true, false, false);
            });
        }
    }
}
