//! DPM2: the midpoint method in log σ, plain and ancestral. Two model calls a step, one for the last.
//!
//! Karras et al., 2022, algorithm 2 in k-diffusion's form (`sample_dpm_2`, `sample_dpm_2_ancestral`), whose midpoint is the geometric
//! mean of the two levels, after DPM-Solver-2 (Lu et al., 2022, algorithm 1).

use candle_core::Tensor;

use super::answers_from_walk;
use super::euler::ancestral;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::training::Training;
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Dpm2 {
    walk: Walk,
    reader: Reader,
    training: Training,
    eta: f64,
    /// Between a step's two calls: the latents at the midpoint.
    halfway: Option<Tensor>,
}

impl Dpm2 {
    /// `eta` is the share of ancestral noise, 0 for the plain method.
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, training: Training, eta: f64) -> Self {
        Self { walk, reader, training, eta, halfway: None }
    }

    /// The levels of the midpoint and of the step's deterministic end, and the noise put back.
    fn stops(&self) -> (f64, f64, f64) {
        let (from, to) = self.walk.levels();
        let (down, up) = ancestral(from, to, self.eta);
        ((from * down).sqrt(), down, up)
    }
}

impl Sampler for Dpm2 {
    fn query(&self) -> Result<Option<Query>> {
        let Some(halfway) = &self.halfway else { return self.walk.query(&self.reader) };
        let (sigma, ..) = self.stops();
        let input = self.reader.input(halfway, sigma)?;
        Ok(Some(Query { timestep: self.training.timestep(sigma), sigma, input }))
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (from, _) = self.walk.levels();
        let (middle, down, up) = self.stops();
        if let Some(halfway) = self.halfway.take() {
            let clean = self.reader.clean(&halfway, output, middle)?;
            let rate = (down - from) / middle;
            let mut latents = mix(&[(1.0, &self.walk.latents), (rate, &halfway), (-rate, &clean)])?;
            if up > 0.0 {
                let noise = self.walk.draw()?;
                latents = mix(&[(1.0, &latents), (up, &noise)])?;
            }
            self.walk.denoised = Some(clean);
            return self.walk.arrive(latents);
        }
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        // A step that ends at 0 has its midpoint in log σ there too.
        let stepped = mix(&[(middle / from, &self.walk.latents), (1.0 - middle / from, &clean)])?;
        self.walk.denoised = Some(clean);
        if middle == 0.0 {
            self.walk.arrive(stepped)?;
        } else {
            self.halfway = Some(self.walk.between(stepped)?);
        }
        Ok(())
    }

    answers_from_walk!(|machine| machine.halfway.as_ref());
}
