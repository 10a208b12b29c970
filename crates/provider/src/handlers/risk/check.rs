//! What a request must be. The JSON Schema says the same, but it cannot compare lengths, and not every caller
//! validates with it.

use super::factor::ROUNDING;
use super::model::RiskError;
use shared::schema::risk::{
    MAX_ASSETS, MAX_CONFIDENCE, MAX_COVARIANCE, MAX_HORIZON_DAYS, MAX_MEAN, MAX_PATHS, MAX_VALUE, MAX_WEIGHT,
    MIN_CONFIDENCE, MIN_PATHS, RiskRequest,
};

pub(super) fn check(request: &RiskRequest) -> Result<(), RiskError> {
    let assets = request.weights.len();
    if !(1..=MAX_ASSETS).contains(&assets) {
        return Err(invalid("/weights", format!("must have 1 to {MAX_ASSETS} items, not {assets}")));
    }
    check_items("/weights", &request.weights, assets, MAX_WEIGHT)?;
    check_items("/means", &request.means, assets, MAX_MEAN)?;
    check_scalars(request)?;
    check_covariance(&request.covariance, assets)
}

fn check_scalars(request: &RiskRequest) -> Result<(), RiskError> {
    let (days, paths) = (request.horizon_days, request.paths);
    let (confidence, value) = (request.confidence, request.value);
    if !(1..=MAX_HORIZON_DAYS).contains(&days) {
        return Err(invalid("/horizonDays", format!("must be from 1 to {MAX_HORIZON_DAYS}, not {days}")));
    }
    if !(MIN_PATHS..=MAX_PATHS).contains(&paths) {
        return Err(invalid("/paths", format!("must be from {MIN_PATHS} to {MAX_PATHS}, not {paths}")));
    }
    if !(MIN_CONFIDENCE..=MAX_CONFIDENCE).contains(&confidence) {
        let detail = format!("must be from {MIN_CONFIDENCE} to {MAX_CONFIDENCE}, not {confidence}");
        return Err(invalid("/confidence", detail));
    }
    if !(value > 0.0 && value <= MAX_VALUE) {
        return Err(invalid("/value", format!("must be above 0 and at most {MAX_VALUE}, not {value}")));
    }
    Ok(())
}

fn check_length(pointer: &str, length: usize, assets: usize) -> Result<(), RiskError> {
    if length == assets {
        return Ok(());
    }
    Err(invalid(pointer, format!("must have {assets} items, one per weight, not {length}")))
}

fn check_items(pointer: &str, items: &[f64], assets: usize, limit: f64) -> Result<(), RiskError> {
    check_length(pointer, items.len(), assets)?;
    // Asking whether it lies inside, not outside, refuses NaN as well.
    match items.iter().position(|item| !(-limit..=limit).contains(item)) {
        Some(index) => Err(invalid(format!("{pointer}/{index}"), format!("must be from -{limit} to {limit}"))),
        None => Ok(()),
    }
}

fn check_covariance(covariance: &[Vec<f64>], assets: usize) -> Result<(), RiskError> {
    check_length("/covariance", covariance.len(), assets)?;
    for (i, row) in covariance.iter().enumerate() {
        check_items(&format!("/covariance/{i}"), row, assets, MAX_COVARIANCE)?;
    }
    for (i, row) in covariance.iter().enumerate() {
        if row[i] < 0.0 {
            return Err(invalid(format!("/covariance/{i}/{i}"), "a variance must not be negative"));
        }
    }
    check_symmetry(covariance)
}

fn check_symmetry(covariance: &[Vec<f64>]) -> Result<(), RiskError> {
    for (i, row) in covariance.iter().enumerate() {
        for (j, entry) in row.iter().enumerate().take(i) {
            let scale = (row[i] * covariance[j][j]).sqrt();
            // The second term allows rounding of entries far too large for their variances; `factor` refuses those.
            if (entry - covariance[j][i]).abs() > ROUNDING * scale.max(entry.abs()) {
                let detail = format!("must equal /covariance/{j}/{i}, as covariances are symmetric");
                return Err(invalid(format!("/covariance/{i}/{j}"), detail));
            }
        }
    }
    Ok(())
}

pub(super) fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> RiskError {
    RiskError::Invalid { pointer: pointer.into(), detail: detail.into() }
}
