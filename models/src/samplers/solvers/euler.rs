//! Euler's method on the probability-flow ODE, plain and ancestral.
//!
//! Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 1 without its
//! second-order correction; the ancestral step (k-diffusion's `sample_euler_ancestral`) goes below the next
//! level and comes back with fresh noise, as DDPM's variance wants (Song et al., 2020, equation 16 at eta 1).

use candle_core::Tensor;

use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::{Progress, Query, Sampler};

pub(in crate::samplers) struct Euler {
    walk: Walk,
    reader: Reader,
    ancestral: bool,
}

impl Euler {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, ancestral: bool) -> Self {
        Self { walk, reader, ancestral }
    }
}

/// Splits a step from level `from` to `to` into the level to step down to and the noise to come back with.
pub(super) fn ancestral(from: f64, to: f64) -> (f64, f64) {
    let up = (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt();
    ((to * to - up * up).max(0.0).sqrt(), up)
}

impl Sampler for Euler {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (from, to) = self.walk.levels();
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        let (down, up) = if self.ancestral { ancestral(from, to) } else { (to, 0.0) };
        // x + (x - clean) / σ · (σ' - σ).
        let mut latents = mix(&[(down / from, &self.walk.latents), (1.0 - down / from, &clean)])?;
        if up > 0.0 {
            let fresh = self.walk.draw()?;
            latents = mix(&[(1.0, &latents), (up, &fresh)])?;
        }
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents);
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.walk.progress()
    }

    fn latents(&self) -> &Tensor {
        &self.walk.latents
    }

    fn denoised(&self) -> Option<&Tensor> {
        self.walk.denoised.as_ref()
    }
}
