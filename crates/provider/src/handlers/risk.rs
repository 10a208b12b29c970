//! `risk.analyze`: the model runs on all cores, beside the runtime.

use super::risk_model::{self, RiskError};
use crate::context::Context;
use crate::handler::Failure;
use shared::problem::Problem;
use shared::schema::risk::{RiskReport, RiskRequest};

pub(crate) async fn analyze(request: RiskRequest, context: Context) -> Result<RiskReport, Failure> {
    let simulate = move || {
        let progress = |percent: f64| context.progress(percent, format!("simulating {} paths", request.paths));
        risk_model::analyze(&request, &progress, &|| context.cancelled().is_cancelled())
    };
    match tokio::task::spawn_blocking(simulate).await {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(RiskError::Invalid { pointer, detail })) => Err(Failure::invalid(&pointer, detail)),
        // Nobody waits for this any more, or the provider stops and the request will be delivered again.
        Ok(Err(RiskError::Stopped)) => {
            Err(Failure::Transient(Problem::new("stopped", 503, "Stopped", "the analysis was stopped before its end")))
        }
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
