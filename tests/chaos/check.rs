//! The rules that must hold after a run. Nothing here asks the services: only what they and the world have written down.

use crate::evidence::{Event, Ledger, Order, Told};
use crate::history::{Accepted, Memory};
use crate::load::is_terminal;
use crate::sink::Call;
use crate::stack::STOCK;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Failures after which the effect may have happened all the same: nobody could tell any more.
const UNCERTAIN: [&str; 4] = ["deadline-exceeded", "poison", "stopped", "payment-unavailable"];

/// All that is known.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) memory: Memory,
    pub(crate) told: BTreeMap<String, Told>,
    pub(crate) ledger: Ledger,
    pub(crate) payments: Vec<Call>,
    /// Requests that were sent more than once.
    pub(crate) resent: usize,
    pub(crate) events: BTreeMap<String, Vec<Event>>,
}

/// A rule, and what violates it.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) rule: &'static str,
    pub(crate) violations: Vec<String>,
}

/// The effects, by what caused them.
struct Effects<'a> {
    /// Orders by operation, whose id is their number.
    orders: HashMap<&'a str, &'a Order>,
    /// The orders' numbers, by the reference that their request bore.
    references: HashMap<&'a str, Vec<&'a str>>,
    /// Calls that moved money, by operation.
    payments: HashMap<&'a str, Vec<&'a Call>>,
}

/// An operation with what was asked, what came of it and what effects it had.
struct Case<'a> {
    id: &'a str,
    operation: &'a Value,
    result: Option<&'a Value>,
    accepted: Option<&'a Accepted>,
    /// How many effects it had; none if it is of a kind that has none.
    effects: Option<usize>,
}

impl Case<'_> {
    fn status(&self) -> &str {
        self.operation["status"].as_str().unwrap_or_default()
    }

    fn problem(&self) -> &str {
        self.operation["error"]["type"].as_str().unwrap_or_default().rsplit(':').next().unwrap_or_default()
    }

    fn tell(&self, what: &str) -> String {
        let reference = self.accepted.map_or("(its 202 was lost)", |accepted| &accepted.reference);
        format!("{} {reference}: {what}: {}", self.id, self.operation)
    }
}

/// Judges by all rules about operations and effects.
pub(crate) fn judge(facts: &Facts) -> Vec<Verdict> {
    let effects = Effects::of(facts);
    let cases: Vec<_> = facts.told.iter().map(|(id, told)| effects.case(id, told, facts)).collect();
    vec![
        Verdict { rule: "lost", violations: lost(facts) },
        Verdict { rule: "double effects", violations: double_effects(facts, &effects) },
        Verdict { rule: "flips", violations: flips(facts) },
        each("canceled with effect", &cases, |case| case.status() == "Canceled" && case.effects > Some(0)),
        each("succeeded without effect", &cases, |case| case.status() == "Succeeded" && case.effects == Some(0)),
        each("failed for certain, with effect", &cases, |case| {
            case.status() == "Failed" && case.effects > Some(0) && !UNCERTAIN.contains(&case.problem())
        }),
        each("canceled without being asked to", &cases, |case| {
            case.status() == "Canceled" && case.operation["cancelRequested"] != true
        }),
        each("result differs from what was done", &cases, |case| !effects.agrees(case)),
        Verdict { rule: "event numbers have gaps", violations: gaps(facts) },
        Verdict { rule: "stock differs from orders", violations: stock(&facts.ledger) },
    ]
}

fn each(rule: &'static str, cases: &[Case<'_>], violates: impl Fn(&Case<'_>) -> bool) -> Verdict {
    let violations = cases.iter().filter(|case| violates(case)).map(|case| case.tell(rule)).collect();
    Verdict { rule, violations }
}

impl<'a> Effects<'a> {
    fn of(facts: &'a Facts) -> Self {
        let orders = facts.ledger.orders.iter().map(|order| (order.id.as_str(), order)).collect();
        let mut effects = Self { orders, references: HashMap::new(), payments: HashMap::new() };
        for order in &facts.ledger.orders {
            effects.references.entry(&order.customer).or_default().push(&order.id);
        }
        for call in facts.payments.iter().filter(|call| call.effect) {
            let operation = call.body["operation"].as_str().unwrap_or_default();
            effects.payments.entry(operation).or_default().push(call);
        }
        effects
    }

