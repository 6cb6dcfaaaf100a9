//! The end of an inpainting.

use candle_core::Tensor;

use crate::Result;
use crate::autoencoders::AutoencoderKlConfig;
use crate::samplers::{Progress, Query, Sampler};

/// A sampler whose finished latents are decoded as diffusers' inpainting pipeline of Stable Diffusion 3 does it: without
/// the autoencoder's `shift_factor`.
///
/// Its other pipelines add the factor, and so does [`AutoencoderKl::unscale`](crate::autoencoders::AutoencoderKl::unscale);
/// here it is taken off the finished latents beforehand. What people paint with diffusers has these colours.
pub(super) struct Unshifted {
    inner: Box<dyn Sampler>,
    /// The shift at the latents' scale.
    shift: f64,
    finished: Option<Tensor>,
}

impl Unshifted {
    /// Wraps the sampler of an inpainting with latents of this autoencoder.
    pub(super) fn new(inner: Box<dyn Sampler>, vae: &AutoencoderKlConfig) -> Self {
        Self { inner, shift: vae.shift_factor.unwrap_or(0.0) * vae.scaling_factor, finished: None }
    }
}

impl Sampler for Unshifted {
    fn query(&self) -> Result<Option<Query>> {
        self.inner.query()
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        self.inner.advance(output)?;
        let Progress { step, steps } = self.inner.progress();
        if step >= steps {
            self.finished = Some((self.inner.latents() - self.shift)?);
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.inner.progress()
    }

    fn latents(&self) -> &Tensor {
        self.finished.as_ref().unwrap_or_else(|| self.inner.latents())
    }

    fn denoised(&self) -> Option<&Tensor> {
        self.inner.denoised()
    }
}
