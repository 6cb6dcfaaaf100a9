//! Heun's method: Euler's step, corrected with the slope at its end. Two model calls a step, one for the last.
//!
//! Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 1. In a flow's space
//! it is the same method on the flow's own ODE, whose slope is the predicted velocity.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Heun {
    walk: Walk,
    reader: Reader,
    /// Between a step's two calls: Euler's latents and the slope at the start.
    tried: Option<(Tensor, Tensor)>,
}

impl Heun {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader) -> Self {
        Self { walk, reader, tried: None }
    }
}

impl Sampler for Heun {
    fn query(&self) -> Result<Option<Query>> {
        let Some((latents, _)) = &self.tried else { return self.walk.query(&self.reader) };
        let (_, sigma) = self.walk.levels();
        let input = self.reader.input(latents, sigma)?;
        Ok(Some(Query { timestep: self.walk.timesteps[self.walk.at + 1], sigma, input }))
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (from, to) = self.walk.levels();
        if let Some((tried, start)) = self.tried.take() {
            let clean = self.reader.clean(&tried, output, to)?;
            let end = mix(&[(1.0 / to, &tried), (-1.0 / to, &clean)])?;
            let half = 0.5 * (to - from);
            let latents = mix(&[(1.0, &self.walk.latents), (half, &start), (half, &end)])?;
            self.walk.denoised = Some(clean);
            return self.walk.arrive(latents);
        }
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        let slope = mix(&[(1.0 / from, &self.walk.latents), (-1.0 / from, &clean)])?;
        let tried = mix(&[(1.0, &self.walk.latents), (to - from, &slope)])?;
        self.walk.denoised = Some(clean);
        if self.walk.at + 1 == self.walk.len() {
            self.walk.arrive(tried)?;
        } else {
            self.tried = Some((self.walk.between(tried)?, slope));
        }
        Ok(())
    }

    answers_from_walk!(|machine| machine.tried.as_ref().map(|(tried, _)| tried));
}
