//! From what was understood to what the engine renders.

use easel_models::samplers::SamplingSpec;
use easel_models::{Prompt, RenderSpec};

use super::{ResolvedRequest, SamplingOptions};

impl ResolvedRequest {
    /// The seed of picture `index`, which makes that picture alone.
    pub fn seed_of(&self, index: usize) -> u64 {
        self.seed.wrapping_add(index as u64)
    }

    /// The prompt, as the text encoders see it.
    pub fn positive(&self) -> Prompt {
        Prompt { clip_skip: self.clip_skip, ..Prompt::new(&self.prompt) }
    }

    /// The negative prompt, as the text encoders see it: diffusers' `encode_prompt` leaves no layer out for it.
    pub fn negative(&self) -> Prompt {
        Prompt { text: self.negative_prompt.clone(), ..Prompt::default() }
    }

    /// Sampler, schedule and steps, with what else was set of them.
    pub fn sampling_spec(&self) -> SamplingSpec {
        let SamplingOptions { eta, order, solver, shift, noise, timesteps, sigmas, guidance_rescale: _ } =
            self.sampling.clone();
        SamplingSpec {
            sampler: Some(self.sampler.clone()),
            // A schedule that is named overrides the flags of the model's scheduler file; "default" does not name one.
            schedule: Some(self.schedule.clone()).filter(|schedule| schedule != "default"),
            steps: self.steps,
            eta,
            timesteps,
            sigmas,
            order,
            solver,
            shift,
            noise,
        }
    }

    /// How each picture is to be rendered.
    pub fn specs(&self) -> Vec<RenderSpec> {
        let sampling = self.sampling_spec();
        (0..self.n as usize)
            .map(|index| RenderSpec {
                guidance: self.guidance,
                guidance_rescale: self.sampling.guidance_rescale.unwrap_or(0.0),
                ..RenderSpec::new(self.rendered.width, self.rendered.height, self.seed_of(index), sampling.clone())
            })
            .collect()
    }
}
