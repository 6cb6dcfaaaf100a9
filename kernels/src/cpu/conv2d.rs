//! Convolution: the product of one tap for each place of the window, without im2col.

use std::ops::Range;

use candle_core::{Result, Tensor};
use half::bf16;

use super::{linear::Right, product::multiply, product_bf16, tensor, with_bf16, with_values};
use crate::Conv2dConfig;

/// The packed weight (kh · kw · in, out) and the bias (out).
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Right,
    bias: Option<Vec<f32>>,
    config: Conv2dConfig,
    kernel: (usize, usize),
}

/// The sizes of one convolution.
struct Geometry<'a, T> {
    config: Conv2dConfig,
    kernel: (usize, usize),
    image: (usize, usize),
    result: (usize, usize),
    channels: usize,
    values: &'a [T],
    /// What the window sees beyond the image: zeros, as many as there are channels.
    beyond: &'a [T],
}

impl Conv2d {
    /// Packs the weight (out, in, kh, kw).
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Self> {
        let (out, channels, kh, kw) = weight.dims4()?;
        let taps = kh * kw;
        let weight = Right::new(weight, channels, (taps * channels, out), |depth, column| {
            let (tap, channel) = (depth / channels, depth % channels);
            (column * channels + channel) * taps + tap
        })?;
        let bias = bias.map(|bias| with_values(bias, |values| Ok(values.to_vec()))).transpose()?;
        Ok(Self { weight, bias, config, kernel: (kh, kw) })
    }

    /// `x` (b, h, w, in) to (b, h', w', out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, channels) = x.dims4()?;
        let result = self.config.output_size((h, w), self.kernel)?;
        let (pixels, taps) = (b * result.0 * result.1, self.kernel.0 * self.kernel.1);
        let shape = (b, result.0, result.1, self.weight.columns());
        let bias = self.bias.as_deref();
        match &self.weight {
            Right::F32(weight) => with_values(x, |values| {
                let beyond = vec![0.0; channels];
                let geometry = self.geometry((h, w), result, values, &beyond);
                let fill = |range: Range<usize>, table: &mut [*const f32]| geometry.pointers(range, table);
                // SAFETY: `pointers` gives pointers at `channels` values, and the weight's depth is taps · channels.
                let y = unsafe { multiply(pixels, (taps, channels), weight, bias, fill) };
                tensor(y, shape, x)
            }),
            Right::Bf16(weight) => with_bf16(x, |values| {
                let beyond = vec![bf16::ZERO; channels];
                let geometry = self.geometry((h, w), result, values, &beyond);
                let fill = |range: Range<usize>, table: &mut [*const bf16]| geometry.pointers(range, table);
                // SAFETY: as above, and bf16 was chosen because such products are taken.
                let y = unsafe { product_bf16::multiply(pixels, (taps, channels), weight, bias, fill) };
                Tensor::from_vec(y, shape, x.device())?.to_dtype(x.dtype())
            }),
        }
    }

    /// The sizes of the convolution of these images.
    fn geometry<'a, T>(
        &self,
        image: (usize, usize),
        result: (usize, usize),
        values: &'a [T],
        beyond: &'a [T],
    ) -> Geometry<'a, T> {
        let (config, kernel, channels) = (self.config, self.kernel, beyond.len());
        Geometry { config, kernel, image, result, channels, values, beyond }
    }
}

impl<T> Geometry<'_, T> {
    /// Where the window of each pixel of `range`, counted over all rows of the batch, finds its values.
    fn pointers(&self, range: Range<usize>, table: &mut [*const T]) {
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
