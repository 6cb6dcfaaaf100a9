//! DPM-Solver++ as an SDE, single-step of second order, on a Brownian path. Two model calls a step, one for the last.
//!
//! Lu et al., "DPM-Solver++", 2022, section 4.3, in k-diffusion's form (`sample_dpmpp_sde`) with the midpoint at half the step
//! in log σ, as diffusers' `DPMSolverSDEScheduler` has it.

use candle_core::Tensor;

use super::answers_from_walk;
use super::euler::ancestral;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::training::Training;
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct DpmppSde {
    walk: Walk,
    reader: Reader,
    training: Training,
    eta: f64,
    /// Between a step's two calls: the latents at the midpoint.
    halfway: Option<Tensor>,
}

impl DpmppSde {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, training: Training, eta: f64) -> Self {
        Self { walk, reader, training, eta, halfway: None }
    }

    fn middle(&self) -> f64 {
        let (from, to) = self.walk.levels();
        (from * to).sqrt()
    }

    /// From the step's start to its end or middle along `clean`, with the path's noise on top.
    fn step(&mut self, to_middle: bool, clean: &Tensor) -> Result<Tensor> {
        let (from, end) = self.walk.levels();
        let to = if to_middle { self.middle() } else { end };
        let (down, up) = ancestral(from, to, self.eta);
        let latents = mix(&[(down / from, &self.walk.latents), (1.0 - down / from, clean)])?;
        if up == 0.0 {
            return Ok(latents);
        }
        // diffusers asks the path at e^(ln σ) in f32, and the path rounds its times to six decimals: the last bit of a level
        // picks another leaf, so it is followed.
        let (t, t_end) = (-(from as f32).ln(), -(end as f32).ln());
        let t_to = if to_middle { t + (t_end - t) * 0.5 } else { t_end };
        let (from, to) = (f64::from((-t).exp()), f64::from((-t_to).exp()));
        let noise = self.walk.noise.between(from, to, latents.dims(), latents.device())?;
        mix(&[(1.0, &latents), (up, &noise)])
    }
}

impl Sampler for DpmppSde {
    fn query(&self) -> Result<Option<Query>> {
        let Some(halfway) = &self.halfway else { return self.walk.query(&self.reader) };
        let sigma = self.middle();
        let input = self.reader.input(halfway, sigma)?;
        Ok(Some(Query { timestep: self.training.timestep(sigma), sigma, input }))
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (from, to) = self.walk.levels();
        let middle = self.middle();
        if let Some(halfway) = self.halfway.take() {
            let clean = self.reader.clean(&halfway, output, middle)?;
            let latents = self.step(false, &clean)?;
            self.walk.denoised = Some(clean);
            return self.walk.arrive(latents);
        }
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        if to == 0.0 {
            self.walk.arrive(clean.clone())?;
        } else {
            let stepped = self.step(true, &clean)?;
            self.halfway = Some(self.walk.between(stepped)?);
        }
        self.walk.denoised = Some(clean);
        Ok(())
    }

    answers_from_walk!(|machine| machine.halfway.as_ref());
}
