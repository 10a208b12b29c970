use super::*;
use crate::rules::{Retries, Rules};
use proptest::prelude::*;
use shared::message::Outcome;

const RETRIES: Retries = Retries { attempts: 3, pause: Duration::from_secs(2), pause_max: Duration::from_secs(60) };

fn rules() -> Rules {
    Rules {
        retries: RETRIES,
        fallback: None,
        jitter: 1.0,
        retention: Duration::from_secs(3600),
        quiet: Duration::from_secs(60),
        retry_window: Duration::from_secs(1800),
        cancel_resend: Duration::from_secs(2),
        events_max: 1000,
    }
}

fn operation() -> Operation {
    let now = Timestamp::from_second(1_000_000).unwrap();
    Operation::new("echo", now, Duration::from_secs(60), Duration::from_secs(5))
}

fn pipeline() -> Operation {
    operation().through(&["render".into(), "compress".into(), "deliver".into()])
}

fn report(step: u32, attempt: u32, sequence: i64) -> Progress {
    Progress { step, attempt, sequence, percent: Some(1.0), message: None, lease: None }
}

fn progress(sequence: i64) -> Event {
    Event::Progress(report(1, 1, sequence))
}

fn success(step: u32, attempt: u32) -> Event {
    Event::Reply(Reply::new(step, attempt, Outcome::Succeeded(Content::json("1"))))
}

fn problem(name: &str) -> Problem {
    Problem::new(name, 409, "No", "no")
}

fn failure(step: u32, attempt: u32, name: &str) -> Event {
    Event::Reply(Reply::new(step, attempt, Outcome::Failed(problem(name))))
}

