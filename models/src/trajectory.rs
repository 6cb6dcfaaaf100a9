//! One picture on its way through the denoising schedule.

use std::any::Any;
use std::sync::Arc;

use candle_core::Tensor;

use crate::samplers::{Progress, Query, Sampler};
use crate::{BatchKey, Conditioning, Result};

/// One picture's state between model calls. It belongs to one request and shares nothing that
/// another row could change.
pub struct Trajectory {
    sampler: Box<dyn Sampler>,
    positive: Arc<Conditioning>,
    negative: Option<Arc<Conditioning>>,
    guidance: f64,
    guidance_rescale: f64,
    key: BatchKey,
    state: Option<Box<dyn Any + Send>>,
}

impl Trajectory {
    /// Puts a row together; `negative` is there exactly when the row is guided.
    pub fn new(
        sampler: Box<dyn Sampler>,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
        guidance: f64,
        guidance_rescale: f64,
        key: BatchKey,
    ) -> Self {
        Self { sampler, positive, negative, guidance, guidance_rescale, key, state: None }
    }

    /// Adds what the family itself wants to find in the row again, such as the conditioning as the denoiser projects it.
    #[must_use]
    pub fn with_state(self, state: impl Any + Send) -> Self {
        Self { state: Some(Box::new(state)), ..self }
    }

    /// What the family put into the row; `None` when that is nothing, or of another type.
    pub fn state<T: Any>(&self) -> Option<&T> {
        self.state.as_deref()?.downcast_ref()
    }

    /// What this row's model call must share with its neighbours'.
    pub fn key(&self) -> &BatchKey {
        &self.key
    }

    /// What the sampler asks next; `None` once the latents are finished.
    ///
    /// # Errors
    /// When scaling the model's input fails.
    pub fn query(&self) -> Result<Option<Query>> {
        self.sampler.query()
    }

    /// Hands the guided model output, (c, h, w), to the sampler.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn advance(&mut self, output: &Tensor) -> Result<()> {
        self.sampler.advance(output)
    }

    /// Steps done, out of how many. A second-order solver calls the model twice a step.
    pub fn progress(&self) -> Progress {
        self.sampler.progress()
    }

    /// Whether the latents are finished.
    pub fn done(&self) -> bool {
        let Progress { step, steps } = self.progress();
        step >= steps
    }

    /// The current latents, (c, h, w).
    pub fn latents(&self) -> &Tensor {
        self.sampler.latents()
    }

    /// The sampler's last estimate of the clean latents, which makes the better preview.
    pub fn denoised(&self) -> Option<&Tensor> {
        self.sampler.denoised()
    }

    /// The conditioning of the prompt.
    pub fn positive(&self) -> &Conditioning {
        &self.positive
    }

    /// The conditioning of the negative prompt, when there is classifier-free guidance.
    pub fn negative(&self) -> Option<&Conditioning> {
        self.negative.as_deref()
    }

    /// Rows that this picture takes in a model call: two under classifier-free guidance, else one.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.negative.is_some())
    }

    /// diffusers' `guidance_scale`.
    pub fn guidance(&self) -> f64 {
        self.guidance
    }

    /// diffusers' `guidance_rescale`.
    pub fn guidance_rescale(&self) -> f64 {
        self.guidance_rescale
    }
}
