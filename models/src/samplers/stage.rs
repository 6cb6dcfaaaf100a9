//! Parts of a schedule, where two models share one picture: diffusers' `denoising_end` and `denoising_start`.
//!
//! Both are shares of the trained timesteps. A model calls for those timesteps that lie on its side of the cut, so that
//! the second one goes on where the first one stopped, whatever steps and samplers they have.

use candle_core::{DType, Device, Tensor};

use super::{NoiseSource, Plan, Progress, Query, Sampler, SamplerError};
use crate::Result;

impl Plan {
    /// Ends the schedule where its timesteps fall below the cut: the first model's part.
    ///
    /// # Errors
    /// When the share is not between 0 and 1, or leaves no step.
    pub fn end_at(&mut self, share: f64) -> Result<(), SamplerError> {
        let cut = self.cut(share)?;
        if self.timesteps().first().is_none_or(|timestep| *timestep < cut) {
            let message = format!("a share of {share} for the first model leaves it none of {} steps", self.steps());
            return Err(SamplerError::new("stage", message));
        }
        self.end = Some(cut);
        Ok(())
    }

    /// Leaves out the steps above the cut: the second model's part, which goes on from the first one's latents.
    ///
    /// # Errors
    /// When the share is not between 0 and 1, or leaves no step; when the sampler cannot be set up.
    pub fn start_at(&mut self, share: f64) -> Result<()> {
        let cut = self.cut(share)?;
        let (calls, each) = (self.calls()?, self.sampler().calls_per_step);
        let mut left = calls.iter().filter(|timestep| **timestep < cut).count();
        if left == 0 {
            let message =
                format!("a share of {share} for the first model leaves the second none of {} steps", self.steps());
            return Err(SamplerError::new("stage", message).into());
        }
        if each == 2 && left.is_multiple_of(2) {
            // The last step has one call. An even number would begin with the second call of a step.
            left += 1;
        }
        self.first = (calls.len() - left) / each;
        Ok(())
    }

    /// The timestep below which the second model's part lies.
    fn cut(&self, share: f64) -> Result<f64, SamplerError> {
        if !(share > 0.0 && share < 1.0) {
            return Err(SamplerError::new("stage", format!("the first model's share {share} is not between 0 and 1")));
        }
        let train = self.settings.train_steps as f64;
        Ok((train - share * train).round_ties_even())
    }

    /// The timestep of each model call of the whole schedule, found by going through it with a single value.
    fn calls(&self) -> Result<Vec<f64>> {
        let mut whole = self.clone();
        (whole.first, whole.end, whole.noise) = (0, None, NoiseSource::TorchCpu);
        let value = Tensor::zeros((1, 1, 1), DType::F32, &Device::Cpu)?;
        let mut sampler = whole.start(value.clone(), NoiseSource::TorchCpu.open(0))?;
        let mut timesteps = Vec::new();
        while let Some(query) = sampler.query()? {
            timesteps.push(query.timestep);
            sampler.advance(&value)?;
        }
        Ok(timesteps)
    }
}

/// A sampler that stops before the first model call below a timestep, even where that is the second call of a step:
/// its latents are then those of the step's first half, as diffusers hands them on.
pub(super) struct Until {
    inner: Box<dyn Sampler>,
    end: f64,
    /// Steps until there.
    steps: usize,
    done: bool,
}

impl Until {
    pub(super) fn new(inner: Box<dyn Sampler>, end: f64, steps: usize) -> Self {
        Self { inner, end, steps: steps.max(1), done: false }
    }
}

impl Sampler for Until {
    fn query(&self) -> Result<Option<Query>> {
        Ok(self.inner.query()?.filter(|query| query.timestep >= self.end))
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        self.inner.advance(output)?;
        self.done = self.query()?.is_none();
        Ok(())
    }

    fn progress(&self) -> Progress {
        let Progress { step, .. } = self.inner.progress();
        Progress { step: if self.done { self.steps } else { step.min(self.steps - 1) }, steps: self.steps }
    }

    fn latents(&self) -> &Tensor {
        self.inner.latents()
    }

    fn denoised(&self) -> Option<&Tensor> {
        self.inner.denoised()
    }
}
