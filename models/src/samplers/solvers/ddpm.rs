//! DDPM: ancestral sampling with the model's own posterior.
//!
//! Ho et al., "Denoising Diffusion Probabilistic Models", 2020, algorithm 2, its mean by equation 7 and its variance by
//! section 3.2's two choices.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::Settings;
use crate::samplers::training::Training;
use crate::samplers::{Query, Sampler, SamplerError};

pub(in crate::samplers) struct Ddpm {
    walk: Walk,
    reader: Reader,
    /// ᾱ at each step's start and end.
    alphas: Vec<(f64, f64)>,
    variance: Variance,
}

/// diffusers' `variance_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variance {
    Small,
    Large,
}

impl Ddpm {
    pub(in crate::samplers) fn new(
        walk: Walk,
        reader: Reader,
        settings: &Settings,
        training: &Training,
    ) -> Result<Self, SamplerError> {
        let variance = match settings.variance.as_str() {
            // The "log" form is the logarithm's exponential: the same number.
            "fixed_small" | "fixed_small_log" => Variance::Small,
            "fixed_large" => Variance::Large,
            other => {
                return Err(SamplerError::new(
                    "sampler",
                    format!(
                        "scheduler_config.json: variance_type {other:?} is not possible with ddpm; possible: \
                         fixed_small, fixed_small_log, fixed_large"
                    ),
                ));
            }
        };
        let mut alphas: Vec<(f64, f64)> = walk.timesteps.iter().map(|t| (training.alpha(*t as usize), 1.0)).collect();
        for i in 1..alphas.len() {
            alphas[i - 1].1 = alphas[i].0;
        }
        Ok(Self { walk, reader, alphas, variance })
    }
}

impl Sampler for Ddpm {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (alpha, next) = self.alphas[self.walk.at];
        let (clean, _) = self.reader.parts(&self.walk.latents, output, alpha)?;
        let (ratio, beta) = (alpha / next, 1.0 - alpha / next);
        let mean = [
            (next.sqrt() * beta / (1.0 - alpha), &clean),
            (ratio.sqrt() * (1.0 - next) / (1.0 - alpha), &self.walk.latents),
        ];
        let mut latents = mix(&mean)?;
        if self.walk.timesteps[self.walk.at] > 0.0 {
            let small = ((1.0 - next) / (1.0 - alpha) * beta).max(1e-20);
            let deviation = match self.variance {
                Variance::Small => small.sqrt(),
                Variance::Large => beta.sqrt(),
            };
            let noise = self.walk.draw()?;
            latents = mix(&[(1.0, &latents), (deviation, &noise)])?;
        }
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
