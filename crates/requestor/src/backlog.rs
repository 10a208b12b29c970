//! The gauge `arr_backlog`: what is still to be done of each kind, by which providers are scaled.

use crate::kinds::Kinds;
use crate::store::Store;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often it is counted; autoscalers look every 15 to 30 s.
const EVERY: Duration = Duration::from_secs(5);
/// Counting takes at most this part of the time, however many are open.
const PART: u32 = 50;

/// Counts until `shutdown`. What waits in a queue, what a provider holds and what it has acknowledged early are counted
/// alike, since an operation is open until its outcome is stored: so a provider is never scaled away from its work. All
/// instances on one store count the same.
pub(crate) async fn run(store: &Store, kinds: &Kinds, shutdown: &CancellationToken) {
    let mut shown = BTreeMap::new();
    loop {
        // An autoscaler takes a kind that is not shown for an error, and 0 for what it is.
        shown.extend(kinds.names().into_iter().map(|kind| (kind, 0)));
        let started = tokio::time::Instant::now();
        match store.backlog().await {
            Ok(backlog) => show(&mut shown, backlog),
            Err(error) => tracing::debug!(%error, "cannot count the backlog now"),
        }
        let pause = EVERY.max(started.elapsed() * PART);
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// A kind of which none is open any more is shown as 0, not left as it was.
fn show(shown: &mut BTreeMap<String, u64>, backlog: BTreeMap<String, u64>) {
    for (kind, count) in shown.iter_mut() {
        *count = backlog.get(kind).copied().unwrap_or_default();
    }
    shown.extend(backlog);
    for (kind, count) in shown {
        metrics::gauge!("arr_backlog", "kind" => kind.clone()).set(*count as f64);
    }
}
