//! Euler's method on a rectified flow, plain or with all noise drawn anew at each step.
//!
//! Lipman et al., "Flow Matching for Generative Modeling", 2023; Liu et al., "Flow Straight and Fast", 2023; diffusers'
//! `FlowMatchEulerDiscreteScheduler` for the stochastic form.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct FlowEuler {
    walk: Walk,
    reader: Reader,
    stochastic: bool,
}

impl FlowEuler {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, stochastic: bool) -> Self {
        Self { walk, reader, stochastic }
    }
}

impl Sampler for FlowEuler {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let (from, to) = self.walk.levels();
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        let latents = if self.stochastic && to > 0.0 {
            let noise = self.walk.draw()?;
            mix(&[(1.0 - to, &clean), (to, &noise)])?
        } else {
            mix(&[(1.0, &self.walk.latents), (to - from, output)])?
        };
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
