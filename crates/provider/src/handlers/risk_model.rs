//! The computation of `risk.analyze`: value at risk and expected shortfall by Monte Carlo, and in closed form.
//!
//! The model is the variance-covariance one: the daily returns r are multivariate normal and independent from day to
//! day, the weights w stay fixed, and the portfolio's return is the sum of w·r over the days. If Σ = V Vᵀ, then r = μ + V z with independent standard normals z, so
//! that w·r = w·μ + (wᵀV) z. Only the vector wᵀV enters the loss, so it is computed once and each day draws z.
//!
//! Memory: 8 bytes per path, so 160 MB at the limit of 20 million paths; nothing is allocated per path or per day.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use statrs::distribution::{Continuous, ContinuousCDF, Normal};

use shared::schema::risk::{
    ClosedForm, MAX_ASSETS, MAX_CONFIDENCE, MAX_COVARIANCE, MAX_HORIZON_DAYS, MAX_MEAN, MAX_PATHS, MAX_VALUE,
    MAX_WEIGHT, MIN_CONFIDENCE, MIN_PATHS, RiskReport, RiskRequest,
};

/// Random numbers per chunk: about a millisecond in a release build, which bounds how late a stop is seen.
const CHUNK_DRAWS: usize = 1 << 17;
/// The most paths in a chunk, so that short horizons still spread over all threads.
const MAX_CHUNK_PATHS: usize = 8_192;
/// Progress is passed on when it has grown by this many percent, as the chunks may number millions.
const PROGRESS_STEP: f64 = 0.1;
/// Correlations differing by less than this are equal, and a factor explaining less than this is rounding.
const ROUNDING: f64 = 1e-10;
/// What factoring may leave of a semidefinite correlation matrix; more means that it is indefinite.
const RESIDUE: f64 = 10.0 * ROUNDING;

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

fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> RiskError {
    RiskError::Invalid { pointer: pointer.into(), detail: detail.into() }
}

// --- Checks: the JSON Schema says the same, but it cannot compare lengths, and not every caller validates with it. ---

