//! The residual block of the UNet and of the autoencoder.
//!
//! After `ResnetBlock2D` of diffusers (`models/resnet.py`).

use candle_core::{D, Tensor};
use easel_kernels::{Conv2d, Conv2dConfig, GroupNorm, Linear, Padding};
use serde::Deserialize;

use super::activation::Activation;
use crate::Result;
use crate::weights::{Tensors, conv2d, group_norm, linear};

/// `resnet_time_scale_shift`: what the time embedding does to a block's features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// It is added before the second normalisation.
    #[default]
    Default,
    /// It scales and shifts after the second normalisation.
    ScaleShift,
}

/// What the residual blocks of one network have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetConfig {
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    pub(crate) activation: Activation,
    /// Channels of the time embedding; `None` in autoencoders.
    pub(crate) time: Option<usize>,
    pub(crate) time_shift: TimeScaleShift,
    /// What the sum with the shortcut is divided by.
    pub(crate) output_scale: f64,
}

/// Two normalised, activated 3x3 convolutions beside a shortcut, with the time embedding between them.
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    config: ResnetConfig,
}

impl ResnetBlock {
    pub(crate) fn new(weights: &Tensors, inputs: usize, outputs: usize, config: &ResnetConfig) -> Result<Self> {
        let same = Conv2dConfig { stride: 1, padding: Padding::same(1) };
        let time_outputs = match config.time_shift {
            TimeScaleShift::Default => outputs,
            TimeScaleShift::ScaleShift => 2 * outputs,
        };
        let time = config.time.map(|time| linear(&weights.pp("time_emb_proj"), time, time_outputs)).transpose()?;
        let shortcut = if inputs == outputs {
            None
        } else {
            Some(conv2d(&weights.pp("conv_shortcut"), inputs, outputs, 1, Conv2dConfig::default())?)
        };
        Ok(Self {
            norm1: group_norm(&weights.pp("norm1"), inputs, config.groups, config.eps)?,
            conv1: conv2d(&weights.pp("conv1"), inputs, outputs, 3, same)?,
            time,
            norm2: group_norm(&weights.pp("norm2"), outputs, config.groups, config.eps)?,
            conv2: conv2d(&weights.pp("conv2"), outputs, outputs, 3, same)?,
            shortcut,
            config: *config,
        })
    }

    /// (b, h, w, inputs) to (b, h, w, outputs).
    ///
    /// `emb` is the *activated* time embedding, (b, time): every block activates it alike, so the
    /// network does it once. It is given exactly when the block was built with a time size.
    pub(crate) fn forward(&self, x: &Tensor, emb: Option<&Tensor>) -> Result<Tensor> {
        let activation = self.config.activation;
        let time = match (&self.time, emb) {
            // (b, outputs), or twice the channels for scale and shift
            (Some(proj), Some(emb)) => Some(proj.forward(emb)?),
            _ => None,
        };
        let mut h = self.conv1.forward(&activation.after(&self.norm1, x)?)?;
        h = match (time, self.config.time_shift) {
            (None, _) => activation.after(&self.norm2, &h)?,
            (Some(time), TimeScaleShift::Default) => activation.after_sum(&self.norm2, &h, &time)?,
            (Some(time), TimeScaleShift::ScaleShift) => {
                let chunks = time.unsqueeze(1)?.unsqueeze(1)?.chunk(2, D::Minus1)?; // (b, 1, 1, outputs) each
                let scaled = self.norm2.forward(&h)?.broadcast_mul(&(&chunks[0] + 1.0)?)?;
                activation.forward(&scaled.broadcast_add(&chunks[1])?)?
            }
        };
        let sum = match &self.shortcut {
            Some(shortcut) => self.conv2.forward_add(&h, &shortcut.forward(x)?)?,
            None => self.conv2.forward_add(&h, x)?,
        };
        if self.config.output_scale == 1.0 { Ok(sum) } else { Ok((sum / self.config.output_scale)?) }
    }
}
