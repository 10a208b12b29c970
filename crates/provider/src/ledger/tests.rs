//! The protocol of an entry over every order of events, duplicates and stale executions included.

use super::entry::{Answer, Asked, Entry, State, decide};
use proptest::prelude::*;
use shared::message::{Content, Outcome};
use shared::problem::Problem;

fn success(n: u32) -> Outcome {
    Outcome::Succeeded(Content::json(n.to_string()))
}

fn failure() -> Outcome {
    Outcome::Failed(Problem::new("declined", 402, "Declined", "no"))
}

/// Asks one thing after another of one entry.
fn answers(asked: impl IntoIterator<Item = Asked>) -> Vec<Answer> {
    let mut entry: Option<Entry> = None;
    let mut answer = |asked| {
        let decision = decide(entry.as_ref(), asked);
        entry = decision.write.or(entry.take());
        decision.answer
    };
    asked.into_iter().map(&mut answer).collect()
}

fn last(asked: impl IntoIterator<Item = Asked>) -> Answer {
    answers(asked).pop().unwrap()
}

const FIRST: Asked = Asked::Claim { attempt: 1, held: false };
const INTEND: Asked = Asked::Intend { epoch: 1 };
const RELEASE: Asked = Asked::Release { epoch: 1 };
const CANCEL: Asked = Asked::Cancel { attempt: 1 };

fn claim(attempt: u32) -> Asked {
    Asked::Claim { attempt, held: false }
}

fn record(epoch: i64, outcome: Outcome) -> Asked {
    Asked::Record { epoch, outcome }
}

#[test]
fn a_success_answers_every_attempt() {
    for attempt in 1..4 {
        let answer = last([FIRST, INTEND, record(1, success(1)), claim(attempt)]);
        assert_eq!(answer, Answer::Recorded { attempt: 1, outcome: success(1) });
    }
}

#[test]
fn a_failure_answers_its_own_attempt_and_the_next_one_runs() {
    let failed = [claim(2), record(1, failure())];
    for attempt in [1, 2] {
        let answer = last(failed.clone().into_iter().chain([claim(attempt)]));
        assert_eq!(answer, Answer::Recorded { attempt: 2, outcome: failure() });
    }
    assert_eq!(last(failed.into_iter().chain([claim(3)])), Answer::Yes { epoch: 2 });
}

#[test]
fn an_execution_whose_claim_has_passed_on_may_do_nothing() {
    for stale in [INTEND, record(1, success(1)), RELEASE] {
        for passed_on in [FIRST, RELEASE] {
            assert_eq!(last([FIRST, passed_on, stale.clone()]), Answer::No, "{stale:?}");
        }
    }
}

#[test]
fn a_claim_that_is_held_is_not_passed_on_but_what_is_certain_is_said() {
    let held = |attempt| Asked::Claim { attempt, held: true };
    assert_eq!(last([FIRST, held(1)]), Answer::Held);
    assert_eq!(last([FIRST, INTEND, held(2)]), Answer::Held);
    assert_eq!(last([held(1)]), Answer::Yes { epoch: 1 }, "nobody knows of it, so nobody holds it");
    assert_eq!(last([FIRST, record(1, success(1)), held(1)]), Answer::Recorded { attempt: 1, outcome: success(1) });
    assert_eq!(last([FIRST, CANCEL, held(1)]), Answer::Canceled);
    assert_eq!(last([FIRST, record(1, failure()), held(2)]), Answer::Yes { epoch: 2 });
}

#[test]
fn a_cancel_comes_before_the_intent_or_not_at_all() {
    assert_eq!(answers([CANCEL, FIRST]), [Answer::Canceled, Answer::Canceled]);
    assert_eq!(last([FIRST, CANCEL, INTEND]), Answer::Canceled);
    assert_eq!(last([FIRST, CANCEL, record(1, success(1))]), Answer::Canceled);
    assert_eq!(last([FIRST, INTEND, CANCEL]), Answer::No);
    assert_eq!(last([FIRST, INTEND, RELEASE, CANCEL]), Answer::No);
    let recorded = Answer::Recorded { attempt: 1, outcome: success(1) };
    assert_eq!(last([FIRST, record(1, success(1)), CANCEL]), recorded);
}

#[test]
fn an_attempt_after_a_failure_can_be_canceled_unless_there_was_an_intent() {
    let again = [claim(2), Asked::Cancel { attempt: 2 }];
    let without = [FIRST, record(1, failure())];
    assert_eq!(last(without.into_iter().chain(again.clone())), Answer::Canceled);
    let with = [FIRST, INTEND, record(1, failure())];
    assert_eq!(last(with.into_iter().chain(again)), Answer::No);
}

fn asked() -> impl Strategy<Value = Asked> {
    let (attempt, epoch) = (1..4_u32, 1..6_i64);
    prop_oneof![
        (attempt.clone(), any::<bool>()).prop_map(|(attempt, held)| Asked::Claim { attempt, held }),
        attempt.prop_map(|attempt| Asked::Cancel { attempt }),
        epoch.clone().prop_map(|epoch| Asked::Intend { epoch }),
        epoch.clone().prop_map(|epoch| Asked::Release { epoch }),
        (epoch.clone(), 0..4_u32).prop_map(|(epoch, n)| record(epoch, success(n))),
        epoch.prop_map(|epoch| record(epoch, failure())),
    ]
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_a_promise(events in prop::collection::vec(asked(), 1..40)) {
        let mut entry: Option<Entry> = None;
        let (mut canceled, mut may_have_happened, mut succeeded) = (false, false, None);
        for asked in events {
            let decision = decide(entry.as_ref(), asked.clone());
            prop_assert_eq!(&decision, &decide(entry.as_ref(), asked.clone()), "it depends on nothing else");
            if let (Some(before), Some(after)) = (&entry, &decision.write) {
                prop_assert!(after.epoch >= before.epoch && after.attempt >= before.attempt);
                prop_assert!(!before.intended || after.intended, "an intent is never taken back");
                prop_assert!(before.state != State::Tombstone, "a tombstone is final");
            }
            match (&asked, &decision.answer) {
                (Asked::Intend { .. }, Answer::Yes { .. }) => may_have_happened = true,
                (Asked::Record { outcome: outcome @ Outcome::Succeeded(_), .. }, Answer::Yes { .. }) => {
                    prop_assert!(succeeded.is_none(), "there is one success at most");
                    succeeded = Some(outcome.clone());
                }
                (_, Answer::Recorded { outcome: outcome @ Outcome::Succeeded(_), .. }) => {
                    prop_assert_eq!(Some(outcome), succeeded.as_ref(), "a success never changes");
                }
                (_, Answer::Canceled) => canceled = true,
                (asked, Answer::Held) => {
                    let held = matches!(asked, Asked::Claim { held: true, .. });
                    prop_assert!(held && decision.write.is_none(), "it is held, and stays so");
                }
                _ => {}
            }
            prop_assert!(!(canceled && may_have_happened), "what is canceled had no effect");
            prop_assert!(!(canceled && succeeded.is_some()), "what has succeeded is not canceled");
            entry = decision.write.or(entry);
        }
    }
}
