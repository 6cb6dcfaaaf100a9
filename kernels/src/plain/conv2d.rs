//! Convolution by candle's, which wants channels first.

use candle_core::{Result, Tensor};

use super::{by_rows, product_dtype};
use crate::Conv2dConfig;

/// The weight (out, in, kh, kw) and the bias (out), in the type of the product.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
}

impl Conv2d {
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Self> {
        let dtype = product_dtype(weight.dtype(), weight.device());
        let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
        Ok(Self { weight: weight.to_dtype(dtype)?, bias, config })
    }

    /// `x` (b, h, w, in) to (b, h', w', out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, _) = x.dims4()?;
        let (out, _, kh, kw) = self.weight.dims4()?;
        let (out_h, out_w) = self.config.output_size((h, w), (kh, kw))?;
        if b == 0 {
            return Tensor::zeros((b, out_h, out_w, out), x.dtype(), x.device());
        }
        let padding = self.config.padding;
        // Weights from a file are contiguous; those without values, which only have a shape, must not become so.
        let weight = self.weight.contiguous()?;
        let y = by_rows(&x.to_dtype(self.weight.dtype())?, |row| {
            // candle pads all four sides alike, so the zeros are put there before.
            row.pad_with_zeros(1, padding.top, padding.bottom)?
                .pad_with_zeros(2, padding.left, padding.right)?
                .permute((0, 3, 1, 2))?
                .contiguous()?
                .conv2d(&weight, 0, self.config.stride, 1, 1)?
                .permute((0, 2, 3, 1))?
                .contiguous()
        })?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias)?.to_dtype(x.dtype()),
            None => y.to_dtype(x.dtype()),
        }
    }
}
