//! `risk.analyze`: what a portfolio can lose over a horizon, by Monte Carlo simulation.
//!
//! The limits are constants, so that the JSON Schema and the provider's own checks cannot drift apart.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kind under which these requests travel.
pub const KIND: &str = "risk.analyze";

/// The most assets in one portfolio.
pub const MAX_ASSETS: usize = 64;
/// The largest absolute weight of an asset: 100 times the portfolio's value.
pub const MAX_WEIGHT: f64 = 100.0;
/// The largest absolute mean return per day: 1 is 100 %.
pub const MAX_MEAN: f64 = 1.0;
/// The largest absolute covariance of two daily returns: 1 is a standard deviation of 100 % per day.
pub const MAX_COVARIANCE: f64 = 1.0;
/// The longest horizon in trading days: ten years of 252 days.
pub const MAX_HORIZON_DAYS: u32 = 2_520;
/// The fewest simulated paths.
pub const MIN_PATHS: u64 = 1_000;
/// The most simulated paths; at 8 bytes each they need 160 MB.
pub const MAX_PATHS: u64 = 20_000_000;
/// The lowest confidence level.
pub const MIN_CONFIDENCE: f64 = 0.5;
/// The highest confidence level.
pub const MAX_CONFIDENCE: f64 = 0.9999;
/// The largest portfolio value, in the caller's currency.
pub const MAX_VALUE: f64 = 1e15;

/// A portfolio with fixed weights and normally distributed daily returns, and how to simulate its losses.
///
/// `weights`, `means` and `covariance` list the same assets in the same order. The time needed grows with
/// paths × horizonDays × assets; the memory is 8 bytes per path, so at most 160 MB.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RiskRequest {
    /// The share of the portfolio's value in each asset, for 1 to 64 assets; negative is a short position, at most
    /// 100 in absolute value. What the weights leave of 1 is cash that earns nothing.
    #[schemars(length(min = 1, max = MAX_ASSETS), inner(range(min = -MAX_WEIGHT, max = MAX_WEIGHT)))]
    pub weights: Vec<f64>,
    /// Mean arithmetic return per day of each asset, as a fraction (0.001 is 0.1 % a day), from -1 to 1; as many as
    /// there are weights.
    #[schemars(length(min = 1, max = MAX_ASSETS), inner(range(min = -MAX_MEAN, max = MAX_MEAN)))]
    pub means: Vec<f64>,
    /// Covariance matrix of the daily returns, in fractions squared, row by row; entries from -1 to 1, with as many
    /// rows and columns as there are weights. It must be symmetric and positive semidefinite, up to rounding: give
    /// it at full precision.
    #[schemars(
        length(min = 1, max = MAX_ASSETS),
        inner(
            length(min = 1, max = MAX_ASSETS),
            inner(range(min = -MAX_COVARIANCE, max = MAX_COVARIANCE))
        )
    )]
    pub covariance: Vec<Vec<f64>>,
    /// How far to look ahead, in trading days, from 1 to 2520. Daily returns are independent and are summed, not
    /// compounded.
    #[schemars(range(min = 1, max = MAX_HORIZON_DAYS))]
    pub horizon_days: u32,
    /// How many paths to simulate, from 1000 to 20000000. The estimates are rough unless
    /// (1 - confidence) × paths, the number of paths in the tail, is at least about 100.
    #[schemars(range(min = MIN_PATHS, max = MAX_PATHS))]
    pub paths: u64,
    /// Seed of the random numbers, any unsigned 64-bit integer: the same request with the same seed gives the same
    /// report. Above 2^53 many JSON libraries round it.
    #[schemars(range(max = u64::MAX))]
    pub seed: u64,
    /// Confidence level of both risk measures, from 0.5 to 0.9999; 0.99 unless given.
    #[serde(default = "default_confidence")]
    #[schemars(range(min = MIN_CONFIDENCE, max = MAX_CONFIDENCE))]
    pub confidence: f64,
    /// Value of the portfolio in the caller's currency, above 0 and at most 1e15; 1 unless given, which makes every
    /// amount in the report a fraction of the portfolio.
    #[serde(default = "default_value")]
    #[schemars(range(max = MAX_VALUE), extend("exclusiveMinimum" = 0))]
    pub value: f64,
}

