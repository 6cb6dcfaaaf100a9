//! DDIM: first order, deterministic unless eta is above 0.
//!
//! Song et al., "Denoising Diffusion Implicit Models", 2020, equations 12 and 16. Eta 1 is DDPM's variance.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::Settings;
use crate::samplers::training::Training;
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Ddim {
    walk: Walk,
    reader: Reader,
    /// ᾱ at each step's start and end.
    alphas: Vec<(f64, f64)>,
    eta: f64,
}

impl Ddim {
    pub(in crate::samplers) fn new(
        walk: Walk,
        reader: Reader,
        settings: &Settings,
        training: &Training,
        eta: f64,
    ) -> Self {
        // A step ends a fixed distance below its start, whatever the next timestep is; below 0 it ends at the
        // clean latents, or at timestep 0's level.
        let stride = (settings.train_steps / walk.len()) as f64;
        let end = if settings.alpha_to_one { 1.0 } else { training.alpha(0) };
        let alpha = |t: f64| if t >= 0.0 { training.alpha(t as usize) } else { end };
        let alphas = walk.timesteps.iter().map(|t| (alpha(*t), alpha(*t - stride))).collect();
        Self { walk, reader, alphas, eta }
    }
}

impl Sampler for Ddim {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (alpha, next) = self.alphas[self.walk.at];
        let (clean, noise) = self.reader.parts(&self.walk.latents, output, alpha)?;
        let variance = (1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next);
        let deviation = self.eta * variance.max(0.0).sqrt();
        let direction = (1.0 - next - deviation * deviation).max(0.0).sqrt();
        let mut latents = mix(&[(next.sqrt(), &clean), (direction, &noise)])?;
        if self.eta > 0.0 {
            let fresh = self.walk.draw()?;
            latents = mix(&[(1.0, &latents), (deviation, &fresh)])?;
        }
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
