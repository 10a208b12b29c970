use crate::actions::{Action, Next};
use crate::invariants::{Property, broken_by, broken_in};
use crate::state::Status;
use crate::{Model, State};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// What an exploration has found.
#[derive(Debug)]
pub struct Report {
    /// Different states, all of them explored.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// The statuses that the operation can have.
    pub statuses: BTreeSet<Status>,
    /// Each property that does not hold, with the shortest way to break it.
    pub broken: BTreeMap<Property, Trace>,
}

/// The steps from the beginning to where a property breaks, and the state after each.
#[derive(Clone, Debug)]
pub struct Trace(pub Vec<(Action, State)>);

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (action, state)) in self.0.iter().enumerate() {
            let workers = state.workers.map(|worker| worker.phase);
            let (status, row, effects) = (state.requestor.status, state.ledger.row, state.effects);
            writeln!(
                f,
                "{:>3}. {:<36} {status:?}, ledger {row:?}, workers {workers:?}, effects {effects}",
                number + 1,
                format!("{action:?}")
            )?;
        }
        Ok(())
    }
}

/// States by number, in the order in which they were found, so that the way to each is a shortest one.
#[derive(Default)]
struct Explored {
    numbers: HashMap<State, u32>,
    states: Vec<State>,
    /// The state and the action that led to each first; the initial state has none.
    origins: Vec<Option<(u32, Action)>>,
    /// Steps that are no faults, backwards.
    before: Vec<Vec<u32>>,
}

impl Explored {
    /// The number of a state, which is new if it is the last.
    fn number(&mut self, state: State, origin: Option<(u32, Action)>) -> u32 {
        if let Some(number) = self.numbers.get(&state) {
            return *number;
        }
        let number = u32::try_from(self.states.len()).expect("fewer than 2^32 states");
        self.numbers.insert(state, number);
        self.states.push(state);
        self.origins.push(origin);
        self.before.push(Vec::new());
        number
    }

    fn trace(&self, mut number: u32) -> Trace {
        let mut steps = Vec::new();
        while let Some((before, action)) = self.origins[number as usize] {
            steps.push((action, self.states[number as usize]));
            number = before;
        }
        steps.reverse();
        Trace(steps)
    }

    /// The first state from which nothing but a fault leads to a settled one, found by going backwards from those.
    fn stranded(&self) -> Option<u32> {
        let mut can_end: Vec<bool> = self.states.iter().map(|state| state.is_settled()).collect();
        let mut frontier: Vec<u32> = (0u32..).zip(&can_end).filter(|(_, ends)| **ends).map(|(at, _)| at).collect();
        while let Some(number) = frontier.pop() {
            for before in &self.before[number as usize] {
                if !std::mem::replace(&mut can_end[*before as usize], true) {
                    frontier.push(*before);
                }
            }
        }
        (0u32..).zip(&can_end).find(|(_, ends)| !**ends).map(|(at, _)| at)
    }
}

/// Tries everything that can happen, breadth first.
///
/// # Panics
/// Beyond 2^32 states.
#[must_use]
pub fn explore(model: &Model) -> Report {
    let mut explored = Explored::default();
    let mut report = Report { states: 0, steps: 0, statuses: BTreeSet::new(), broken: BTreeMap::new() };
    explored.number(State::initial(model.attempts, model.faults).normal(), None);
    let mut at = 0;
    while let Some(state) = explored.states.get(at).copied() {
        let number = u32::try_from(at).expect("numbered");
        for (action, after) in model.next(&state) {
            report.steps += 1;
            take(model, &mut explored, &mut report, (number, &state), (action, after));
        }
        at += 1;
    }
    report.states = explored.states.len();
    report.statuses = explored.states.iter().map(|state| state.requestor.status).collect();
    if let Some(number) = explored.stranded() {
        report.broken.insert(Property::CanEnd, explored.trace(number));
    }
    report
}

/// Takes one step and checks it.
fn take(model: &Model, explored: &mut Explored, report: &mut Report, from: (u32, &State), next: Next) {
    let ((number, before), (action, after)) = (from, next);
    let mut broken = broken_by(before, action, &after);
    broken.extend(broken_in(model, &after));
    let last = (action, after);
    let target = explored.number(after, Some((number, action)));
    if !matches!(action, Action::Fault(_)) {
        explored.before[target as usize].push(number);
    }
    for property in broken {
        report.broken.entry(property).or_insert_with(|| {
            let mut trace = explored.trace(number);
            trace.0.push(last);
            trace
        });
    }
}