fn busy(step: u32, attempt: u32, retry_after: Option<Duration>) -> Event {
    let outcome = Outcome::Failed(problem("busy"));
    Event::Reply(Reply { retryable: true, retry_after, ..Reply::new(step, attempt, outcome) })
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_first_outcome_is_final() {
    let mut operation = operation();
    let now = operation.created_at;
    assert_eq!(operation.apply(success(1, 1), now, &rules()), Change::Ended(Some(Content::json("1"))));
    let ended = operation.clone();
    let later = operation.deadline;
    let others = [success(1, 1), failure(1, 1, "late"), progress(1), Event::Deadline, Event::Cancel];
    for event in others.into_iter().chain([Event::Retry { timeout: seconds(9) }]) {
        assert_eq!(operation.apply(event, later, &rules()), Change::None);
    }
    assert_eq!(operation, ended);
}

#[test]
fn an_outcome_after_the_deadline_is_kept_beside_the_record() {
    let mut operation = operation();
    assert_eq!(operation.apply(Event::Deadline, operation.created_at, &rules()), Change::None);
    assert_eq!(operation.apply(Event::Deadline, operation.deadline, &rules()), Change::Ended(None));
    let state = operation.state.clone();
    assert_eq!(operation.apply(success(1, 1), operation.deadline, &rules()), Change::Late);
    assert_eq!(operation.apply(success(1, 1), operation.deadline, &rules()), Change::None);
    assert_eq!(operation.state, state);
    assert_eq!(operation.retry_refused(operation.deadline, seconds(9)), Some(RetryRefused::SucceededLate));
    assert_eq!(operation.late_outcome.unwrap().status, "Succeeded");
}

#[test]
fn a_provider_whose_clock_is_ahead_ends_nothing() {
    let mut operation = operation();
    let refused = || Event::Reply(Reply::new(1, 1, Outcome::Failed(Problem::deadline_exceeded())));
    assert_eq!(operation.apply(refused(), operation.created_at, &rules()), Change::None);
    assert_eq!(operation.apply(refused(), operation.deadline, &rules()), Change::Ended(None));
}

#[test]
fn progress_puts_off_the_next_send_and_never_goes_back() {
    let mut operation = operation();
    let now = operation.next_send_at;
    assert_eq!(operation.apply(progress(2), now, &rules()), Change::Progressed);
    assert_eq!(operation.next_send_at, after(now, rules().quiet));
    assert_eq!(operation.apply(progress(2), now, &rules()), Change::None);
    assert_eq!(operation.apply(progress(1), now, &rules()), Change::None);
    assert_eq!(operation.version, 2);
    for (sequence, lease) in [(3, 45), (4, 0)] {
        let leased = Progress { lease: Some(seconds(lease)), ..report(1, 1, sequence) };
        operation.apply(Event::Progress(leased), now, &rules());
        assert_eq!(operation.next_send_at, after(now, seconds(lease)), "the request is sent when the lease runs out");
    }
}

#[test]
fn an_attempt_beyond_ours_is_ours_and_a_step_beyond_ours_is_nonsense() {
    let mut operation = operation();
    let now = operation.created_at;
    assert_eq!(operation.apply(Event::Progress(report(1, 900, 1)), now, &rules()), Change::Progressed);
    assert_eq!(operation.apply(progress(2), now, &rules()), Change::Progressed, "it holds up no later report");
    for event in [Event::Progress(report(2, 1, 9)), success(2, 1), failure(2, 1, "no"), success(0, 1)] {
        assert_eq!(operation.apply(event, now, &rules()), Change::None);
    }
    assert_eq!(operation.apply(busy(1, 900, None), now, &rules()), Change::AttemptFailed { step: 1, attempt: 1 });
    assert_eq!(operation.attempt, 2);
}

#[test]
fn a_failure_that_may_pass_is_attempted_again_with_growing_pauses() {
    let mut operation = operation();
    let now = operation.created_at;
    for (attempt, pause) in [(2, 2), (3, 4)] {
        let failed = Change::AttemptFailed { step: 1, attempt: attempt - 1 };
        assert_eq!(operation.apply(busy(1, attempt - 1, None), now, &rules()), failed);
        assert_eq!((operation.attempt, operation.sends), (attempt, 0));
        assert_eq!(operation.next_attempt_at(), Some(after(now, seconds(pause))));
        assert_eq!(operation.apply(busy(1, attempt - 1, None), now, &rules()), Change::None, "a repeat");
        assert_eq!(
            operation.apply(failure(1, attempt - 1, "no"), now, &rules()),
            Change::None,
            "of an attempt given up"
        );
    }
    assert_eq!(operation.apply(Event::Progress(report(1, 3, 1)), now, &rules()), Change::Progressed);
    assert_eq!(operation.next_attempt_at(), None);
    let mut lucky = operation.clone();
    assert_eq!(
        lucky.apply(success(1, 1), now, &rules()),
        Change::Ended(Some(Content::json("1"))),
        "late, but a success"
    );
    assert_eq!(operation.apply(busy(1, 3, None), now, &rules()), Change::Ended(None));
    assert_eq!(operation.state, State::Failed(problem("busy")));
}

#[test]
fn a_provider_may_ask_for_a_longer_pause_but_not_beyond_the_deadline() {
    let mut operation = operation();
    let now = operation.created_at;
    operation.apply(busy(1, 1, Some(seconds(1))), now, &rules());
    assert_eq!(operation.next_attempt_at(), Some(after(now, seconds(2))), "the policy's is longer");
    operation.apply(busy(1, 2, Some(seconds(30))), now, &rules());
    assert_eq!(operation.next_attempt_at(), Some(after(now, seconds(30))));
    let mut patient = self::operation();
    assert_eq!(patient.apply(busy(1, 1, Some(seconds(60))), now, &rules()), Change::Ended(None));

    let mut late = self::operation();
    let now = late.deadline.checked_sub(seconds(1)).unwrap();
    assert_eq!(late.apply(busy(1, 1, None), now, &rules()), Change::Ended(None));
}

#[test]
fn when_no_attempt_is_left_the_fallback_is_asked() {
    let rules = Rules { fallback: Some("spare".into()), ..rules() };
    let mut operation = operation();
    let now = operation.created_at;
    for attempt in 1..=3 {
        operation.apply(busy(1, attempt, None), now, &rules);
    }
    assert_eq!((operation.step, operation.attempt, operation.asks.as_str()), (2, 1, "spare"));
    assert_eq!((operation.kind.as_str(), operation.next_send_at), ("echo", now));
    assert_eq!(operation.apply(success(1, 3), now, &rules), Change::None, "of an earlier step");
    assert_eq!(operation.apply(success(2, 1), now, &rules), Change::Ended(Some(Content::json("1"))));

    let mut refused = self::operation();
    assert_eq!(refused.apply(failure(1, 1, "no"), now, &rules), Change::Ended(None), "not for a failure that is final");
}

#[test]
fn the_result_of_a_step_is_the_request_of_the_next() {
    let mut operation = pipeline();
    let now = operation.created_at;
    for (step, asks) in [(1, "compress"), (2, "deliver")] {
        let change = operation.apply(success(step, 1), now, &rules());
        assert_eq!(change, Change::StepSucceeded { step, result: Content::json("1") });
        assert_eq!((operation.step, operation.position, operation.asks.as_str()), (step + 1, step + 1, asks));
        assert_eq!(operation.apply(success(step, 1), now, &rules()), Change::None, "a repeat");
        assert_eq!(operation.apply(Event::Progress(report(step, 1, 99)), now, &rules()), Change::None);
    }
    operation.apply(busy(3, 1, None), now, &rules());
    assert_eq!((operation.step, operation.attempt), (3, 2), "a step is attempted again alone");
    assert_eq!(operation.apply(success(3, 2), now, &rules()), Change::Ended(Some(Content::json("1"))));
}

#[test]
fn only_the_provider_makes_it_canceled() {
    let mut operation = operation();
    let now = operation.created_at;
    let mut unasked = operation.clone();
    unasked.apply(failure(1, 1, "canceled"), now, &rules());
    assert!(matches!(unasked.state, State::Failed(_)), "nobody had asked for it");

    assert_eq!(operation.apply(Event::Cancel, now, &rules()), Change::CancelRequested);
    assert_eq!(operation.apply(Event::Cancel, now, &rules()), Change::None);
    assert_eq!(operation.next_cancel_at, Some(after(now, seconds(2))));
    assert!(!operation.has_ended());
    let mut overtaken = operation.clone();
    overtaken.apply(success(1, 1), now, &rules());
    assert_eq!(overtaken.state, State::Succeeded, "the effect had happened");
    assert_eq!(operation.apply(failure(1, 1, "canceled"), now, &rules()), Change::Ended(None));
    assert_eq!(operation.state, State::Canceled(problem("canceled")));
    assert_eq!(operation.apply(failure(1, 1, "canceled"), now, &rules()), Change::None);
    assert_eq!(operation.retry_refused(now, seconds(9)), Some(RetryRefused::NotFailed));
}

#[test]
fn what_is_to_be_canceled_is_not_attempted_again_but_stays_open() {
    let mut operation = operation();
    let now = operation.created_at;
    operation.apply(Event::Cancel, now, &rules());
    assert_eq!(operation.apply(busy(1, 1, None), now, &rules()), Change::AttemptFailed { step: 1, attempt: 1 });
    assert_eq!(operation.apply(busy(1, 1, None), now, &rules()), Change::None, "a repeat");
    assert_eq!((operation.attempt, operation.has_ended(), operation.next_attempt_at()), (1, false, None));
    assert_eq!(operation.next_send_at, after(now, rules().quiet), "lest an effect that was begun is left half done");
    let mut unanswered = operation.clone();
    assert_eq!(unanswered.apply(Event::Deadline, operation.deadline, &rules()), Change::Ended(None));
    assert!(matches!(unanswered.state, State::Failed(_)));
    assert_eq!(unanswered.retry_refused(operation.deadline, seconds(9)), Some(RetryRefused::CancelRequested));
    operation.apply(failure(1, 1, "canceled"), now, &rules());
    assert!(matches!(operation.state, State::Canceled(_)));
}

#[test]
fn a_pipeline_is_canceled_between_its_steps() {
    let mut operation = pipeline();
    let now = operation.created_at;
    operation.apply(success(1, 1), now, &rules());
    operation.apply(Event::Cancel, now, &rules());
    assert_eq!(operation.apply(success(2, 1), now, &rules()), Change::Ended(None));
    let State::Canceled(problem) = &operation.state else { panic!("{:?}", operation.state) };
    assert!(problem.is("canceled") && problem.extensions["stepsDone"] == 2, "{problem:?}");
}

#[test]
fn a_retry_opens_the_operation_again_with_attempts_of_its_own() {
    let mut operation = operation();
    let now = operation.created_at;
    for attempt in 1..=3 {
        operation.apply(busy(1, attempt, None), now, &rules());
    }
    assert!(matches!(operation.state, State::Failed(_)));
    let id = operation.id;
    let too_late = after(now, rules().retry_window + seconds(1));
    assert_eq!(operation.retry_refused(too_late, rules().retry_window), Some(RetryRefused::TooLate));
    assert_eq!(operation.apply(Event::Retry { timeout: seconds(60) }, too_late, &rules()), Change::None);

    let again = after(now, seconds(100));
    assert_eq!(operation.apply(Event::Retry { timeout: seconds(60) }, again, &rules()), Change::Retried);
    assert_eq!(operation.apply(Event::Retry { timeout: seconds(60) }, again, &rules()), Change::None);
    assert_eq!((operation.id, operation.attempt, operation.next_send_at), (id, 4, again));
    assert_eq!((operation.deadline, operation.expires_at), (after(again, seconds(60)), None));
    assert_eq!(operation.apply(failure(1, 3, "no"), again, &rules()), Change::None, "of an earlier attempt");
    for attempt in 4..=5 {
        assert!(matches!(operation.apply(busy(1, attempt, None), again, &rules()), Change::AttemptFailed { .. }));
    }
    assert_eq!(operation.apply(success(1, 2), again, &rules()), Change::Ended(Some(Content::json("1"))));
}

#[test]
fn the_log_leaves_out_progress_beyond_its_limit_and_nothing_else() {
    let mut operation = operation();
    let now = operation.created_at;
    let mut log = vec![operation.record_created()];
    let events = (1..10).map(progress).chain([busy(1, 1, None), Event::Cancel, failure(1, 1, "canceled")]);
    for event in events {
        let change = operation.apply(event, now, &rules());
        log.extend(operation.record(&change, now, 4));
    }
    let types: Vec<_> = log.iter().map(|entry| entry.event_type.as_str()).collect();
    let last = ["attempt-failed", "cancel-requested", "canceled"];
    assert_eq!(types, [&["created", "progress", "progress", "progress"][..], &last].concat());
    let numbers: Vec<_> = log.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, (1..=7).collect::<Vec<_>>());
}

