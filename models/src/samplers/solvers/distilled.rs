//! The samplers of models distilled to few steps: LCM and TCD.
//!
//! Luo et al., "Latent Consistency Models", 2023, algorithm 3 (multistep consistency sampling); Zheng et al., "Trajectory
//! Consistency Distillation", 2024, algorithm 4 (strategic stochastic sampling, whose gamma is diffusers' eta).

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::Settings;
use crate::samplers::training::Training;
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Lcm {
    walk: Walk,
    reader: Reader,
    training: Training,
    scaling: f64,
}

impl Lcm {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, settings: &Settings, training: Training) -> Self {
        Self { walk, reader, training, scaling: settings.timestep_scaling }
    }
}

impl Sampler for Lcm {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        const DATA_VARIANCE: f64 = 0.25;
        let at = self.walk.at;
        let timestep = self.walk.timesteps[at];
        let (estimate, _) = self.reader.parts(&self.walk.latents, output, self.training.alpha(timestep as usize))?;
        // The boundary condition's skip and output shares: the function is the identity at timestep 0.
        let scaled = timestep * self.scaling;
        let variance = scaled * scaled + DATA_VARIANCE;
        let (skip, out) = (DATA_VARIANCE / variance, scaled / variance.sqrt());
        let clean = mix(&[(out, &estimate), (skip, &self.walk.latents)])?;
        let latents = match self.walk.timesteps.get(at + 1) {
            None => clean.clone(),
            Some(next) => {
                let alpha = self.training.alpha(*next as usize);
                let noise = self.walk.draw()?;
                mix(&[(alpha.sqrt(), &clean), ((1.0 - alpha).sqrt(), &noise)])?
            }
        };
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}

pub(in crate::samplers) struct Tcd {
    walk: Walk,
    reader: Reader,
    training: Training,
    eta: f64,
}

impl Tcd {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, training: Training, eta: f64) -> Self {
        Self { walk, reader, training, eta }
    }
}

impl Sampler for Tcd {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let at = self.walk.at;
        let alpha = self.training.alpha(self.walk.timesteps[at] as usize);
        let next = self.walk.timesteps.get(at + 1).copied();
        let (clean, noise) = self.reader.parts(&self.walk.latents, output, alpha)?;
        // The model's own jump goes further than the next timestep; noise brings the latents back up to it.
        let target = ((1.0 - self.eta) * next.unwrap_or(0.0)).floor();
        let reached = self.training.alpha(target as usize);
        let mut latents = mix(&[(reached.sqrt(), &clean), ((1.0 - reached).sqrt(), &noise)])?;
        if let Some(next) = next.filter(|_| self.eta > 0.0) {
            let ratio = self.training.alpha(next as usize) / reached;
            let fresh = self.walk.draw()?;
            latents = mix(&[(ratio.sqrt(), &latents), ((1.0 - ratio).max(0.0).sqrt(), &fresh)])?;
        }
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
