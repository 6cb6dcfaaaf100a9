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
    pub(super) fn new(inner: Box<dyn Sampler>, end: f64, steps: usize) -> Result<Self> {
        let mut sampler = Self { inner, end, steps: steps.max(1), done: false };
        sampler.done = sampler.query()?.is_none();
        Ok(sampler)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::tests::{drive, fake};
    use crate::samplers::{PlanContext, SamplingSpec, SchedulerConfig, catalogue};

    const SHAPE: [usize; 3] = [4, 2, 2];

    fn plan(sampler: &str, steps: usize) -> Plan {
        let file = r#"{"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading"}"#;
        let spec = SamplingSpec::steps(steps).with_sampler(sampler);
        Plan::new(&spec, &SchedulerConfig::from_json(file).unwrap(), PlanContext::default()).unwrap()
    }

    fn first_latents(plan: &Plan) -> Tensor {
        let noise = NoiseSource::TorchCpu.open(7).normal(&SHAPE, &Device::Cpu).unwrap();
        (noise * plan.init_noise_sigma()).unwrap()
    }

    fn start(plan: Plan, latents: Tensor) -> Box<dyn Sampler> {
        plan.start(latents, NoiseSource::TorchCpu.open(9)).unwrap()
    }

    #[test]
    fn two_parts_of_a_method_without_memory_are_the_whole() {
        for sampler in ["euler", "ddim"] {
            for (steps, share) in [(5, 0.5), (10, 0.8), (13, 0.33), (4, 0.999)] {
                let whole = plan(sampler, steps);
                let latents = first_latents(&whole);
                let expected = drive(start(whole, latents.clone()).as_mut(), "epsilon");
                let (mut first, mut second) = (plan(sampler, steps), plan(sampler, steps));
                first.end_at(share).unwrap();
                if share == 0.999 {
                    assert!(
                        second.start_at(share).unwrap_err().to_string().contains("leaves the second none of 4 steps")
                    );
                    continue;
                }
                second.start_at(share).unwrap();
                let second_steps = second.steps();
                let mut first = start(first, latents);
                drive(first.as_mut(), "epsilon");
                let Progress { step, steps: first_steps } = first.progress();
                assert_eq!((step, first_steps + second_steps), (first_steps, steps));
                let found = drive(start(second, first.latents().clone()).as_mut(), "epsilon");
                assert_eq!(found, expected, "{sampler} {steps} {share}");
            }
        }
    }

    /// Goes through what is left of a schedule and holds it to its count of steps.
    fn finishes(plan: Plan) {
        let (steps, latents) = (plan.steps(), first_latents(&plan));
        let mut sampler = start(plan, latents);
        drive(sampler.as_mut(), "epsilon");
        assert_eq!(sampler.progress(), Progress { step: steps, steps });
    }

    #[test]
    fn a_second_part_of_one_call_ends() {
        // PNDM's extra calls lie before it; its last one is a step all the same.
        for sampler in ["pndm", "ddim", "heun"] {
            let mut rest = plan(sampler, 12);
            rest.start_at(0.95).unwrap();
            finishes(rest);
        }
    }

    #[test]
    fn every_sampler_counts_the_steps_of_its_part() {
        for info in catalogue().iter().filter(|info| info.kind != crate::samplers::ModelKind::Flow) {
            for share in [0.3, 0.5, 0.85] {
                let mut part = plan(info.name, 12);
                part.end_at(share).unwrap();
                let latents = first_latents(&part);
                let mut sampler = start(part, latents);
                let mut last = sampler.progress().step;
                while let Some(query) = sampler.query().unwrap() {
                    let Progress { step, steps } = sampler.progress();
                    assert!(step >= last && step < steps, "{} {share}: {step} of {steps}", info.name);
                    last = step;
                    sampler.advance(&fake("epsilon", &query.input, query.timestep)).unwrap();
                }
                let Progress { step, steps } = sampler.progress();
                assert_eq!(step, steps, "{} {share}", info.name);
                let mut rest = plan(info.name, 12);
                rest.start_at(share).unwrap();
                finishes(rest.clone());
                // PNDM's calls beyond one a step count for neither part.
                assert!(
                    info.name == "pndm" || rest.steps() + steps >= 12,
                    "{} {share}: {steps} and {}",
                    info.name,
                    rest.steps()
                );
            }
        }
    }

    #[test]
    fn a_share_that_is_none_or_leaves_nothing_is_refused() {
        for share in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(plan("euler", 4).end_at(share).is_err() && plan("euler", 4).start_at(share).is_err(), "{share}");
        }
        let error = plan("euler", 2).end_at(0.1).unwrap_err();
        assert_eq!(error.param, "stage");
        assert!(error.message.contains("leaves it none of 2 steps"), "{error}");
    }
}
