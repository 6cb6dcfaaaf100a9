//! The autoencoder of latent diffusion models, with a normal posterior.
//!
//! Kingma and Welling, "Auto-Encoding Variational Bayes", 2014; Rombach et al., 2022. Layout and behaviour are those
//! of `AutoencoderKL` and `AutoencoderKLFlux2` of diffusers.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use easel_kernels::Linear;

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::kl_config::AutoencoderKlConfig;
use super::patches::Patches;
use super::posterior::Posterior;
use super::preview::Preview;
use super::tiling::Tiling;
use crate::Result;
use crate::weights::{Tensors, pointwise};

/// Pictures to latents and back.
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    encoder: Encoder,
    quant: Option<Linear>,
    post_quant: Option<Linear>,
    decoder: Decoder,
    patches: Option<Patches>,
    preview: OnceLock<Preview>,
    dtype: DType,
    device: Device,
}

impl AutoencoderKl {
    /// Builds the network; the weights have diffusers' names.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape than the configuration asks for.
    pub fn new(config: &AutoencoderKlConfig, weights: &Tensors) -> Result<Self> {
        let (latent, moments) = (config.latent_channels, 2 * config.latent_channels);
        let quant = || pointwise(&weights.pp("quant_conv"), moments, moments);
        let post_quant = || pointwise(&weights.pp("post_quant_conv"), latent, latent);
        Ok(Self {
            config: config.clone(),
            encoder: Encoder::new(&weights.pp("encoder"), config)?,
            quant: config.use_quant_conv.then(quant).transpose()?,
            post_quant: config.use_post_quant_conv.then(post_quant).transpose()?,
            decoder: Decoder::new(&weights.pp("decoder"), config)?,
            patches: config.batch_norm_eps.map(|eps| Patches::new(&weights.pp("bn"), config, eps)).transpose()?,
            preview: OnceLock::new(),
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// The tiling that diffusers would use: tiles of the native size.
    pub fn native_tiling(&self) -> Tiling {
        let (height, width) = self.config.sample_size.sides();
        Tiling::new(height.min(width) / self.config.factor())
    }

    /// What the encoder says about pictures (b, `in_channels`, H, W) in -1..1: moments of latents (b, c, h, w),
    /// not scaled.
    ///
    /// With a tiling, pictures larger than a tile are encoded tile by tile.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn encode(&self, pictures: &Tensor, tiling: Option<&Tiling>) -> Result<Posterior> {
        let factor = self.config.factor();
        let x = channels_last(pictures, self.dtype)?; // (b, H, W, 3)
        let (_, height, width, _) = x.dims4()?;
        let moments = match tiling {
            Some(tiling) if tiling.splits(height.div_ceil(factor), width.div_ceil(factor)) => {
                tiling.encode(&x, factor, |tile| self.moments(tile))?
            }
            _ => self.moments(&x)?,
        };
        Posterior::new(&channels_first(&moments, pictures)?)
    }

    /// Pictures (b, `out_channels`, H, W), about -1..1 and not clamped, of latents (b, c, h, w) that are not scaled.
    ///
    /// With a tiling, latents larger than a tile are decoded tile by tile.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn decode(&self, latents: &Tensor, tiling: Option<&Tiling>) -> Result<Tensor> {
        let x = channels_last(latents, self.dtype)?; // (b, h, w, c)
        let (_, height, width, _) = x.dims4()?;
        let pictures = match tiling {
            Some(tiling) if tiling.splits(height, width) => {
                tiling.decode(&x, self.config.factor(), |tile| self.pixels(tile))?
            }
            _ => self.pixels(&x)?,
        };
        channels_first(&pictures, latents)
    }

    /// [`Self::decode`] one row after the other, which needs the memory of one row only.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn decode_sliced(&self, latents: &Tensor, tiling: Option<&Tiling>) -> Result<Tensor> {
        let rows = (0..latents.dim(0)?)
            .map(|row| self.decode(&latents.narrow(0, row, 1)?, tiling))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }

    /// Brings the encoder's latents, (b, c, h, w), to the scale that the denoiser works in; FLUX.2's to its squares, too.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        if let Some(patches) = &self.patches {
            return patches.scale(latents);
        }
        let scale = self.config.scaling_factor;
        if let Some((mean, deviation)) = self.statistics(latents)? {
            return Ok((latents.broadcast_sub(&mean)? * scale)?.broadcast_div(&deviation)?);
        }
        Ok(((latents - self.config.shift_factor.unwrap_or(0.0))? * scale)?)
    }

    /// Undoes [`Self::scale`].
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor> {
        if let Some(patches) = &self.patches {
            return patches.unscale(latents);
        }
        let scale = self.config.scaling_factor;
        if let Some((mean, deviation)) = self.statistics(latents)? {
            return Ok((latents.broadcast_mul(&deviation)? / scale)?.broadcast_add(&mean)?);
        }
        Ok(((latents / scale)? + self.config.shift_factor.unwrap_or(0.0))?)
    }

    /// The map from scaled latents to colours, fitted at the first call.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn preview(&self) -> Result<&Preview> {
        if let Some(preview) = self.preview.get() {
            return Ok(preview);
        }
        let encode = |pictures: &Tensor| self.scale(self.encode(pictures, None)?.mode());
        let fitted = Preview::fit(self.config.factor() * self.config.patch(), &self.device, encode)?;
        // Two threads may fit it at once; both get the same, and the first one's is kept.
        Ok(self.preview.get_or_init(|| fitted))
    }

    /// Mean and deviation of the latents by channel, (1, c, 1, 1), where the model has them.
    fn statistics(&self, like: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let (Some(mean), Some(deviation)) = (&self.config.latents_mean, &self.config.latents_std) else {
            return Ok(None);
        };
        let row = |values: &[f64]| -> Result<Tensor> {
            Ok(Tensor::new(values, like.device())?.to_dtype(like.dtype())?.reshape((1, values.len(), 1, 1))?)
        };
        Ok(Some((row(mean)?, row(deviation)?)))
    }

    /// (b, H, W, 3) to (b, h, w, 2c).
    fn moments(&self, pictures: &Tensor) -> Result<Tensor> {
        let moments = self.encoder.forward(pictures)?;
        Ok(self.quant.as_ref().map_or(Ok(moments.clone()), |quant| quant.forward(&moments))?)
    }

    /// (b, h, w, c) to (b, H, W, 3).
    fn pixels(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.post_quant {
            Some(post_quant) => self.decoder.forward(&post_quant.forward(latents)?),
            None => self.decoder.forward(latents),
        }
    }
}

fn channels_last(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(x.to_dtype(dtype)?.permute((0, 2, 3, 1))?.contiguous()?)
}

/// In the type of `like`.
fn channels_first(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(like.dtype())?)
}

#[cfg(test)]
mod tests;
