//! From what was understood to what the engine renders.

use easel_models::samplers::SamplingSpec;
use easel_models::{Prompt, RenderSpec, Stage};

use super::{LongPrompt, ResolvedRequest, SamplingOptions};

impl ResolvedRequest {
    /// The seed of picture `index`, which makes that picture alone.
    pub fn seed_of(&self, index: usize) -> u64 {
        self.seed.wrapping_add(index as u64)
    }

    /// The prompt, as the text encoders see it.
    pub fn positive(&self) -> Prompt {
        Prompt { clip_skip: self.clip_skip, ..self.text(Some(self.prompt.clone())) }
    }

    /// The negative prompt, as the text encoders see it: diffusers' `encode_prompt` leaves no layer out for it.
    pub fn negative(&self) -> Prompt {
        self.text(self.negative_prompt.clone())
    }

    fn text(&self, text: Option<String>) -> Prompt {
        Prompt { text, clip_skip: 0, weighting: self.prompt_weighting, long: self.long_prompt == LongPrompt::Chunk }
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

    /// How the second model renders each picture, where there is one. Its stage is the engine's to set.
    pub fn refiner_specs(&self) -> Vec<RenderSpec> {
        let sampler = self.refiner.as_ref().map(|refiner| refiner.sampler.clone());
        let again = |spec: RenderSpec| RenderSpec {
            sampling: SamplingSpec { sampler: sampler.clone(), ..spec.sampling },
            stage: Stage::Whole,
            ..spec
        };
        self.specs().into_iter().map(again).collect()
    }

    /// How each picture is to be rendered.
    pub fn specs(&self) -> Vec<RenderSpec> {
        let sampling = self.sampling_spec();
        // diffusers' pipelines guide so only where there is something to be guided away from.
        let true_guidance = self.true_guidance.filter(|_| self.negative_prompt.is_some()).unwrap_or(1.0);
        (0..self.n as usize)
            .map(|index| RenderSpec {
                guidance: self.guidance,
                true_guidance,
                stage: self.refiner.as_ref().map_or(Stage::Whole, |refiner| Stage::First { until: refiner.start }),
                guidance_rescale: self.sampling.guidance_rescale.unwrap_or(0.0),
                ..RenderSpec::new(self.rendered.width, self.rendered.height, self.seed_of(index), sampling.clone())
            })
            .collect()
    }
}
