//! Factors a covariance matrix.

/// Correlations differing by less than this are equal, and a factor explaining less than this is rounding.
pub(super) const ROUNDING: f64 = 1e-10;
/// What factoring may leave of a semidefinite correlation matrix; more means that it is indefinite.
pub(super) const RESIDUE: f64 = 10.0 * ROUNDING;

/// The correlations, so that the tolerances hold for quiet and for lively assets alike.
///
/// Averaging both halves removes what asymmetry the check let through. An asset without variance correlates with
/// nothing; if its covariances say otherwise, the matrix is indefinite, and the entry becomes infinite.
pub(super) fn correlations(covariance: &[Vec<f64>], deviations: &[f64]) -> Vec<Vec<f64>> {
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
pub(super) fn factor(mut matrix: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
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
