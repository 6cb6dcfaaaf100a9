//! Euler's method on the probability-flow ODE, plain and ancestral.
//!
//! Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 1 without its
//! second-order correction; the ancestral step (k-diffusion's `sample_euler_ancestral`) goes below the next
//! level and comes back with fresh noise, as DDPM's variance wants (Song et al., 2020, equation 16 at eta 1).

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Euler {
    walk: Walk,
    reader: Reader,
    /// How much of the ancestral noise is put back; 0 is plain Euler.
    eta: f64,
}

impl Euler {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, eta: f64) -> Self {
        Self { walk, reader, eta }
    }
}

/// Splits a step from level `from` to `to` into the level to step down to and the noise to come back with, of
/// which `eta` is the share (k-diffusion's `get_ancestral_step`).
pub(super) fn ancestral(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let up = to.min(eta * (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt());
    ((to * to - up * up).max(0.0).sqrt(), up)
}

impl Sampler for Euler {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (from, to) = self.walk.levels();
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        let (down, up) = ancestral(from, to, self.eta);
        // x + (x - clean) / σ · (σ' - σ).
        let mut latents = mix(&[(down / from, &self.walk.latents), (1.0 - down / from, &clean)])?;
        if up > 0.0 {
            let fresh = self.walk.draw()?;
            latents = mix(&[(1.0, &latents), (up, &fresh)])?;
        }
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
