//! What a request asks of its sampler.

use super::NoiseSource;

/// Sampler, schedule and steps as a request names them; what is absent is the model's own.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingSpec {
    /// A sampler's canonical name or alias; `None` is the model's own.
    pub sampler: Option<String>,
    /// A schedule's name; `None` is the sampler's default with the model's configuration.
    pub schedule: Option<String>,
    /// Denoising steps.
    pub steps: usize,
    /// DDIM's eta and its like; `None` is the method's default.
    pub eta: Option<f64>,
    /// Explicit timesteps instead of a schedule, one a step.
    pub timesteps: Option<Vec<f64>>,
    /// Explicit sigmas instead of a schedule: one a step and the last one's end, for flow models without the end.
    pub sigmas: Option<Vec<f64>>,
    /// The solver's order where the method has several; `None` is the model's or the method's own.
    pub order: Option<usize>,
    /// The solver's variant where the method has several (`midpoint`, `heun`, `bh1`, `bh2`); `None` is the model's
    /// or the method's own.
    pub solver: Option<String>,
    /// The shift of a flow model's schedule towards noise; `None` is the model's own.
    pub shift: Option<f64>,
    /// Where the noise comes from; `None` is torch's CPU generator, and the Brownian tree where diffusers uses it.
    pub noise: Option<NoiseSource>,
}

impl SamplingSpec {
    /// The model's own sampler and schedule with this many steps.
    pub fn steps(steps: usize) -> Self {
        Self {
            sampler: None,
            schedule: None,
            steps,
            eta: None,
            timesteps: None,
            sigmas: None,
            order: None,
            solver: None,
            shift: None,
            noise: None,
        }
    }

    /// The same with this sampler, by canonical name or alias.
    #[must_use]
    pub fn with_sampler(mut self, sampler: impl Into<String>) -> Self {
        self.sampler = Some(sampler.into());
        self
    }

    /// The same with this schedule.
    #[must_use]
    pub fn with_schedule(mut self, schedule: impl Into<String>) -> Self {
        self.schedule = Some(schedule.into());
        self
    }
}

/// Why a sampler cannot be set up as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SamplerError {
    /// The request field at fault: a field of [`SamplingSpec`], or `strength`.
    pub param: &'static str,
    /// What was asked and what is possible.
    pub message: String,
}

impl SamplerError {
    /// An error that blames `param`.
    pub(super) fn new(param: &'static str, message: impl Into<String>) -> Self {
        Self { param, message: message.into() }
    }
}