fn default_confidence() -> f64 {
    0.99
}

fn default_value() -> f64 {
    1.0
}

/// The simulated and the exact risk of the portfolio over the horizon.
///
/// All amounts are losses in the request's currency: a positive amount is a loss, a negative one a profit.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RiskReport {
    /// Simulated value at risk: the smallest simulated loss that at least the share `confidence` of the paths does
    /// not exceed.
    pub value_at_risk: f64,
    /// Simulated expected shortfall: the mean loss of the worst share 1 - `confidence` of the paths.
    pub expected_shortfall: f64,
    /// Mean of the simulated losses over the horizon; negative when the portfolio is expected to gain.
    pub mean: f64,
    /// Sample standard deviation of the simulated losses over the horizon (divisor paths - 1); never negative.
    pub standard_deviation: f64,
    /// The same two measures computed exactly, to compare the simulation with.
    pub closed_form: ClosedForm,
    /// Asymptotic standard error of `valueAtRisk`: √(c (1 - c) / paths) / f, where c is the confidence and f the
    /// exact density of the loss at its exact c-quantile. It understates the error when fewer than about 100 paths
    /// lie in the tail.
    #[schemars(range(min = 0))]
    pub standard_error: f64,
    /// How many paths were simulated.
    pub paths: u64,
    /// Confidence level of both risk measures.
    pub confidence: f64,
    /// The horizon in trading days.
    pub horizon_days: u32,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Exact risk measures: a sum of independent normal returns is normal, so its quantile and tail mean are known.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClosedForm {
    /// Exact value at risk, in the request's currency.
    pub value_at_risk: f64,
    /// Exact expected shortfall, in the request's currency.
    pub expected_shortfall: f64,
}

#[cfg(test)]
mod tests {
    use schemars::schema_for;
    use serde_json::{Value, json};

    use super::*;

    fn schema_value(pointer: &str) -> Value {
        schema_for!(RiskRequest).as_value().pointer(pointer).cloned().unwrap_or_default()
    }

    #[test]
    fn schema_states_the_limits() {
        for (pointer, limit) in [
            ("/properties/weights/minItems", 1.0),
            ("/properties/weights/maxItems", 64.0),
            ("/properties/weights/items/minimum", -100.0),
            ("/properties/means/items/maximum", 1.0),
            ("/properties/covariance/maxItems", 64.0),
            ("/properties/covariance/items/maxItems", 64.0),
            ("/properties/covariance/items/items/maximum", 1.0),
            ("/properties/horizonDays/minimum", 1.0),
            ("/properties/horizonDays/maximum", 2_520.0),
            ("/properties/paths/minimum", 1_000.0),
            ("/properties/paths/maximum", 20_000_000.0),
            ("/properties/confidence/minimum", 0.5),
            ("/properties/confidence/maximum", 0.9999),
            ("/properties/confidence/default", 0.99),
            ("/properties/value/exclusiveMinimum", 0.0),
            ("/properties/value/maximum", 1e15),
        ] {
            assert_eq!(schema_value(pointer).as_f64(), Some(limit), "{pointer}");
        }
        assert_eq!(schema_value("/additionalProperties"), json!(false));
        assert_eq!(
            schema_value("/required"),
            json!(["weights", "means", "covariance", "horizonDays", "paths", "seed"])
        );
    }

    #[test]
    fn confidence_and_value_have_defaults() {
        let text = r#"{"weights":[1],"means":[0],"covariance":[[0.01]],"horizonDays":1,"paths":1000,"seed":7}"#;
        let request: RiskRequest = serde_json::from_str(text).unwrap();
        assert_eq!((request.confidence, request.value), (0.99, 1.0));
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = r#"{"valueAtRisk":1.0,"expectedShortfall":2.0,"more":3.0}"#;
        assert!(serde_json::from_str::<ClosedForm>(text).is_err());
    }
}
