//! The model against the closed form, and against itself on other numbers of threads.

use super::factor::{RESIDUE, correlations, factor};
use super::model::*;
use shared::schema::risk::{RiskReport, RiskRequest};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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
