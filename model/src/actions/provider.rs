//! The provider: workers, and the rules of the ledger.

use super::{Action, Next, reply, step};
use crate::state::{Outcome, Phase, Reply, Row, State, Worker};
use crate::{Effect, Mechanism, Model};

impl Model {
    /// What nothing else depends on: that a delivery is looked up, that a reply is published, and acknowledged.
    pub(super) fn provider_at_once(&self, state: &State, next: &mut Vec<Next>) {
        for (at, worker) in state.workers.iter().enumerate() {
            match worker.phase {
                Phase::Received => step(next, state, Action::Claim, |state| self.claim(state, at)),
                Phase::Answering(outcome) => step(next, state, Action::Reply, |state| {
                    state.broker.replies.push(reply(worker.attempt, outcome));
                    state.workers[at].phase = Phase::Answered;
                }),
                Phase::Answered => step(next, state, Action::Ack, |state| state.workers[at] = Worker::IDLE),
                Phase::Idle | Phase::Running | Phase::Intended | Phase::Effected => {}
            }
        }
    }

    pub(super) fn provider_steps(&self, state: &State, next: &mut Vec<Next>) {
        if !state.broker.bound {
            step(next, state, Action::DeclareQueue, |state| state.broker.bound = true);
        }
        for (at, worker) in state.workers.iter().enumerate() {
            if at > 0 && state.workers[at - 1] == *worker {
                continue; // What this one can do, its twin can.
            }
            self.worker_steps(state, at, *worker, next);
        }
        self.cancel_steps(state, next);
    }

    fn worker_steps(&self, state: &State, at: usize, worker: Worker, next: &mut Vec<Next>) {
        let mut act = |action, change: &dyn Fn(&mut State)| step(next, state, action, |state| change(state));
        match worker.phase {
            Phase::Idle => {
                for attempt in state.broker.requests.each() {
                    act(Action::Deliver(attempt), &|state| self.deliver(state, at, attempt));
                }
                return;
            }
            Phase::Running if self.effect == Effect::External => {
                act(Action::WriteIntent, &|state| self.write_intent(state, at));
            }
            Phase::Running => act(Action::Finish, &|state| self.finish(state, at)),
            Phase::Intended => {
                act(Action::CallEffect, &|state| self.call_effect(state, at));
                if self.attempts > 1 {
                    act(Action::CallEffectUnanswered, &|state| {
                        self.call_effect(state, at);
                        self.fail(state, at, Outcome::Retryable);
                    });
                }
            }
            Phase::Effected => act(Action::WriteDone, &|state| self.write_done(state, at, Outcome::Succeeded)),
            Phase::Received | Phase::Answering(_) | Phase::Answered => return,
        }
        if self.attempts > 1 && worker.phase != Phase::Effected {
            act(Action::FailForNow, &|state| self.fail(state, at, Outcome::Retryable));
            act(Action::FailForGood, &|state| self.fail(state, at, Outcome::Failed));
        }
        if self.lease && worker.holds_delivery {
            act(Action::AckUnderLease, &|state| state.workers[at].holds_delivery = false);
        }
    }

    fn deliver(&self, state: &mut State, at: usize, attempt: u8) {
        state.broker.requests.take(attempt);
        let holds_delivery = self.has(Mechanism::LateAck);
        state.workers[at] = Worker { phase: Phase::Received, attempt, epoch: 0, holds_delivery };
    }

    /// Asks the ledger what to do with a request.
    fn claim(&self, state: &mut State, at: usize) {
        let (ledger, worker) = (&mut state.ledger, &mut state.workers[at]);
        if !self.has_ledger() {
            ledger.epoch += 1;
            (worker.epoch, worker.phase) = (ledger.epoch, Phase::Running);
            return;
        }
        match ledger.row {
            Row::Tombstone => worker.phase = Phase::Answering(Outcome::Canceled),
            Row::Done(reply) if reply.outcome == Outcome::Succeeded || reply.attempt >= worker.attempt => {
                (worker.attempt, worker.phase) = (reply.attempt, Phase::Answering(reply.outcome));
            }
            // None, or one that died or is taken for dead, or a failure of an earlier attempt.
            Row::Absent | Row::Claimed | Row::Intent | Row::Done(_) => {
                ledger.epoch += 1;
                let intended = ledger.row == Row::Intent || ledger.intended && self.has(Mechanism::LastingIntent);
                (ledger.row, worker.phase) =
                    if intended { (Row::Intent, Phase::Intended) } else { (Row::Claimed, Phase::Running) };
                worker.epoch = ledger.epoch;
            }
        }
    }

