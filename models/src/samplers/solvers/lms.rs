//! LMS: an Adams-Bashforth method of up to fourth order on the probability-flow ODE.
//!
//! The ODE is Karras et al., 2022, equation 3; the method is k-diffusion's `sample_lms`, with the Lagrange polynomials' integrals
//! taken exactly.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Lms {
    walk: Walk,
    reader: Reader,
    order: usize,
    /// The slopes so far, newest first.
    slopes: Vec<Tensor>,
}

impl Lms {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, order: usize) -> Self {
        Self { walk, reader, order, slopes: Vec::new() }
    }
}

/// The integral over the step at `at` of the Lagrange polynomial that is 1 at the `j`-th last of `order` levels.
fn weight(sigmas: &[f64], at: usize, order: usize, j: usize) -> f64 {
    let polynomial = |s: f64| -> f64 {
        (0..order).filter(|k| *k != j).map(|k| (s - sigmas[at - k]) / (sigmas[at - j] - sigmas[at - k])).product()
    };
    let (from, to) = (sigmas[at], sigmas[at + 1]);
    let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
    // Two Gauss points integrate cubics exactly.
    let offset = half / 3.0_f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}

impl Sampler for Lms {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let at = self.walk.at;
        let sigma = self.walk.sigmas[at];
        let clean = self.reader.clean(&self.walk.latents, output, sigma)?;
        self.slopes.insert(0, mix(&[(1.0 / sigma, &self.walk.latents), (-1.0 / sigma, &clean)])?);
        self.slopes.truncate(self.order);
        // Image-to-image begins with an order that its history does not have yet; diffusers then leaves the missing
        // terms out, and its pictures are the reference.
        let order = self.order.min(at + 1);
        let weights = (0..order).map(|j| weight(&self.walk.sigmas, at, order, j));
        let mut terms: Vec<(f64, &Tensor)> = vec![(1.0, &self.walk.latents)];
        terms.extend(weights.zip(&self.slopes));
        let latents = mix(&terms)?;
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