fn check(request: &RiskRequest) -> Result<(), RiskError> {
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

// --- The factors of the covariance matrix ---

/// The correlations, so that the tolerances hold for quiet and for lively assets alike.
///
/// Averaging both halves removes what asymmetry the check let through. An asset without variance correlates with
/// nothing; if its covariances say otherwise, the matrix is indefinite, and the entry becomes infinite.
fn correlations(covariance: &[Vec<f64>], deviations: &[f64]) -> Vec<Vec<f64>> {
    let entry = |i: usize, j: usize| {
        let covariance = 0.5 * (covariance[i][j] + covariance[j][i]);
        if covariance == 0.0 { 0.0 } else { covariance / deviations[i] / deviations[j] }
    };
    let assets = deviations.len();
    (0..assets).map(|i| (0..assets).map(|j| entry(i, j)).collect()).collect()
}

/// Vectors v with Σ v vᵀ = `matrix`, as many as its rank, or nothing if it is indefinite.
///
/// This is Cholesky's decomposition with complete pivoting, which is stable for semidefinite matrices as well: see
/// Higham, "Analysis of the Cholesky decomposition of a semi-definite matrix" (1990), and LAPACK's `dpstrf`. No rows
/// are exchanged, as a permuted triangle does as well as a triangle.
fn factor(mut matrix: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let mut factors = Vec::new();
    for _ in 0..matrix.len() {
        let Some((pivot, variance)) = largest_diagonal(&matrix) else { break };
        if variance <= ROUNDING {
            break;
        }
        let factor: Vec<f64> = matrix.iter().map(|row| row[pivot] / variance.sqrt()).collect();
        subtract_square(&mut matrix, &factor);
        factors.push(factor);
    }
    // A semidefinite matrix has no entry larger than its largest diagonal one, so no more than rounding is left.
    let semidefinite = matrix.iter().flatten().all(|entry| entry.abs() <= RESIDUE);
    semidefinite.then_some(factors)
}

fn largest_diagonal(matrix: &[Vec<f64>]) -> Option<(usize, f64)> {
    let diagonal = matrix.iter().enumerate().map(|(i, row)| (i, row[i]));
    diagonal.max_by(|left, right| left.1.total_cmp(&right.1))
}

fn subtract_square(matrix: &mut [Vec<f64>], factor: &[f64]) {
    for (row, left) in matrix.iter_mut().zip(factor) {
        for (entry, right) in row.iter_mut().zip(factor) {
            *entry -= left * right;
        }
    }
}

// --- The loss, simulated and exact ---

/// The horizon's loss, in the caller's currency.
struct Model {
    /// Mean loss over the horizon.
    mean: f64,
    /// Standard deviation of the loss over the horizon, from Σ itself: the factors' errors stay out of it.
    deviation: f64,
    /// Loss per standard normal draw of each factor and day.
    exposures: Vec<f64>,
    days: u32,
    chunk_paths: usize,
    seed: u64,
}

impl Model {
    fn new(request: &RiskRequest) -> Result<Self, RiskError> {
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
    fn simulate(
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

    fn report(&self, request: &RiskRequest, losses: &mut [f64]) -> RiskReport {
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

fn exposures(request: &RiskRequest) -> Result<Vec<f64>, RiskError> {
    let covariance = &request.covariance;
    let deviations: Vec<f64> = covariance.iter().enumerate().map(|(i, row)| row[i].sqrt()).collect();
    let factors = factor(correlations(covariance, &deviations))
        .ok_or_else(|| invalid("/covariance", "must be positive semidefinite"))?;
    let weighted = request.weights.iter().zip(&deviations);
    let scales: Vec<f64> = weighted.map(|(weight, deviation)| -request.value * weight * deviation).collect();
    Ok(factors.iter().map(|factor| dot(factor, &scales)).collect())
}

/// From the request alone, as the chunks decide which random stream serves which path.
fn chunk_paths(request: &RiskRequest) -> usize {
    let draws = (request.horizon_days as usize).saturating_mul(request.weights.len());
    (CHUNK_DRAWS / draws.max(1)).clamp(1, MAX_CHUNK_PATHS)
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

// --- Statistics of the simulated losses ---

/// Mean and sample standard deviation, in two passes, as the mean may dwarf the deviation.
fn moments(losses: &[f64]) -> (f64, f64) {
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
fn tail(losses: &mut [f64], confidence: f64) -> (f64, f64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RiskRequest {
        RiskRequest {
            weights: vec![0.5, 0.3, 0.2],
            means: vec![0.0005, 0.0003, 0.0002],
            covariance: vec![
                vec![0.0004, 0.0001, 0.00005],
                vec![0.0001, 0.000225, 0.00003],
                vec![0.00005, 0.00003, 0.0001],
            ],
            horizon_days: 10,
            paths: 100_000,
            seed: 42,
            confidence: 0.99,
            value: 1_000_000.0,
        }
    }

    fn run(request: &RiskRequest) -> Result<RiskReport, RiskError> {
        analyze(request, &|_| {}, &|| false)
    }

    fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    fn bits(report: &RiskReport) -> [u64; 4] {
        [report.value_at_risk, report.expected_shortfall, report.mean, report.standard_deviation].map(f64::to_bits)
    }

    fn refused_at(request: &RiskRequest) -> String {
        match run(request) {
            Err(RiskError::Invalid { pointer, .. }) => pointer,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn assert_close(actual: f64, expected: f64, tolerance: f64) {
        assert!((actual - expected).abs() <= tolerance, "{actual} is not within {tolerance} of {expected}");
    }

    #[test]
    fn closed_form_is_the_textbook_one() {
        // One asset, one day, no mean: the standard normal's 2.326348 and φ(2.326348) / 0.01 = 2.665214.
        let request = RiskRequest {
            weights: vec![1.0],
            means: vec![0.0],
            covariance: vec![vec![0.0001]],
            horizon_days: 1,
            value: 100.0,
            ..request()
        };
        let exact = run(&request).unwrap().closed_form;
        assert_close(exact.value_at_risk, 2.326_347_874, 1e-8);
        assert_close(exact.expected_shortfall, 2.665_214_220, 1e-8);
    }

    #[test]
    fn simulation_agrees_with_the_closed_form() {
        for confidence in [0.5, 0.95, 0.99, 0.999] {
            let report = run(&RiskRequest { confidence, ..request() }).unwrap();
            let exact = &report.closed_form;
            assert_close(report.value_at_risk, exact.value_at_risk, 3.0 * report.standard_error);
            // At 0.99 a standard error of the expected shortfall is 0.55 % of it; at 0.999, 1.2 %.
            assert_close(report.expected_shortfall, exact.expected_shortfall, 0.03 * exact.expected_shortfall);
        }
    }

    #[test]
    fn expected_shortfall_is_within_three_of_its_standard_errors() {
        let report = run(&request()).unwrap();
        let exact = &report.closed_form;
        // √((Var(L | L > q) + c (ES - q)²) / (n (1 - c))) is 0.0145 σ here: Manistre and Hancock (2005).
        assert_close(report.expected_shortfall, exact.expected_shortfall, 3.0 * 0.0145 * report.standard_deviation);
    }

    #[test]
    fn moments_agree_with_the_model() {
        let (request, report) = (request(), run(&request()).unwrap());
        let model = Model::new(&request).unwrap();
        let standard_error = model.deviation / (request.paths as f64).sqrt();
        assert_close(report.mean, -3_800.0, 3.0 * standard_error);
        assert_close(report.standard_deviation, model.deviation, 3.0 * standard_error / 2.0_f64.sqrt());
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let request = RiskRequest { paths: 50_001, ..request() };
        let [one, two, five] = [1, 2, 5].map(|threads| bits(&in_pool(threads, || run(&request)).unwrap()));
        assert_eq!(one, two);
        assert_eq!(one, five);
    }

    #[test]
    fn seeds_matter() {
        let [first, second] = [1, 2].map(|seed| run(&RiskRequest { seed, paths: 10_000, ..request() }).unwrap());
        assert_ne!(first.value_at_risk, second.value_at_risk);
        assert_eq!(first.closed_form, second.closed_form);
    }

    #[test]
    fn chunks_do_not_repeat_each_other() {
        let request = request();
        let model = Model::new(&request).unwrap();
        let mut losses = vec![0.0; 3 * model.chunk_paths];
        model.simulate(&mut losses, &|_| {}, &|| false).unwrap();
        losses.sort_unstable_by(f64::total_cmp);
        assert!(losses.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn stop_ends_early() {
        for threads in [1, 2] {
            let asked = AtomicUsize::new(0);
            let stopped = || asked.fetch_add(1, Ordering::SeqCst) >= 5;
            let result = in_pool(threads, || analyze(&request(), &|_| {}, &stopped));
            assert_eq!(result, Err(RiskError::Stopped));
            // Five chunks ran; after that each thread asked once at most. There are 23 in all.
            assert!(asked.into_inner() <= 5 + threads);
        }
    }

    #[test]
    fn stop_reports_no_completion() {
        let completed = Mutex::new(false);
        let progress = |percent| *completed.lock().unwrap() |= percent == 100.0;
        assert_eq!(analyze(&request(), &progress, &|| true), Err(RiskError::Stopped));
        assert!(!completed.into_inner().unwrap());
    }

    #[test]
    fn progress_rises_to_100() {
        for threads in [1, 5] {
            let seen = Mutex::new(Vec::new());
            in_pool(threads, || analyze(&request(), &|percent| seen.lock().unwrap().push(percent), &|| false)).unwrap();
            let seen = seen.into_inner().unwrap();
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
            assert_eq!(seen.last(), Some(&100.0));
            // Threads may skip a report while another is reporting, so only one thread makes all 23.
            assert!(threads > 1 || seen.len() == 23, "{seen:?}");
        }
    }

    #[test]
    fn wrong_dimensions_are_pointed_at() {
        let covariance = request().covariance;
        let mut ragged = covariance.clone();
        ragged[1].pop();
        for (request, pointer) in [
            (RiskRequest { weights: vec![], ..request() }, "/weights"),
            (RiskRequest { weights: vec![0.0; 65], ..request() }, "/weights"),
            (RiskRequest { means: vec![0.0; 2], ..request() }, "/means"),
            (RiskRequest { covariance: covariance[..2].to_vec(), ..request() }, "/covariance"),
            (RiskRequest { covariance: ragged, ..request() }, "/covariance/1"),
        ] {
            assert_eq!(refused_at(&request), pointer);
        }
    }

    #[test]
    fn values_beyond_the_limits_are_pointed_at() {
        for (request, pointer) in [
            (RiskRequest { weights: vec![0.5, f64::NAN, 0.5], ..request() }, "/weights/1"),
            (RiskRequest { means: vec![0.0, 0.0, -1.1], ..request() }, "/means/2"),
            (RiskRequest { horizon_days: 0, ..request() }, "/horizonDays"),
            (RiskRequest { paths: 999, ..request() }, "/paths"),
            (RiskRequest { paths: u64::MAX, ..request() }, "/paths"),
            (RiskRequest { confidence: 1.0, ..request() }, "/confidence"),
            (RiskRequest { value: 0.0, ..request() }, "/value"),
            (RiskRequest { value: f64::INFINITY, ..request() }, "/value"),
        ] {
            assert_eq!(refused_at(&request), pointer);
        }
    }

    #[test]
    fn impossible_covariances_are_pointed_at() {
        let with = |entries: &[(usize, usize, f64)]| {
            let mut request = request();
            entries.iter().for_each(|(i, j, entry)| request.covariance[*i][*j] = *entry);
            request
        };
        for (request, pointer) in [
            (with(&[(2, 0, 0.00004)]), "/covariance/2/0"),
            (with(&[(0, 1, 2.0)]), "/covariance/0/1"),
            (with(&[(1, 1, -0.0001)]), "/covariance/1/1"),
            // A correlation above 1, three that contradict each other, and an asset that moves only with others.
            (with(&[(0, 1, 0.0004), (1, 0, 0.0004)]), "/covariance"),
            (with(&[(0, 1, -0.00029), (1, 0, -0.00029), (0, 2, 0.00019), (2, 0, 0.00019)]), "/covariance"),
            (with(&[(1, 1, 0.0)]), "/covariance"),
        ] {
            assert_eq!(refused_at(&request), pointer);
        }
    }

    #[test]
    fn perfect_correlation_works() {
        // Standard deviations of 1 % and 2 %, correlation 1: one factor, and the deviations add up.
        let singular = RiskRequest {
            weights: vec![0.5, 0.5],
            means: vec![0.0, 0.0],
            covariance: vec![vec![0.0001, 0.0002], vec![0.0002, 0.0004]],
            ..request()
        };
        let model = Model::new(&singular).unwrap();
        assert_eq!(model.exposures.len(), 1);
        assert_close(model.exposures[0].abs(), 15_000.0, 1e-6);
        let report = run(&singular).unwrap();
        assert_close(report.value_at_risk, report.closed_form.value_at_risk, 3.0 * report.standard_error);
    }

    #[test]
    fn perfect_hedge_and_riskless_assets_lose_nothing() {
        let hedged = RiskRequest {
            weights: vec![1.0, -0.5],
            means: vec![0.0, 0.0],
            covariance: vec![vec![0.0001, 0.0002], vec![0.0002, 0.0004]],
            ..request()
        };
        assert_close(run(&hedged).unwrap().value_at_risk, 0.0, 1e-6);
        let riskless = RiskRequest { means: vec![0.0; 3], covariance: vec![vec![0.0; 3]; 3], ..request() };
        let report = run(&riskless).unwrap();
        assert_eq!(bits(&report), [0; 4]);
        assert_eq!(report.standard_error, 0.0);
    }

    #[test]
    fn factors_multiply_back_to_the_covariance() {
        // Kernel matrices of many close points are numerically singular, of widely different variances too.
        let entry = |i: i32, j: i32| (-0.01 * f64::from((i - j).pow(2))).exp() * 0.7_f64.powi(i + j) * 0.01;
        let covariance: Vec<Vec<f64>> = (0..64).map(|i| (0..64).map(|j| entry(i, j)).collect()).collect();
        let deviations: Vec<f64> = (0..64).map(|i| entry(i, i).sqrt()).collect();
        let correlations = correlations(&covariance, &deviations);
        let factors = factor(correlations.clone()).unwrap();
        assert!(factors.len() < 64);
        for (i, row) in correlations.iter().enumerate() {
            for (j, entry) in row.iter().enumerate() {
                assert_close(factors.iter().map(|factor| factor[i] * factor[j]).sum(), *entry, RESIDUE);
            }
        }
    }

    #[test]
    fn tail_is_the_weighted_mean_of_the_worst() {
        // 90 % of 8 is 7.2: the rank is 8 and the worst 0.8 losses are all of the largest one.
        let mut losses: Vec<f64> = (1..=8).map(f64::from).collect();
        assert_eq!(tail(&mut losses, 0.9), (8.0, 8.0));
        // 70 % of 8 is 5.6: the rank is 6; the worst 2.4 losses are 8, 7 and 0.4 of 6.
        let (quantile, shortfall) = tail(&mut losses, 0.7);
        assert_eq!(quantile, 6.0);
        assert_close(shortfall, (8.0 + 7.0 + 0.4 * 6.0) / 2.4, 1e-12);
    }

    #[test]
    fn large_work_makes_small_chunks() {
        let chunk =
            |days, assets| chunk_paths(&RiskRequest { horizon_days: days, weights: vec![0.0; assets], ..request() });
        assert_eq!((chunk(1, 1), chunk(10, 3), chunk(2_520, 64)), (8_192, 4_369, 1));
    }
}
