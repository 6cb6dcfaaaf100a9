//! Inpainting by blending: after each model call, what lies outside of the mask is put back to the picture that was given.
//!
//! Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", 2022, algorithm 1 without its jumps
//! back, as diffusers' inpainting pipelines have it for models that know nothing of masks.

use candle_core::Tensor;

use super::machine::mix;
use crate::Result;

/// What is painted anew, and what of the given picture stays.
#[derive(Debug, Clone)]
pub struct Repaint {
    /// The given picture's latents, (c, h, w).
    pub clean: Tensor,
    /// The standard normal noise that they are brought to each step's noise level with, (c, h, w).
    pub noise: Tensor,
    /// 1 where the picture is painted anew and 0 where it stays, (1, h, w).
    pub mask: Tensor,
}

impl Repaint {
    /// The latents inside of the mask, and outside of it the clean ones and the noise in these shares.
    pub(super) fn blend(&self, latents: &Tensor, (clean, noise): (f64, f64)) -> Result<Tensor> {
        let kept = mix(&[(clean, &self.clean), (noise, &self.noise)])?;
        let outside = self.mask.affine(-1.0, 1.0)?;
        Ok((outside.broadcast_mul(&kept)? + self.mask.broadcast_mul(latents)?)?)
    }
}