    /// Whether a worker may still write, that is whether its claim stands.
    fn may_write(&self, state: &State, at: usize) -> bool {
        let claim_stands =
            matches!(state.ledger.row, Row::Claimed | Row::Intent) && state.ledger.epoch == state.workers[at].epoch;
        claim_stands || !self.has(Mechanism::ClaimCas) || !self.has_ledger()
    }

    /// A pure handler has its result; a transactional one commits its effect with DONE.
    fn finish(&self, state: &mut State, at: usize) {
        if self.effect == Effect::Pure {
            state.workers[at].phase = Phase::Answering(Outcome::Succeeded);
        } else if self.may_write(state, at) {
            state.effects = (state.effects + 1).min(2);
            self.write_done(state, at, Outcome::Succeeded);
        } else {
            state.workers[at].phase = Phase::Received;
        }
    }

    fn write_intent(&self, state: &mut State, at: usize) {
        if !self.has(Mechanism::Intent) || !self.has_ledger() {
            state.workers[at].phase = Phase::Intended;
        } else if self.may_write(state, at) {
            state.ledger.row = Row::Intent;
            state.ledger.intended = true;
            state.workers[at].phase = Phase::Intended;
        } else {
            state.workers[at].phase = Phase::Received;
        }
    }

    /// The other service does what it is asked, unless it knows the key, or the token of a later claim.
    fn call_effect(&self, state: &mut State, at: usize) {
        let worker = &mut state.workers[at];
        let passes = !self.fencing_token || worker.epoch >= state.fence;
        if passes && !(self.has(Mechanism::IdempotencyKey) && state.effects > 0) {
            state.effects = (state.effects + 1).min(2);
        }
        if self.fencing_token {
            state.fence = state.fence.max(worker.epoch);
        }
        worker.phase = Phase::Effected;
    }

    /// Records an outcome, or, if another has claimed the request, asks the ledger again.
    fn write_done(&self, state: &mut State, at: usize, outcome: Outcome) {
        let may_write = self.may_write(state, at);
        let worker = &mut state.workers[at];
        if !may_write {
            worker.phase = Phase::Received;
            return;
        }
        if self.has_ledger() {
            state.ledger.row = Row::Done(Reply { attempt: worker.attempt, outcome });
        }
        worker.phase = Phase::Answering(outcome);
    }

    /// A handler fails: for good is an outcome, for now releases the claim. An INTENT stays, for what it
    /// announced may have happened.
    fn fail(&self, state: &mut State, at: usize, outcome: Outcome) {
        if outcome == Outcome::Failed && self.effect != Effect::Pure {
            return self.write_done(state, at, outcome);
        }
        if self.may_write(state, at) && state.ledger.row == Row::Claimed {
            state.ledger.row = Row::Absent;
            if !self.has(Mechanism::LastingEpoch) {
                state.ledger.epoch = 0;
            }
        }
        state.workers[at].phase = Phase::Answering(outcome);
    }

    /// The control queue: a tombstone if nothing may have happened, then an answer from the ledger.
    fn cancel_steps(&self, state: &State, next: &mut Vec<Next>) {
        if state.broker.controls.is_empty() {
            return;
        }
        let (intended, row) = (state.ledger.intended && self.has(Mechanism::LastingIntent), state.ledger.row);
        let canceled_attempt = state.broker.controls.each().max().unwrap_or_default();
        let nothing_happened = match row {
            Row::Absent | Row::Claimed => !intended,
            // A failure of an earlier attempt stands for nothing.
            Row::Done(reply) => reply.outcome == Outcome::Failed && reply.attempt < canceled_attempt && !intended,
            Row::Intent | Row::Tombstone => false,
        };
        if self.has_ledger() && nothing_happened {
            step(next, state, Action::WriteTombstone, |state| state.ledger.row = Row::Tombstone);
            return;
        }
        for attempt in state.broker.controls.each() {
            step(next, state, Action::AnswerCancel(attempt), |state| {
                state.broker.controls.take(attempt);
                match state.ledger.row {
                    Row::Tombstone => state.broker.replies.push(reply(attempt, Outcome::Canceled)),
                    Row::Done(reply) => state.broker.replies.push(reply),
                    // A pure handler has no effect that could have happened.
                    Row::Absent if self.effect == Effect::Pure => {
                        state.broker.replies.push(reply(attempt, Outcome::Canceled));
                    }
                    Row::Absent | Row::Claimed | Row::Intent => {}
                }
            });
        }
    }
}
