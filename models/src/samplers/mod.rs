//! Sampling as three values that know nothing of each other: the schedule (which timesteps and
//! sigmas), the sampler (how to step) and the noise (where randomness comes from).
//!
//! A request's [`SamplingSpec`] and the model's [`SchedulerConfig`] become a [`Plan`], which is pure numbers; a plan
//! and the first latents become a [`Sampler`]. What a name means is looked up in the [`catalogue`](fn@catalogue).

mod catalogue;
mod config;
mod levels;
mod machine;
mod noise;
mod plan;
#[cfg(test)]
mod properties;
mod repaint;
mod schedule;
mod settings;
mod solvers;
mod spec;
mod stage;
mod table;
#[cfg(test)]
mod tests;
mod training;

pub use catalogue::{ModelKind, SamplerInfo, catalogue, check, find, find_styled};
pub use config::SchedulerConfig;
pub use noise::{BrownianTree, Noise, NoiseSource, TorchCpu, TorchCuda};
pub use plan::{Plan, PlanContext, StrengthRule};
pub use repaint::Repaint;
pub use schedule::Schedule;
pub use spec::{SamplerError, SamplingSpec};

use candle_core::Tensor;

use crate::Result;

/// What a sampler asks the model next.
#[derive(Debug, Clone)]
pub struct Query {
    /// The model's time input; fractional for schedules in sigma. In 0..=1000 for diffusion models.
    pub timestep: f64,
    /// The noise level of the latents in the sampler's own parametrisation.
    pub sigma: f64,
    /// The latents scaled as the model wants them, (c, h, w).
    pub input: Tensor,
}

/// How far a sampler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps finished.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
}

/// One picture's way through the denoising schedule: a state machine that never calls the model.
///
/// Second-order solvers ask twice a step; multistep ones keep their history inside; stochastic ones
/// own their noise. Latents are f32 and live on the model's device; every coefficient is f64 on the host.
pub trait Sampler: Send {
    /// What to ask the model next; `None` once the latents are finished.
    ///
    /// # Errors
    /// When scaling the input fails.
    fn query(&self) -> Result<Option<Query>>;

    /// Takes the model's answer, (c, h, w), to the last query, and moves on.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn advance(&mut self, output: &Tensor) -> Result<()>;

    /// Steps done, out of how many.
    fn progress(&self) -> Progress;

    /// The current latents, (c, h, w): those that the next model call looks at.
    fn latents(&self) -> &Tensor;

    /// The last estimate of the clean latents, once there is one.
    fn denoised(&self) -> Option<&Tensor>;
}
