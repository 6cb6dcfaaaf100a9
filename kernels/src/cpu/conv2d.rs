//! Convolution: the product of one tap for each place of the window, without im2col; or Winograd's form of it.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Result, Tensor};
use half::bf16;

use super::{
    element::{Element, in_own_type},
    linear::Right,
    product::{Addends, multiply},
    product_bf16, tensor,
    winograd::{Sizes, Tile, Winograd},
    with, with_bf16, with_some, with_values,
};
use crate::{Conv2dConfig, dispatch::direct_convolutions};

/// The packed weight and the bias (out).
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Weight,
    bias: Option<Vec<f32>>,
    config: Conv2dConfig,
    kernel: (usize, usize),
}

#[derive(Debug, Clone)]
enum Weight {
    /// (kh · kw · in, out).
    Taps(Right),
    Winograd(Arc<Winograd>),
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
        let weight = match tile(&[out, channels, kh, kw], config.stride, weight.dtype()) {
            Some(tile) => Weight::Winograd(Arc::new(Winograd::new(weight, tile)?)),
            None => Weight::Taps(Right::new(weight, channels, (taps * channels, out), |depth, column| {
                let (tap, channel) = (depth / channels, depth % channels);
                (column * channels + channel) * taps + tap
            })?),
        };
        let bias = bias.map(|bias| with_values(bias, |values| Ok(values.to_vec()))).transpose()?;
        Ok(Self { weight, bias, config, kernel: (kh, kw) })
    }

    /// Whether a residual like `x` can be added by the convolution itself: a product of bf16 values takes no others.
    pub(crate) fn adds(&self, x: &Tensor) -> bool {
        match &self.weight {
            Weight::Taps(weight) => weight.adds(x),
            Weight::Winograd(_) => true,
        }
    }

    /// `x` (b, h, w, in) to (b, h', w', out), with the residual of that shape added.
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let weight = match &self.weight {
            Weight::Winograd(weight) => return in_own_type!(x, winograd(self, weight, x, residual)),
            Weight::Taps(weight) => weight,
        };
        let (b, h, w, channels) = x.dims4()?;
        let result = self.config.output_size((h, w), self.kernel)?;
        let (pixels, taps) = (b * result.0 * result.1, self.kernel.0 * self.kernel.1);
        let shape = (b, result.0, result.1, weight.columns());
        let bias = self.bias.as_deref();
        match weight {
            Right::F32(weight) => with_values(x, |values| {
                let beyond = vec![0.0; channels];
                let geometry = self.geometry((h, w), result, values, &beyond);
                let fill = |range: Range<usize>, table: &mut [*const f32]| geometry.pointers(range, table);
                with_some(residual, |residual| {
                    let addends = Addends { bias, residual };
                    // SAFETY: `pointers` gives pointers at `channels` values, and the weight's depth is taps · channels.
                    let y = unsafe { multiply(pixels, (taps, channels), weight, addends, fill) };
                    tensor(y, shape, x)
                })
            }),
            Right::Bf16(weight) => with_bf16(x, |values| {
                let beyond = vec![bf16::ZERO; channels];
                let geometry = self.geometry((h, w), result, values, &beyond);
                let fill = |range: Range<usize>, table: &mut [*const bf16]| geometry.pointers(range, table);
                with_some(residual, |residual| {
                    let addends = Addends { bias, residual };
                    // SAFETY: as above, and bf16 was chosen because such products are taken.
                    let y = unsafe { product_bf16::multiply(pixels, (taps, channels), weight, addends, fill) };
                    Tensor::from_vec(y, shape, x.device())?.to_dtype(x.dtype())
                })
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

/// Winograd's tile for a layer, if that is how it is computed.
///
/// It is not where bf16 is multiplied as it is: transformed values that were rounded to bf16 would give twice the direct form's
/// error, and with products in f32 the quarter of the multiplications is no faster than the direct form on vectors (by AMX
/// far slower), for eight times the weights.
pub(super) fn tile(shape: &[usize], stride: usize, dtype: DType) -> Option<Tile> {
    let as_it_is = || dtype == DType::BF16 && product_bf16::form(shape[1]).is_some();
    Tile::of(shape, stride).filter(|_| !as_it_is() && !direct_convolutions())
}

fn winograd<E: Element>(conv: &Conv2d, weight: &Winograd, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let (images, h, w, _) = x.dims4()?;
    let result = conv.config.output_size((h, w), conv.kernel)?;
    let padding = (conv.config.padding.top, conv.config.padding.left);
    let (sizes, bias) = (Sizes { images, image: (h, w), result, padding }, conv.bias.as_deref());
    let y = with(x, |values: &[E]| {
        with_some(residual, |residual| Ok(weight.convolve(values, sizes, Addends { bias, residual })))
    })?;
    tensor(y, (images, result.0, result.1, weight.columns()), x)
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