/// Anything that may come, of any step and attempt, with any contradiction.
fn any_event() -> impl Strategy<Value = Event> {
    let (step, attempt) = (0..5_u32, 0..7_u32);
    let name = prop::sample::select(vec!["no", "canceled", "deadline-exceeded"]);
    prop_oneof![
        4 => (step.clone(), attempt.clone(), 0..20_i64, prop::option::of(0..90_u64)).prop_map(|(s, a, n, lease)| {
            Event::Progress(Progress { lease: lease.map(seconds), ..report(s, a, n) })
        }),
        2 => (step.clone(), attempt.clone()).prop_map(|(s, a)| success(s, a)),
        1 => (step.clone(), attempt.clone(), name).prop_map(|(s, a, name)| failure(s, a, name)),
        4 => (step, attempt, prop::option::of(0..90_u64)).prop_map(|(s, a, p)| busy(s, a, p.map(seconds))),
        1 => Just(Event::Cancel),
        1 => (1..60_u64).prop_map(|timeout| Event::Retry { timeout: seconds(timeout) }),
        1 => Just(Event::Deadline),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_in_whatever_order_an_operation_ends_once_and_tells_all(
        steps in 0..4_usize,
        fallback in any::<bool>(),
        events in prop::collection::vec((any_event(), 0..20_u64, any::<bool>()), 0..60),
    ) {
        let names: Vec<String> = (0..steps).map(|n| format!("step-{n}")).collect();
        let mut operation = operation().through(&names);
        let mut log = vec![operation.record_created()];
        let mut now = operation.created_at;
        let (mut asked_to_cancel, mut steps_done) = (false, 0);
        for (event, pause, twice) in events {
            now = after(now, seconds(pause));
            for _ in 0..=u8::from(twice) {
                let before = operation.clone();
                // Fallbacks have none of their own.
                let fallback = (fallback && operation.asks != "spare").then(|| "spare".to_owned());
                let rules = Rules { fallback, ..rules() };
                let change = operation.apply(event.clone(), now, &rules);
                log.extend(operation.record(&change, now, rules.events_max));
                let changed = change != Change::None;
                prop_assert_eq!(operation.version, before.version + u32::from(changed));
                prop_assert_eq!(log.len(), operation.version as usize, "one entry for each change");
                if !changed {
                    prop_assert_eq!(&operation, &before);
                }
                if before.has_ended() && change != Change::Retried {
                    prop_assert_eq!(&operation.state, &before.state, "an outcome is final");
                }
                if change == Change::Retried {
                    prop_assert!(matches!(before.state, State::Failed(_)) && !operation.has_ended());
                }
                prop_assert_eq!(matches!(change, Change::Ended(_)), operation.has_ended() && !before.has_ended());
                let (now_at, then_at) = ((operation.step, operation.attempt), (before.step, before.attempt));
                prop_assert!(now_at >= then_at, "steps and attempts only go on");
                asked_to_cancel |= change == Change::CancelRequested;
                steps_done += u32::from(matches!(change, Change::StepSucceeded { .. }));
                prop_assert_eq!(operation.position, 1 + steps_done);
                if matches!(operation.state, State::Canceled(_)) {
                    prop_assert!(asked_to_cancel);
                }
                if operation.state == State::Succeeded {
                    prop_assert!(steps_done as usize == steps.saturating_sub(1));
                }
            }
        }
        operation.apply(Event::Deadline, operation.deadline, &rules());
        prop_assert!(operation.has_ended(), "the deadline ends what nothing else has ended");
        for (index, entry) in log.iter().enumerate() {
            prop_assert_eq!(entry.number as usize, index + 1, "no gap");
        }
    }
}
