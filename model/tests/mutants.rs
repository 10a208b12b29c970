//! A design without one of its mechanisms breaks, and the model finds the shortest way.
#![expect(clippy::print_stdout, reason = "the shortest trace is worth seeing")]

use Mechanism::{
    ClaimCas, CommitBefore202, IdempotencyKey, Intent, LastingEpoch, LastingIntent, LateAck, Ledger, Mandatory, Outbox,
    Redrive, StoreBeforeAck, TerminalCas, TwoPhaseCancel, UnlimitedRedrive,
};
use Property::{
    AcceptedIsStored, AckedIsAnswered, AckedReplyIsStored, CanEnd, CanceledHasNoEffect, EffectAtMostOnce,
    SentIsInQueue, TerminalIsFinal,
};
use model::{Effect, Fault, Mechanism, Model, Property, explore};

fn transactional() -> Model {
    Model { deadline: true, cancel: true, ..Model::new(Effect::Transactional) }
}

fn external() -> Model {
    Model { effect: Effect::External, ..transactional() }
}

/// Without a deadline, by which everything ends.
fn endless() -> Model {
    Model::new(Effect::Transactional)
}

/// Explores with ever more faults, and checks that `property` breaks with as many as it takes and no fewer.
fn breaks(model: &Model, property: Property, faults_needed: u8) {
    for faults in 0..=faults_needed {
        let report = explore(&model.clone().faults(faults));
        let Some(trace) = report.broken.get(&property) else { continue };
        println!("\nwithout {:?}: {} states, {faults} faults\n{property}; broken by", model.without, report.states);
        println!("{trace}");
        assert_eq!(faults, faults_needed);
        return;
    }
    panic!("without {:?}, nothing is found that breaks it: {property}", model.without);
}

#[test]
fn without_terminal_cas_an_outcome_changes() {
    breaks(&transactional().without(&[TerminalCas]), TerminalIsFinal, 0);
}

#[test]
fn without_ledger_the_effect_happens_twice() {
    breaks(&transactional().without(&[Ledger]), EffectAtMostOnce, 0);
}

#[test]
fn without_claim_cas_the_effect_happens_twice_and_after_a_cancel() {
    breaks(&transactional().without(&[ClaimCas]), EffectAtMostOnce, 0);
    breaks(&external().without(&[ClaimCas]), CanceledHasNoEffect, 0);
}

#[test]
fn without_intent_a_canceled_operation_has_its_effect() {
    breaks(&external().without(&[Intent]), CanceledHasNoEffect, 0);
}

/// The handler fails although the effect happened, and the attempt by hand is canceled.
#[test]
fn without_lasting_intent_a_canceled_operation_has_had_its_effect() {
    let model = Model { attempts: 2, retry_by_hand: true, deadline: false, ..external() };
    breaks(&model.without(&[LastingIntent]), CanceledHasNoEffect, 0);
}

#[test]
fn with_unilateral_cancel_a_canceled_operation_has_its_effect() {
    breaks(&transactional().without(&[TwoPhaseCancel]), CanceledHasNoEffect, 0);
}

#[test]
fn without_idempotency_key_the_effect_happens_twice() {
    breaks(&external().without(&[IdempotencyKey]), EffectAtMostOnce, 0);
}

#[test]
fn with_a_fencing_token_only_the_effect_happens_twice() {
    let model = Model { fencing_token: true, ..external() };
    breaks(&model.without(&[IdempotencyKey]), EffectAtMostOnce, 0);
}

#[test]
fn without_mandatory_what_counts_as_sent_was_returned() {
    breaks(&transactional().without(&[Mandatory]), SentIsInQueue, 1);
}

#[test]
fn with_early_ack_a_request_is_gone_before_it_is_answered() {
    breaks(&transactional().without(&[LateAck]), AckedIsAnswered, 0);
}

#[test]
fn with_replies_acked_before_they_are_stored_one_is_gone() {
    breaks(&transactional().without(&[StoreBeforeAck]), AckedReplyIsStored, 0);
}

#[test]
fn with_a_202_before_the_commit_an_accepted_operation_is_lost() {
    breaks(&endless().without(&[CommitBefore202]), AcceptedIsStored, 0);
    breaks(&endless().without(&[CommitBefore202]), CanEnd, 1);
}

#[test]
fn without_redrive_an_operation_is_stranded() {
    breaks(&endless().without(&[Redrive]), CanEnd, 1);
}

#[test]
fn with_capped_redrive_an_operation_is_stranded_unless_it_has_a_deadline() {
    breaks(&endless().without(&[UnlimitedRedrive]), CanEnd, 1);
    let report = explore(&Model { deadline: true, ..endless() }.without(&[UnlimitedRedrive]).faults(3));
    println!("capped, with deadline: {} states", report.states);
    assert!(report.broken.is_empty(), "{:?}", report.broken.keys());
}

/// What each of the lesser mechanisms saves when nothing is sent again.
#[test]
fn without_redrive_each_lesser_mechanism_saves_from_one_fault() {
    let purges = [Fault::RequestsPurged, Fault::RepliesPurged];
    let rows = [
        (None, None),
        (Some(Mandatory), Some(Fault::QueueMissing)),
        (Some(LateAck), Some(Fault::WorkerKilled)),
        (Some(StoreBeforeAck), Some(Fault::RequestorKilled)),
        (Some(Outbox), Some(Fault::RequestorKilled)),
    ];
    for (mechanism, fault) in rows {
        let model = endless().without(&[Redrive]).without(mechanism.as_slice()).faults(2);
        let strands = |kind: &Fault| {
            let model = Model { fault_kinds: vec![*kind], ..model.clone() };
            explore(&model).broken.contains_key(&CanEnd)
        };
        let found: Vec<_> = Fault::ALL.into_iter().filter(strands).collect();
        println!("without {:?}: stranded by {found:?}", model.without);
        let expected: Vec<_> =
            Fault::ALL.into_iter().filter(|kind| purges.contains(kind) || Some(*kind) == fault).collect();
        assert_eq!(found, expected, "without {:?}", model.without);
    }
}

/// Sending again, the ledger and the terminal compare-and-set are the net; the rest is for speed and clarity.
#[test]
fn with_redrive_the_promise_holds_without_the_lesser_mechanisms() {
    let model = Model { cancel: true, ..endless() };
    let report = explore(&model.without(&[Mandatory, LateAck, StoreBeforeAck, Outbox]).faults(3));
    println!("lesser mechanisms taken away: {} states", report.states);
    let broken: Vec<_> = report.broken.keys().copied().collect();
    assert_eq!(broken, [SentIsInQueue, AckedIsAnswered, AckedReplyIsStored], "only what they say themselves");
}

/// A row may go with its claim: that two claims then have the same epoch harms nothing, since the row's state counts
/// as well.
#[test]
fn epochs_may_begin_anew_with_each_row() {
    for model in [transactional(), external()] {
        let model = Model { attempts: 2, deadline: false, ..model };
        let report = explore(&model.without(&[LastingEpoch]));
        println!("epochs begin anew: {} states", report.states);
        assert!(report.broken.is_empty(), "{:?}", report.broken);
    }
}
