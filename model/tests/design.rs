//! The design holds, whatever happens in whatever order.
#![expect(clippy::print_stdout, reason = "the sizes are worth seeing")]

use model::state::Status;
use model::{Effect, Model, explore};
use std::time::Instant;

/// Explores `model` and checks that all properties hold, and that this says something: every outcome can happen.
fn holds(name: &str, model: &Model) {
    let begun = Instant::now();
    let report = explore(model);
    let elapsed = begun.elapsed();
    println!("{name}, faults <= {}: {} states, {} steps, {elapsed:.1?}", model.faults, report.states, report.steps);
    for (property, trace) in &report.broken {
        println!("\n{property}: broken by\n{trace}");
    }
    assert!(report.broken.is_empty(), "{name}");
    assert!(report.statuses.contains(&Status::Succeeded), "{name}: {:?}", report.statuses);
    assert_eq!(report.statuses.contains(&Status::Canceled), model.cancel, "{name}: {:?}", report.statuses);
}

#[test]
fn pure_handlers() {
    holds("pure", &Model::new(Effect::Pure).faults(5));
    holds("pure, cancel", &Model { cancel: true, ..Model::new(Effect::Pure).faults(3) });
    holds("pure, cancel, lease", &Model { cancel: true, lease: true, ..Model::new(Effect::Pure).faults(2) });
    holds("pure, cancel, attempts", &Model { cancel: true, attempts: 2, ..Model::new(Effect::Pure) });
}

#[test]
fn transactional_handlers() {
    let model = Model::new(Effect::Transactional);
    holds("transactional", &model.clone().faults(5));
    holds("transactional, cancel, deadline", &Model { cancel: true, deadline: true, ..model.clone().faults(5) });
    holds("transactional, cancel, lease", &Model { cancel: true, lease: true, ..model.clone().faults(3) });
    holds("transactional, cancel, attempts", &Model { cancel: true, attempts: 2, ..model.faults(1) });
}

/// The exploration leaves orders out that make no difference. Here it does not.
#[test]
fn in_every_order() {
    for effect in [Effect::Pure, Effect::Transactional, Effect::External] {
        let model = Model { every_order: true, cancel: true, ..Model::new(effect).faults(2) };
        holds(&format!("{effect:?}, cancel, every order"), &model);
    }
}

#[test]
fn external_handlers() {
    let model = Model::new(Effect::External);
    holds("external", &model.clone().faults(5));
    holds("external, cancel", &Model { cancel: true, ..model.clone().faults(4) });
    holds("external, cancel, deadline", &Model { cancel: true, deadline: true, ..model.clone().faults(3) });
    holds("external, cancel, lease", &Model { cancel: true, lease: true, ..model.clone().faults(2) });
    holds("external, cancel, attempts", &Model { cancel: true, attempts: 2, ..model.clone().faults(1) });
    holds("external, cancel, by hand", &Model { cancel: true, attempts: 2, retry_by_hand: true, ..model });
}
