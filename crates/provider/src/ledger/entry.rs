//! The protocol of an entry: what may be done with a request, given what is known of it.

use shared::message::Outcome;

/// How far a request is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// An execution has begun and had no effect; if its process is gone, another may begin.
    Claimed,
    /// The effect may have happened, under the request's idempotency key.
    Intent,
    /// This came of it.
    Done(Outcome),
    /// It was canceled before its effect, which will never happen.
    Tombstone,
}

/// What the ledger knows of one request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) state: State,
    /// The highest attempt of the requestor's that was claimed.
    pub(crate) attempt: u32,
    /// Grows with each claim: what an execution of an earlier epoch wants is refused.
    pub(crate) epoch: i64,
    /// Whether an effect may ever have happened. Never taken back, so that such a request is never canceled, also not
    /// when it is attempted again after a failure.
    pub(crate) intended: bool,
}

/// What is asked of an entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asked {
    /// May this attempt be carried out? `held`: another execution has the claim, and its lease has not run out.
    Claim { attempt: u32, held: bool },
    /// May the execution of this epoch have its effect now?
    Intend { epoch: i64 },
    /// The execution of this epoch has ended with an outcome.
    Record { epoch: i64, outcome: Outcome },
    /// The execution of this epoch has ended without one.
    Release { epoch: i64 },
    /// May the requestor say of this attempt that it had no effect and will have none?
    Cancel { attempt: u32 },
}

/// What the ledger says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// It is so from now on. The epoch is the entry's.
    Yes { epoch: i64 },
    /// This was recorded before.
    Recorded { attempt: u32, outcome: Outcome },
    /// There is a tombstone.
    Canceled,
    /// Another execution will answer, or has the right to.
    No,
    /// Another execution has the claim; whether it lives will be known when its lease has run out.
    Held,
}

/// The answer, and the entry as it must be written before it is given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    pub(crate) write: Option<Entry>,
    pub(crate) answer: Answer,
}

/// Decides what becomes of an entry. Pure: no clock, no database.
pub(crate) fn decide(entry: Option<&Entry>, asked: Asked) -> Decision {
    match (asked, entry) {
        (Asked::Claim { attempt, held }, entry) => claim(entry, attempt, held),
        (Asked::Cancel { attempt }, entry) => cancel(entry, attempt),
        (_, None) => Decision::only(Answer::No),
        (_, Some(Entry { state: State::Tombstone, .. })) => Decision::only(Answer::Canceled),
        (Asked::Intend { epoch }, Some(entry)) => match entry.state {
            State::Claimed | State::Intent if entry.epoch == epoch => {
                Decision::write(Entry { state: State::Intent, intended: true, ..entry.clone() })
            }
            _ => Decision::only(Answer::No),
        },
        (Asked::Record { epoch, outcome }, Some(entry)) => match &entry.state {
            State::Claimed | State::Intent if entry.epoch == epoch => {
                Decision::write(Entry { state: State::Done(outcome), ..entry.clone() })
            }
            _ => Decision::only(entry.last_word(entry.attempt).unwrap_or(Answer::No)),
        },
        (Asked::Release { epoch }, Some(entry)) => match entry.state {
            // The next epoch, so that nothing that is left of this execution can have an effect.
            State::Claimed | State::Intent if entry.epoch == epoch => {
                Decision::write(Entry { epoch: epoch + 1, ..entry.clone() })
            }
            _ => Decision::only(Answer::No),
        },
    }
}

/// Whoever asks for a claim that nobody holds any more asks after the death of its holder: one process runs a request once
/// at a time, and gives its claim back when it stops.
fn claim(entry: Option<&Entry>, attempt: u32, held: bool) -> Decision {
    let Some(entry) = entry else {
        return Decision::write(Entry { state: State::Claimed, attempt, epoch: 1, intended: false });
    };
    if let Some(answer) = entry.last_word(attempt) {
        return Decision::only(answer);
    }
    if held && matches!(entry.state, State::Claimed | State::Intent) {
        return Decision::only(Answer::Held);
    }
    let state = if entry.intended { State::Intent } else { State::Claimed };
    let (attempt, epoch) = (entry.attempt.max(attempt), entry.epoch + 1);
    Decision::write(Entry { state, attempt, epoch, intended: entry.intended })
}

fn cancel(entry: Option<&Entry>, attempt: u32) -> Decision {
    let tombstone = |epoch, attempt| Decision {
        write: Some(Entry { state: State::Tombstone, attempt, epoch, intended: false }),
        answer: Answer::Canceled,
    };
    match entry {
        None => tombstone(1, attempt),
        Some(entry) => match entry.last_word(attempt) {
            Some(answer) => Decision::only(answer),
            None if entry.intended => Decision::only(Answer::No),
            None => tombstone(entry.epoch + 1, entry.attempt.max(attempt)),
        },
    }
}

impl Entry {
    /// What is final for `attempt`: a success for all, a failure for its own attempt and those before.
    fn last_word(&self, attempt: u32) -> Option<Answer> {
        match &self.state {
            State::Claimed | State::Intent => None,
            State::Tombstone => Some(Answer::Canceled),
            State::Done(Outcome::Failed(_)) if attempt > self.attempt => None,
            State::Done(outcome) => Some(Answer::Recorded { attempt: self.attempt, outcome: outcome.clone() }),
        }
    }
}

impl Decision {
    fn only(answer: Answer) -> Self {
        Self { write: None, answer }
    }

    fn write(entry: Entry) -> Self {
        let answer = Answer::Yes { epoch: entry.epoch };
        Self { write: Some(entry), answer }
    }
}
