//! From latents to a picture.
//!
//! After `Decoder` of diffusers (`models/autoencoders/vae.py`).

use candle_core::Tensor;
use easel_kernels::{Conv2d, Conv2dConfig, GroupNorm, Padding};

use super::kl_config::AutoencoderKlConfig;
use super::mid_block::{EPS, MidBlock, resnet_config};
use crate::Result;
use crate::denoisers::resample::Upsample;
use crate::denoisers::resnet::ResnetBlock;
use crate::weights::{Tensors, conv2d, group_norm};

/// The decoding half of an autoencoder.
pub(crate) struct Decoder {
    conv_in: Conv2d,
    mid: MidBlock,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

struct Level {
    resnets: Vec<ResnetBlock>,
    upsample: Option<Upsample>,
}

impl Decoder {
    pub(crate) fn new(weights: &Tensors, config: &AutoencoderKlConfig) -> Result<Self> {
        let same = Conv2dConfig { stride: 1, padding: Padding::same(1) };
        let widths = config.decoder_channels();
        let (first, last) = (widths[widths.len() - 1], widths[0]);
        let mut inputs = first;
        let mut levels = Vec::with_capacity(widths.len());
        for (level, &outputs) in widths.iter().rev().enumerate() {
            let weights = weights.pp("up_blocks").pp(level);
            let mut resnets = Vec::with_capacity(config.layers_per_block + 1);
            for layer in 0..=config.layers_per_block {
                let weights = weights.pp("resnets").pp(layer);
                resnets.push(ResnetBlock::new(&weights, inputs, outputs, &resnet_config(config))?);
                inputs = outputs;
            }
            let double = level + 1 < widths.len();
            let upsample = double.then(|| Upsample::new(&weights.pp("upsamplers.0"), outputs));
            levels.push(Level { resnets, upsample: upsample.transpose()? });
        }
        Ok(Self {
            conv_in: conv2d(&weights.pp("conv_in"), config.latent_channels, first, 3, same)?,
            mid: MidBlock::new(&weights.pp("mid_block"), first, config)?,
            levels,
            norm_out: group_norm(&weights.pp("conv_norm_out"), last, config.norm_num_groups, EPS)?,
            conv_out: conv2d(&weights.pp("conv_out"), last, config.out_channels, 3, same)?,
        })
    }

    /// (b, h, w, `latent_channels`) to (b, H, W, `out_channels`).
    pub(crate) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.mid.forward(&self.conv_in.forward(latents)?)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(upsample) = &level.upsample {
                let (_, h, w, _) = x.dims4()?;
                x = upsample.forward(&x, (2 * h, 2 * w))?; // (b, 2h, 2w, c)
            }
        }
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?)
    }
}
