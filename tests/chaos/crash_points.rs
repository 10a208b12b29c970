//! Each moment at which a crash could do harm, and a hunt that crashes there again and again.

use crate::kept::{Kept, Point};
use crate::load::Load;
use crate::stack::{Side, Stack};
use std::collections::BTreeMap;

/// The provider's. Most strike at one in five, so that what was begun before gets done: a request that meets every
/// crash is given up as poison.
const PROVIDER: [Point; 8] = [
    ("provider.received", "20%return"),
    ("provider.claimed", "20%return"),
    ("provider.intent", "20%return"),
    ("provider.effect", "20%return"),
    ("provider.done", "20%return"),
    ("provider.replied", "20%return"),
    ("provider.tombstone", "return"),
    ("provider.acked-early", "return"),
];

/// The requestor's.
const REQUESTOR: [Point; 7] = [
    ("requestor.create", "20%return"),
    ("requestor.created", "20%return"),
    ("requestor.accepted", "20%return"),
    ("requestor.published", "20%return"),
    ("requestor.received", "20%return"),
    ("requestor.stored", "20%return"),
    ("requestor.swept", "return"),
];

/// The crash points of a service.
pub(crate) fn of(side: Side) -> &'static [Point] {
    match side {
        Side::Requestor => &REQUESTOR,
        Side::Provider => &PROVIDER,
    }
}

/// Ends both services at each of their crash points `times` times, under load.
pub(crate) async fn hunt(stack: &Stack, load: &Load, times: u64, progress: impl Fn(u64)) {
    let services = [Side::Requestor, Side::Provider].map(|side| (side, stack.service(side)));
    for (side, service) in services {
        service.hunt(of(side), times);
    }
    while services.iter().any(|(_, service)| service.hunts()) {
        load.one().await;
        progress(
            services
                .iter()
                .map(|(side, service)| hits(*side, service).values().map(|hits| hits.min(&times)).sum::<u64>())
                .sum(),
        );
    }
}

/// How often each crash point of a service was hit.
pub(crate) fn hits(side: Side, service: &Kept) -> BTreeMap<&'static str, u64> {
    let record = service.record();
    of(side).iter().map(|(name, _)| (*name, record.hits.get(*name).copied().unwrap_or_default())).collect()
}
