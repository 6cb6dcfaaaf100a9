//! DPM-Solver++(2S) with ancestral noise. Two model calls a step, one for the last.
//!
//! Lu et al., "DPM-Solver++", 2022, algorithm 1 with its midpoint at half the step in log-SNR, and the ancestral split of
//! k-diffusion's `sample_dpmpp_2s_ancestral`.

use candle_core::Tensor;

use super::answers_from_walk;
use super::euler::ancestral;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::training::Training;
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Dpmpp2sAncestral {
    walk: Walk,
    reader: Reader,
    training: Training,
    eta: f64,
    /// Between a step's two calls: the latents at the midpoint.
    halfway: Option<Tensor>,
}

impl Dpmpp2sAncestral {
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

impl Sampler for Dpmpp2sAncestral {
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
            let mut latents = mix(&[(down / from, &self.walk.latents), (1.0 - down / from, &clean)])?;
            if up > 0.0 {
                let noise = self.walk.draw()?;
                latents = mix(&[(1.0, &latents), (up, &noise)])?;
            }
            self.walk.denoised = Some(clean);
            return self.walk.arrive(latents);
        }
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        // A step that ends at 0 has its midpoint in log σ there too, and is Euler's.
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