    fn case(&self, id: &'a str, told: &'a Told, facts: &'a Facts) -> Case<'a> {
        let accepted = facts.memory.accepted.get(id);
        let effects = match told.operation["kind"].as_str() {
            Some("order.place") => Some(usize::from(self.orders.contains_key(id))),
            Some("payment.charge") => Some(self.payments.get(id).map_or(0, Vec::len)),
            _ => None,
        };
        Case { id, operation: &told.operation, result: told.result.as_ref(), accepted, effects }
    }

    /// Whether the result is what was done; nothing to compare for what has not succeeded or whose request is unknown.
    fn agrees(&self, case: &Case<'_>) -> bool {
        let (Some(result), Some(accepted)) = (case.result, case.accepted) else { return true };
        match case.operation["kind"].as_str() {
            Some("order.place") => self.orders.get(case.id).is_none_or(|order| {
                order.customer == accepted.reference
                    && result["orderId"] == case.id
                    && result["totalCents"] == order.total_cents
            }),
            Some("payment.charge") => self.payments.get(case.id).into_iter().flatten().all(|call| {
                call.body["customer"] == accepted.reference
                    && call.body["amountCents"] == accepted.body["amountCents"]
                    && result["answer"] == call.answer
            }),
            _ => *result == accepted.body,
        }
    }
}

/// Accepted, and without an outcome or unknown by now.
fn lost(facts: &Facts) -> Vec<String> {
    let status = |id: &str| facts.told.get(id).and_then(|told| told.operation["status"].as_str());
    let accepted = facts.memory.accepted.keys().filter(|id| !status(id).is_some_and(is_terminal));
    let mut lost: Vec<_> = accepted.map(|id| format!("{id}: {:?}", status(id))).collect();
    let orphans = facts.told.iter().filter(|(id, _)| !facts.memory.accepted.contains_key(*id));
    lost.extend(
        orphans
            .filter(|(id, _)| !status(id).is_some_and(is_terminal))
            .map(|(id, _)| format!("{id}, whose 202 was lost, is open")),
    );
    lost
}

fn double_effects(facts: &Facts, effects: &Effects<'_>) -> Vec<String> {
    let orders =
        effects.references.iter().filter(|(_, ids)| ids.len() > 1).map(|(by, ids)| format!("{by}: orders {ids:?}"));
    let payments = effects.payments.iter().filter(|(_, calls)| calls.len() > 1);
    let payments = payments.map(|(by, calls)| format!("{by}: payments {calls:?}"));
    let mut double: Vec<_> = orders.chain(payments).collect();
    // An effect of a request that nobody ever made, or that the requestor does not know.
    let strangers = facts.ledger.orders.iter().filter(|order| !facts.told.contains_key(&order.id));
    double.extend(strangers.map(|order| format!("{order:?} belongs to no operation")));
    double
}

/// An outcome that was seen, or is in the event log, and was not the last word, unless it was driven again on demand.
fn flips(facts: &Facts) -> Vec<String> {
    let mut flips = Vec::new();
    for (id, accepted) in &facts.memory.accepted {
        let now = facts.told.get(id).and_then(|told| told.operation["status"].as_str()).unwrap_or_default();
        let mut seen: Vec<_> = accepted.seen.iter().map(String::as_str).collect();
        seen.push(now);
        seen.dedup();
        let changed = seen.windows(2).filter(|pair| is_terminal(pair[0])).collect::<Vec<_>>();
        if changed.len() > accepted.retries || changed.iter().any(|pair| pair[0] != "Failed") {
            flips.push(format!("{id} {}: callers saw {seen:?}", accepted.reference));
        }
    }
    for (id, events) in &facts.events {
        let ends = events.iter().filter(|event| is_end(&event.sort)).count();
        let retries = events.iter().filter(|event| event.sort == RETRIED).count();
        if ends > retries + 1 {
            flips.push(format!("{id}: its event log has {ends} ends: {events:?}"));
        }
    }
    flips
}

/// The event that drives a failed operation again.
const RETRIED: &str = "retried";

/// Whether an event ends its operation.
fn is_end(sort: &str) -> bool {
    matches!(sort, "succeeded" | "failed" | "canceled")
}

fn gaps(facts: &Facts) -> Vec<String> {
    let gapless = |events: &[Event]| events.iter().zip(1..).all(|(event, number)| event.number == number);
    let gaps = facts.events.iter().filter(|(_, events)| !gapless(events));
    gaps.map(|(id, events)| format!("{id}: {events:?}")).collect()
}

fn stock(ledger: &Ledger) -> Vec<String> {
    let taken = STOCK - ledger.stock;
    let differs = taken != ledger.ordered;
    differs.then(|| format!("{taken} mice were taken, and {} ordered", ledger.ordered)).into_iter().collect()
}
