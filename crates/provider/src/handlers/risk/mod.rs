//! `risk.analyze`: the model runs on all cores, beside the runtime.

mod check;
mod factor;
mod model;
#[cfg(test)]
mod tests;

use crate::context::Context;
use crate::handler::Failure;
use model::RiskError;
use shared::schema::risk::{RiskReport, RiskRequest};
use tokio::sync::Semaphore;

/// Each analysis takes all cores and up to 160 MB, so more at once would only be slower and larger.
static RUNNING: Semaphore = Semaphore::const_new(2);

pub(crate) async fn analyze(request: RiskRequest, context: Context) -> Result<RiskReport, Failure> {
    let running = RUNNING.acquire().await;
    let simulate = move || {
        // Held until the computation ends, even if nobody waits for it any more.
        let _running = running;
        let progress = |percent: f64| context.progress(percent, format!("simulating {} paths", request.paths));
        model::analyze(&request, &progress, &|| context.cancelled().is_cancelled())
    };
    match tokio::task::spawn_blocking(simulate).await {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(RiskError::Invalid { pointer, detail })) => Err(Failure::invalid(&pointer, detail)),
        // Nobody waits for this any more, or the provider stops and the request will be delivered again.
        Ok(Err(RiskError::Stopped)) => Err(Failure::stopped("the analysis was stopped before its end")),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
