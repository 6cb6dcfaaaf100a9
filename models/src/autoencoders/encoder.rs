//! From a picture to the moments of its latents.
//!
//! After `Encoder` of diffusers (`models/autoencoders/vae.py`).

use candle_core::Tensor;
use easel_kernels::{Conv2d, Conv2dConfig, GroupNorm, Padding};

use super::kl_config::AutoencoderKlConfig;
use super::mid_block::{EPS, MidBlock, resnet_config};
use crate::Result;
use crate::denoisers::resample::Downsample;
use crate::denoisers::resnet::ResnetBlock;
use crate::weights::{Tensors, conv2d, group_norm};

/// The encoding half of an autoencoder.
pub(crate) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

struct Level {
    resnets: Vec<ResnetBlock>,
    downsample: Option<Downsample>,
}

impl Encoder {
    pub(crate) fn new(weights: &Tensors, config: &AutoencoderKlConfig) -> Result<Self> {
        let same = Conv2dConfig { stride: 1, padding: Padding::same(1) };
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut inputs = first;
        let mut levels = Vec::with_capacity(widths.len());
        for (level, &outputs) in widths.iter().enumerate() {
            let weights = weights.pp("down_blocks").pp(level);
            let mut resnets = Vec::with_capacity(config.layers_per_block);
            for layer in 0..config.layers_per_block {
                let weights = weights.pp("resnets").pp(layer);
                resnets.push(ResnetBlock::new(&weights, inputs, outputs, &resnet_config(config))?);
                inputs = outputs;
            }
            let halve = level + 1 < widths.len();
            let downsample = halve.then(|| Downsample::new(&weights.pp("downsamplers.0"), outputs, 0));
            levels.push(Level { resnets, downsample: downsample.transpose()? });
        }
        Ok(Self {
            conv_in: conv2d(&weights.pp("conv_in"), config.in_channels, first, 3, same)?,
            levels,
            mid: MidBlock::new(&weights.pp("mid_block"), last, config)?,
            norm_out: group_norm(&weights.pp("conv_norm_out"), last, config.norm_num_groups, EPS)?,
            conv_out: conv2d(&weights.pp("conv_out"), last, 2 * config.latent_channels, 3, same)?,
        })
    }

    /// (b, H, W, `in_channels`) to means and log variances, (b, h, w, 2 `latent_channels`).
    pub(crate) fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(pictures)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(&x)?; // (b, h/2, w/2, c)
            }
        }
        x = self.mid.forward(&x)?;
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?)
    }
}
