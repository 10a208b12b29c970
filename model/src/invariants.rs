use crate::actions::Action;
use crate::state::{Outcome, Phase, Row, State, Status};
use crate::{Effect, Model};
use std::fmt;

/// What must hold. The numbers are those of `docs/model.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// I1.
    EffectAtMostOnce,
    /// I2. But for a failure that a person has attempted again.
    TerminalIsFinal,
    /// I3.
    SucceededHasEffect,
    /// I4. Neither when it is canceled nor later.
    CanceledHasNoEffect,
    /// I5. From every state a terminal one can be reached without a further fault.
    CanEnd,
    /// I6.
    SentIsInQueue,
    /// I7. But for an execution that lives on its lease.
    AckedIsAnswered,
    /// I8.
    AckedReplyIsStored,
    /// I9. But for a failure, which a later attempt replaces.
    DoneIsFinal,
    /// I11.
    AcceptedIsStored,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EffectAtMostOnce => "I1: the effect happens at most once",
            Self::TerminalIsFinal => "I2: a terminal outcome never changes",
            Self::SucceededHasEffect => "I3: Succeeded means that the effect has happened",
            Self::CanceledHasNoEffect => "I4: Canceled means that the effect has not happened and never will",
            Self::CanEnd => "I5: a terminal state can always be reached without further faults",
            Self::SentIsInQueue => "I6: what counts as sent is in the queue",
            Self::AckedIsAnswered => "I7: an acknowledged request has been answered",
            Self::AckedReplyIsStored => "I8: an acknowledged reply has been stored",
            Self::DoneIsFinal => "I9: a recorded outcome never changes",
            Self::AcceptedIsStored => "I11: an operation that was answered 202 is stored",
        })
    }
}

/// What is wrong with a state in itself.
pub(crate) fn broken_in(model: &Model, state: &State) -> Vec<Property> {
    let (requestor, effects) = (&state.requestor, state.effects);
    let has_effect = model.effect != Effect::Pure;
    let mut broken = Vec::new();
    let mut must = |property, holds: bool| {
        if !holds {
            broken.push(property);
        }
    };
    must(Property::EffectAtMostOnce, effects <= 1);
    must(Property::SucceededHasEffect, !(has_effect && requestor.status == Status::Succeeded && effects == 0));
    must(Property::CanceledHasNoEffect, !(requestor.status == Status::Canceled && effects > 0));
    must(Property::AcceptedIsStored, !(requestor.accepted && requestor.status == Status::Absent));
    broken
}

/// What is wrong with a step.
pub(crate) fn broken_by(before: &State, action: Action, after: &State) -> Vec<Property> {
    let mut broken = Vec::new();
    let mut must = |property, holds: bool| {
        if !holds {
            broken.push(property);
        }
    };
    let (was, is) = (before.requestor.status, after.requestor.status);
    must(Property::TerminalIsFinal, !was.is_terminal() || was == is || action == Action::RetryByHand);
    if action == Action::Send && !after.requestor.due {
        must(Property::SentIsInQueue, after.broker.requests.has(after.requestor.attempt));
    }
    // A delivery that nobody holds is gone from the broker; only then it must have been answered.
    if matches!(action, Action::Deliver(_)) {
        let gone = |state: &State| {
            state.workers.iter().filter(|worker| worker.phase == Phase::Received && !worker.holds_delivery).count()
        };
        must(Property::AckedIsAnswered, gone(after) <= gone(before));
    }
    if let Action::AckReply(reply) = action {
        must(Property::AckedReplyIsStored, before.requestor.in_hand == Some(reply));
    }
    if let Row::Done(done) = before.ledger.row {
        must(Property::DoneIsFinal, before.ledger.row == after.ledger.row || done.outcome != Outcome::Succeeded);
    }
    broken
}
