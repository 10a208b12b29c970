//! The computation of `risk.analyze`: value at risk and expected shortfall by Monte Carlo, and in closed form.
//!
//! The model is the variance-covariance one: the daily returns r are multivariate normal and independent from day to
//! day, the weights w stay fixed, and the portfolio's return is the sum of w·r over the days. If Σ = V Vᵀ, then
//! r = μ + V z with independent standard normals z, so that w·r = w·μ + (wᵀV) z. Only the vector wᵀV enters the loss,
//! so it is computed once and each day draws z.
//!
//! Memory: 8 bytes per path, so 160 MB at the limit of 20 million paths; nothing is allocated per path or per day.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use statrs::distribution::{Continuous, ContinuousCDF, Normal};

use super::check::{check, invalid};
use super::factor::{correlations, factor};
use shared::schema::risk::{ClosedForm, RiskReport, RiskRequest};

/// Random numbers per chunk: about a millisecond in a release build, which bounds how late a stop is seen.
const CHUNK_DRAWS: usize = 1 << 17;
/// The most paths in a chunk, so that short horizons still spread over all threads.
const MAX_CHUNK_PATHS: usize = 8_192;
/// Progress is passed on when it has grown by this many percent, as the chunks may number millions.
const PROGRESS_STEP: f64 = 0.1;

/// Why there is no report.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum RiskError {
    /// The request makes no sense, and repeating it will not help.
    #[error("{pointer}: {detail}")]
    Invalid {
        /// JSON pointer to the offending part of the request.
        pointer: String,
        /// What is wrong with it.
        detail: String,
    },
    /// `stopped` returned true before the simulation was complete.
    #[error("stopped before the simulation was complete")]
    Stopped,
}

