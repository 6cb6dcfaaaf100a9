//! What a request asks of its sampler.

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
    /// Explicit timesteps instead of a schedule.
    pub timesteps: Option<Vec<f64>>,
    /// Explicit sigmas instead of a schedule.
    pub sigmas: Option<Vec<f64>>,
}

impl SamplingSpec {
    /// The model's own sampler and schedule with this many steps.
    pub fn steps(steps: usize) -> Self {
        Self { sampler: None, schedule: None, steps, eta: None, timesteps: None, sigmas: None }
    }
}

/// Why a sampler cannot be set up as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SamplerError {
    /// The request field at fault: `sampler`, `schedule`, `steps`, `eta`, `timesteps` or `sigmas`.
    pub param: &'static str,
    /// What was asked and what is possible.
    pub message: String,
}
