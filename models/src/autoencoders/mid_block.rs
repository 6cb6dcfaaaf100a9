//! The middle of the encoder and of the decoder.

use candle_core::Tensor;

use super::attention::SpatialAttention;
use super::kl_config::AutoencoderKlConfig;
use crate::Result;
use crate::denoisers::resnet::{ResnetBlock, ResnetConfig, TimeScaleShift};
use crate::weights::Tensors;

/// The epsilon of an autoencoder's group normalisations, which no configuration names.
pub(crate) const EPS: f64 = 1e-6;

/// What all residual blocks of an autoencoder have in common.
pub(crate) fn resnet_config(config: &AutoencoderKlConfig) -> ResnetConfig {
    ResnetConfig {
        groups: config.norm_num_groups,
        eps: EPS,
        activation: config.act_fn,
        time: None,
        time_shift: TimeScaleShift::Default,
        output_scale: 1.0,
    }
}

/// Two residual blocks, with attention between them in most models.
pub(crate) struct MidBlock {
    first: ResnetBlock,
    attention: Option<SpatialAttention>,
    last: ResnetBlock,
}

impl MidBlock {
    pub(crate) fn new(weights: &Tensors, channels: usize, config: &AutoencoderKlConfig) -> Result<Self> {
        let resnet =
            |index| ResnetBlock::new(&weights.pp("resnets").pp(index), channels, channels, &resnet_config(config));
        let attention = || SpatialAttention::new(&weights.pp("attentions.0"), channels, config.norm_num_groups, EPS);
        Ok(Self {
            first: resnet(0)?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            last: resnet(1)?,
        })
    }

    /// (b, h, w, c) to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.last.forward(&x, None)
    }
}
