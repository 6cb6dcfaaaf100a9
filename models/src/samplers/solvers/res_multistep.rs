//! RES: a second-order multistep exponential integrator.
//!
//! Zhang et al., "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling", 2023, algorithm 2
//! (multistep), in the form of ComfyUI's `sample_res_multistep`. It integrates in -ln σ, which holds for a diffusion's latents and
//! for a flow's alike.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct ResMultistep {
    walk: Walk,
    reader: Reader,
    /// The last step's estimate of the clean latents.
    last: Option<Tensor>,
}

impl ResMultistep {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader) -> Self {
        Self { walk, reader, last: None }
    }
}

impl Sampler for ResMultistep {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (from, to) = self.walk.levels();
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        let latents = match self.last.take().filter(|_| to > 0.0) {
            None => mix(&[(to / from, &self.walk.latents), (1.0 - to / from, &clean)])?,
            Some(last) => {
                let before = self.walk.sigmas[self.walk.at - 1];
                let h = (from / to).ln();
                // Where the last estimate lies, in steps from this one; negative.
                let c2 = -(before / from).ln() / h;
                let phi1 = -(-h).exp_m1() / h;
                let phi2 = (1.0 - phi1) / h;
                let (b1, b2) = (phi1 - phi2 / c2, phi2 / c2);
                mix(&[((-h).exp(), &self.walk.latents), (h * b1, &clean), (h * b2, &last)])?
            }
        };
        self.last = Some(clean.clone());
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
