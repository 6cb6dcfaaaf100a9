//! Convolution: the product of one tap for each place of the window, without im2col.

use std::{ops::Range, sync::Arc};

use candle_core::{Result, Tensor};

use super::{
    product::{Packed, multiply},
    tensor, with_values,
};
use crate::Conv2dConfig;

/// The packed weight (kh · kw · in, out) and the bias (out).
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Arc<Packed>,
    bias: Option<Vec<f32>>,
    config: Conv2dConfig,
    kernel: (usize, usize),
    /// What the window sees beyond the image: zeros, as many as there are channels.
    beyond: Arc<[f32]>,
}

/// The sizes of one convolution.
struct Geometry<'a> {
    config: Conv2dConfig,
    kernel: (usize, usize),
    image: (usize, usize),
    result: (usize, usize),
    channels: usize,
    values: &'a [f32],
    beyond: &'a [f32],
}

impl Conv2d {
    /// Packs the weight (out, in, kh, kw).
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Self> {
        let (out, channels, kh, kw) = weight.dims4()?;
        let taps = kh * kw;
        let weight = with_values(weight, |w| {
            Ok(Packed::new(taps * channels, out, |depth, column| {
                let (tap, channel) = (depth / channels, depth % channels);
                w[(column * channels + channel) * taps + tap]
            }))
        })?;
        let bias = bias.map(|bias| with_values(bias, |values| Ok(values.to_vec()))).transpose()?;
        Ok(Self { weight: Arc::new(weight), bias, config, kernel: (kh, kw), beyond: vec![0.0; channels].into() })
    }

    /// `x` (b, h, w, in) to (b, h', w', out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, channels) = x.dims4()?;
        let result = self.config.output_size((h, w), self.kernel)?;
        with_values(x, |values| {
            let geometry = Geometry {
                config: self.config,
                kernel: self.kernel,
                image: (h, w),
                result,
                channels,
                values,
                beyond: &self.beyond,
            };
            let (pixels, taps) = (b * result.0 * result.1, self.kernel.0 * self.kernel.1);
            // SAFETY: `pointers` gives pointers at `channels` values, and the weight's depth is taps · channels.
            let y = unsafe {
                multiply(pixels, (taps, channels), &self.weight, self.bias.as_deref(), |range, table| {
                    geometry.pointers(range, table);
                })
            };
            tensor(y, (b, result.0, result.1, self.weight.columns()), x)
        })
    }
}

impl Geometry<'_> {
    /// Where the window of each pixel of `range`, counted over all rows of the batch, finds its values.
    fn pointers(&self, range: Range<usize>, table: &mut [*const f32]) {
        let (stride, padding) = (self.config.stride, self.config.padding);
        let pitch = range.len();
        let (mut row, mut y, mut x) = {
            let (line, x) = (range.start / self.result.1, range.start % self.result.1);
            (line / self.result.0, line % self.result.0, x)
        };
        for index in 0..pitch {
            let image = &self.values[row * self.image.0 * self.image.1 * self.channels..];
            for ky in 0..self.kernel.0 {
                // Above the image the subtraction wraps to a number beyond any height, and so to the left.
                let at_y = (y * stride + ky).wrapping_sub(padding.top);
                for kx in 0..self.kernel.1 {
                    let at_x = (x * stride + kx).wrapping_sub(padding.left);
                    let pixel = if at_y < self.image.0 && at_x < self.image.1 {
                        &image[(at_y * self.image.1 + at_x) * self.channels..][..self.channels]
                    } else {
                        self.beyond
                    };
                    table[(ky * self.kernel.1 + kx) * pitch + index] = pixel.as_ptr();
                }
            }
            x += 1;
            if x == self.result.1 {
                (x, y) = (0, y + 1);
            }
            if y == self.result.0 {
                (y, row) = (0, row + 1);
            }
        }
    }
}
