//! Halving and doubling an image's sides.

use candle_core::Tensor;
use easel_kernels::{Conv2d, Conv2dConfig, Padding, upsample_nearest};

use crate::Result;
use crate::weights::{Tensors, conv2d};

/// A 3x3 convolution of stride 2.
pub(crate) struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// `padding` is diffusers' `downsample_padding`, where 0 means one row below and one column to the right.
    pub(crate) fn new(weights: &Tensors, channels: usize, padding: usize) -> Result<Self> {
        let padding = match padding {
            0 => Padding { bottom: 1, right: 1, ..Padding::default() },
            padding => Padding::same(padding),
        };
        let config = Conv2dConfig { stride: 2, padding };
        Ok(Self { conv: conv2d(&weights.pp("conv"), channels, channels, 3, config)? })
    }

    /// (b, h, w, c) to (b, h', w', c), with half the rows and columns, rounded up where the padding is 1.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.conv.forward(x)?)
    }
}

/// The nearest pixel, then a 3x3 convolution.
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(crate) fn new(weights: &Tensors, channels: usize) -> Result<Self> {
        let config = Conv2dConfig { stride: 1, padding: Padding::same(1) };
        Ok(Self { conv: conv2d(&weights.pp("conv"), channels, channels, 3, config)? })
    }

    /// (b, h0, w0, c) to (b, h, w, c).
    pub(crate) fn forward(&self, x: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
        Ok(self.conv.forward(&upsample_nearest(x, h, w)?)?)
    }
}
