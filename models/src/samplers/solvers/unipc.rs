//! UniPC: a multistep predictor whose step is corrected, once the next prediction is there, without another model call.
//!
//! Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023: the predictor is
//! algorithm 2 (UniP), the corrector algorithm 1 (UniC), B(h) is equation 12's h or e^h - 1 (bh1, bh2).

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::{Bound, Settings};
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct UniPc {
    walk: Walk,
    reader: Reader,
    order: usize,
    /// B(h) is h itself, not e^h - 1.
    plain_b: bool,
    /// Works with estimates of the clean latents, not of the noise.
    clean: bool,
    lower_order_final: bool,
    /// Steps whose end is not corrected.
    uncorrected: Vec<usize>,
    /// The estimates so far, newest first.
    history: Vec<Tensor>,
    /// The corrected latents at the last step's start, and the order that it was taken with.
    last: Option<(Tensor, usize)>,
}

/// One step's weights of the latents, of the newest estimate, and of the differences of the others from it.
struct Weights {
    latents: f64,
    newest: f64,
    differences: Vec<f64>,
}

impl UniPc {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, settings: &Settings) -> Self {
        Self {
            walk,
            // diffusers bounds only estimates of the clean latents.
            reader: Reader { bound: if settings.predict_clean { reader.bound } else { Bound::None }, ..reader },
            order: settings.order,
            plain_b: settings.solver == "bh1",
            clean: settings.predict_clean || settings.flow,
            lower_order_final: settings.lower_order_final,
            uncorrected: settings.disable_corrector.clone(),
            history: Vec::new(),
            last: None,
        }
    }

    /// The weights of the step that starts at level `i`, from `order` estimates; the corrector adds the estimate at
    /// the step's end, whose difference's weight comes last.
    fn weights(&self, i: usize, order: usize, corrector: bool) -> Weights {
        let space = self.reader.space;
        let lambda = |i: usize| space.lambda(self.walk.sigmas[i]);
        let ((alpha, sigma), (alpha0, sigma0)) =
            (space.shares(self.walk.sigmas[i + 1]), space.shares(self.walk.sigmas[i]));
        let h = lambda(i + 1) - lambda(i);
        let mut places: Vec<f64> = (1..order).map(|k| (lambda(i - k) - lambda(i)) / h).collect();
        let hh = if self.clean { -h } else { h };
        let phi1 = hh.exp_m1();
        let b = if self.plain_b { hh } else { phi1 };
        let shares = if corrector {
            places.push(1.0);
            if order == 1 { vec![0.5] } else { solve(&places, hh, b) }
        } else if order == 2 {
            vec![0.5]
        } else {
            solve(&places, hh, b)
        };
        let (outer, latents) = if self.clean { (alpha, sigma / sigma0) } else { (sigma, alpha / alpha0) };
        let differences = shares.iter().zip(&places).map(|(share, place)| -outer * b * share / place).collect();
        Weights { latents, newest: -outer * phi1, differences }
    }
}

/// The latents at a step's end.
fn step(latents: &Tensor, weights: &Weights, newest: &Tensor, others: &[&Tensor]) -> Result<Tensor> {
    let sum: f64 = weights.differences.iter().sum();
    let mut terms = vec![(weights.latents, latents), (weights.newest - sum, newest)];
    terms.extend(weights.differences.iter().copied().zip(others.iter().copied()));
    mix(&terms)
}

/// Solves the conditions that make the differences at `places` match the integral's Taylor terms (equation 10).
fn solve(places: &[f64], hh: f64, b: f64) -> Vec<f64> {
    let n = places.len();
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n);
    let (mut phi, mut factorial) = (hh.exp_m1() / hh - 1.0, 1.0);
    for i in 0..n {
        let mut row: Vec<f64> = places.iter().map(|r| r.powi(i as i32)).collect();
        row.push(phi * factorial / b);
        rows.push(row);
        factorial *= (i + 2) as f64;
        phi = phi / hh - 1.0 / factorial;
    }
    eliminate(rows)
}

/// Solves a small linear system, given as rows with the right-hand side last, by Gauss's elimination with pivots.
fn eliminate(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs())).unwrap_or(i);
        rows.swap(i, pivot);
        let top = rows[i].clone();
        for row in rows.iter_mut().skip(i + 1) {
            let factor = row[i] / top[i];
            row.iter_mut().zip(&top).skip(i).for_each(|(a, b)| *a -= factor * b);
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| rows[i][j] * x[j]).sum();
        x[i] = (rows[i][n] - known) / rows[i][i];
    }
    x
}

impl Sampler for UniPc {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let at = self.walk.at;
        let sigma = self.walk.sigmas[at];
        let clean = self.reader.clean(&self.walk.latents, output, sigma)?;
        let estimate = if self.clean { clean.clone() } else { self.reader.noise(&self.walk.latents, &clean, sigma)? };

        let mut latents = self.walk.latents.clone();
        if let Some((start, order)) = self.last.take().filter(|_| !self.uncorrected.contains(&(at - 1))) {
            let weights = self.weights(at - 1, order, true);
            let mut others: Vec<&Tensor> = self.history[1..order].iter().collect();
            others.push(&estimate);
            latents = step(&start, &weights, &self.history[0], &others)?;
        }

        self.history.insert(0, estimate);
        self.history.truncate(self.order);
        let left = if self.lower_order_final { self.walk.len() - at } else { usize::MAX };
        let order = self.order.min(left).min(self.history.len());
        let weights = self.weights(at, order, false);
        let others: Vec<&Tensor> = self.history[1..order].iter().collect();
        let next = step(&latents, &weights, &self.history[0], &others)?;
        self.last = Some((latents, order));
        self.walk.denoised = Some(clean);
        self.walk.arrive(next)
    }

    answers_from_walk!();
}

#[cfg(test)]
mod tests {
    #[test]
    fn elimination_solves_a_system_that_needs_a_pivot() {
        let x = super::eliminate(vec![vec![0.0, 2.0, 1.0, 7.0], vec![1.0, 1.0, 1.0, 6.0], vec![2.0, -1.0, 3.0, 9.0]]);
        for (x, expected) in x.iter().zip([1.0, 2.0, 3.0]) {
            assert!((x - expected).abs() < 1e-12);
        }
    }
}