/// Simulates the portfolio's loss on all of the current rayon pool's threads and measures its tail.
///
/// The same request gives bit-identical reports on any number of threads, within one build. `progress` gets percents
/// that never fall and end with exactly one 100, and may be called from several threads, though not at once.
/// `stopped` is asked once a chunk, that is about once a millisecond per thread.
///
/// # Errors
///
/// [`RiskError::Invalid`] if the request breaks a limit, its dimensions disagree or its covariance matrix is not
/// symmetric and positive semidefinite; [`RiskError::Stopped`] if `stopped` returned true.
pub(super) fn analyze(
    request: &RiskRequest,
    progress: &(dyn Fn(f64) + Sync),
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<RiskReport, RiskError> {
    check(request)?;
    let model = Model::new(request)?;
    let mut losses = vec![0.0; path_count(request)?];
    model.simulate(&mut losses, progress, stopped)?;
    let report = model.report(request, &mut losses);
    progress(100.0);
    Ok(report)
}

fn path_count(request: &RiskRequest) -> Result<usize, RiskError> {
    usize::try_from(request.paths).map_err(|_| invalid("/paths", "more than this machine can address"))
}

/// The horizon's loss, in the caller's currency.
pub(super) struct Model {
    /// Mean loss over the horizon.
    pub(super) mean: f64,
    /// Standard deviation of the loss over the horizon, from Σ itself: the factors' errors stay out of it.
    pub(super) deviation: f64,
    /// Loss per standard normal draw of each factor and day.
    pub(super) exposures: Vec<f64>,
    pub(super) days: u32,
    pub(super) chunk_paths: usize,
    pub(super) seed: u64,
}

impl Model {
    pub(super) fn new(request: &RiskRequest) -> Result<Self, RiskError> {
        let days = f64::from(request.horizon_days);
        // From zero, as a plain minus would report a loss of -0.
        let mean = 0.0 - request.value * days * dot(&request.weights, &request.means);
        Ok(Self {
            mean,
            deviation: request.value * (days * daily_variance(request)).sqrt(),
            exposures: exposures(request)?,
            days: request.horizon_days,
            chunk_paths: chunk_paths(request),
            seed: request.seed,
        })
    }

    /// Fills `losses`, each chunk from its own random stream and into its own place: threads change nothing.
    pub(super) fn simulate(
        &self,
        losses: &mut [f64],
        progress: &(dyn Fn(f64) + Sync),
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), RiskError> {
        let progress = Progress::new(losses.len().div_ceil(self.chunk_paths), progress);
        let origin = ChaCha8Rng::seed_from_u64(self.seed);
        losses.par_chunks_mut(self.chunk_paths).enumerate().try_for_each(|(index, chunk)| {
            if stopped() {
                return Err(RiskError::Stopped);
            }
            let mut random = origin.clone();
            random.set_stream(index as u64);
            chunk.fill_with(|| self.loss(&mut random));
            progress.chunk_done();
            Ok(())
        })
    }

    fn loss(&self, random: &mut ChaCha8Rng) -> f64 {
        let mut loss = self.mean;
        for _ in 0..self.days {
            for exposure in &self.exposures {
                let draw: f64 = StandardNormal.sample(random);
                loss += exposure * draw;
            }
        }
        loss
    }

    pub(super) fn report(&self, request: &RiskRequest, losses: &mut [f64]) -> RiskReport {
        let (mean, standard_deviation) = moments(losses);
        let (value_at_risk, expected_shortfall) = tail(losses, request.confidence);
        RiskReport {
            value_at_risk,
            expected_shortfall,
            mean,
            standard_deviation,
            closed_form: self.closed_form(request.confidence),
            standard_error: self.standard_error(request.confidence, losses.len()),
            paths: request.paths,
            confidence: request.confidence,
            horizon_days: request.horizon_days,
            seed: request.seed,
        }
    }

    /// With z the normal quantile and φ the density, μ + σ z and μ + σ φ(z) / (1 - c).
    fn closed_form(&self, confidence: f64) -> ClosedForm {
        // See McNeil, Frey and Embrechts, "Quantitative Risk Management", on the measures of a normal loss.
        let (quantile, density) = standard_normal(confidence);
        ClosedForm {
            value_at_risk: self.mean + self.deviation * quantile,
            expected_shortfall: self.mean + self.deviation * density / (1.0 - confidence),
        }
    }

    /// √(c (1 - c) / n) / f(q), the asymptotic standard deviation of a sample quantile: see Serfling, "Approximation
    /// Theorems of Mathematical Statistics", or Glasserman, "Monte Carlo Methods in Financial Engineering". The
    /// density f is the exact one, as estimating it from the sample would only add noise.
    fn standard_error(&self, confidence: f64, paths: usize) -> f64 {
        let (_, density) = standard_normal(confidence);
        (confidence * (1.0 - confidence) / paths as f64).sqrt() * self.deviation / density
    }
}

/// The standard normal's quantile at `confidence` and its density there.
fn standard_normal(confidence: f64) -> (f64, f64) {
    let normal = Normal::standard();
    let quantile = normal.inverse_cdf(confidence);
    (quantile, normal.pdf(quantile))
}

/// wᵀΣw; rounding may take that of a perfect hedge below zero.
fn daily_variance(request: &RiskRequest) -> f64 {
    let rows = request.covariance.iter().map(|row| dot(row, &request.weights));
    rows.zip(&request.weights).map(|(row, weight)| row * weight).sum::<f64>().max(0.0)
}

pub(super) fn exposures(request: &RiskRequest) -> Result<Vec<f64>, RiskError> {
    let covariance = &request.covariance;
    let deviations: Vec<f64> = covariance.iter().enumerate().map(|(i, row)| row[i].sqrt()).collect();
    let factors = factor(correlations(covariance, &deviations))
        .ok_or_else(|| invalid("/covariance", "must be positive semidefinite"))?;
    let weighted = request.weights.iter().zip(&deviations);
    let scales: Vec<f64> = weighted.map(|(weight, deviation)| -request.value * weight * deviation).collect();
    Ok(factors.iter().map(|factor| dot(factor, &scales)).collect())
}

/// From the request alone, as the chunks decide which random stream serves which path.
pub(super) fn chunk_paths(request: &RiskRequest) -> usize {
    let draws = (request.horizon_days as usize).saturating_mul(request.weights.len());
    (CHUNK_DRAWS / draws.max(1)).clamp(1, MAX_CHUNK_PATHS)
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// Mean and sample standard deviation, in two passes, as the mean may dwarf the deviation.
pub(super) fn moments(losses: &[f64]) -> (f64, f64) {
    let count = losses.len() as f64;
    let mean = blocked_sum(losses, |loss| loss) / count;
    let squares = blocked_sum(losses, |loss| (loss - mean).powi(2));
    (mean, (squares / (count - 1.0)).sqrt())
}

/// One thread adds blocks in order: a fixed order gives fixed bits, and short sums lose few of them.
fn blocked_sum(losses: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    let sum = |block: &[f64]| block.iter().fold(0.0, |sum, loss| sum + term(*loss));
    losses.chunks(MAX_CHUNK_PATHS).fold(0.0, |total, block| total + sum(block))
}

/// Value at risk and expected shortfall of the empirical distribution.
///
/// The first is the loss of rank ⌈n c⌉. The second is the mean of the worst n (1 - c) losses, where the loss at the
/// quantile counts with the fraction that makes up that number: see Acerbi and Tasche, "On the coherence of expected
/// shortfall" (2002). Selection reorders the losses, but depends on nothing but them.
pub(super) fn tail(losses: &mut [f64], confidence: f64) -> (f64, f64) {
    let count = losses.len() as f64;
    let below = count * confidence;
    let rank = below.ceil().clamp(1.0, count);
    let (_, quantile, worse) = losses.select_nth_unstable_by(rank as usize - 1, f64::total_cmp);
    let quantile = *quantile;
    // Added as excesses, so that equal losses give exactly their own value.
    let excess = blocked_sum(worse, |loss| loss - quantile) / (count - below);
    (quantile, quantile + excess)
}

/// Counts finished chunks and passes the share on without ever falling back or making a thread wait.
struct Progress<'a> {
    chunks: usize,
    done: AtomicUsize,
    /// The percentage passed on last; holding the lock also makes the calls take turns.
    reported: Mutex<f64>,
    report: &'a (dyn Fn(f64) + Sync),
}

impl<'a> Progress<'a> {
    fn new(chunks: usize, report: &'a (dyn Fn(f64) + Sync)) -> Self {
        Self { chunks, done: AtomicUsize::new(0), reported: Mutex::new(0.0), report }
    }

    fn chunk_done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
        // Whoever holds the lock is reporting right now; the next chunk makes up for this one.
        let Ok(mut reported) = self.reported.try_lock() else { return };
        // Read under the lock, so that no later reader sees less. 100 is for the complete report.
        let percent = 100.0 * self.done.load(Ordering::Relaxed) as f64 / self.chunks as f64;
        if percent < 100.0 && percent >= *reported + PROGRESS_STEP {
            *reported = percent;
            (self.report)(percent);
        }
    }
}
