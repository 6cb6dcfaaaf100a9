//! FLUX.2's latents: squares of the encoder's, normalised by statistics that are kept with the weights.
//!
//! After `AutoencoderKLFlux2` of diffusers and the pipelines over it. A square of 2x2 latent pixels becomes one with four
//! times the channels; the running mean and variance of a batch normalisation bring each of those to mean 0 and
//! deviation 1 (Ioffe and Szegedy, "Batch Normalization", 2015).

use candle_core::{DType, Tensor};

use super::kl_config::AutoencoderKlConfig;
use crate::Result;
use crate::weights::Tensors;

/// Between the encoder's latents and the denoiser's.
pub(crate) struct Patches {
    /// (1, c, 1, 1) in f32.
    mean: Tensor,
    /// (1, c, 1, 1) in f32.
    deviation: Tensor,
    side: usize,
}

impl Patches {
    /// Reads the statistics; `eps` is added to the variance.
    pub(crate) fn new(weights: &Tensors, config: &AutoencoderKlConfig, eps: f64) -> Result<Self> {
        let side = config.patch();
        let channels = config.latent_channels * side * side;
        let weights = weights.to_dtype(DType::F32);
        let row = |name: &str| -> Result<Tensor> { Ok(weights.get(name, &[channels])?.reshape((1, channels, 1, 1))?) };
        Ok(Self { mean: row("running_mean")?, deviation: (row("running_var")? + eps)?.sqrt()?, side })
    }

    /// (b, c, h, w) to (b, 4c, h/2, w/2).
    pub(crate) fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = latents.dims4()?;
        let side = self.side;
        let squares = latents
            .reshape(vec![b, c, h / side, side, w / side, side])?
            .permute(vec![0, 1, 3, 5, 2, 4])? // (b, c, 2, 2, h/2, w/2)
            .reshape((b, c * side * side, h / side, w / side))?;
        let squares = squares.to_dtype(DType::F32)?.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)?;
        Ok(squares.to_dtype(latents.dtype())?)
    }

    /// Undoes [`Self::scale`].
    pub(crate) fn unscale(&self, squares: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = squares.dims4()?;
        let (side, channels) = (self.side, c / (self.side * self.side));
        let latents = squares.to_dtype(DType::F32)?.broadcast_mul(&self.deviation)?.broadcast_add(&self.mean)?;
        let latents = latents
            .reshape(vec![b, channels, side, side, h, w])?
            .permute(vec![0, 1, 4, 2, 5, 3])? // (b, c, h, 2, w, 2)
            .reshape((b, channels, h * side, w * side))?;
        Ok(latents.to_dtype(squares.dtype())?)
    }
}
