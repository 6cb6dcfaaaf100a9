//! The affine map as a matrix product.

use candle_core::{Result, Tensor};

use super::{by_rows, product_dtype};

/// The weight transposed (in, out), and the bias, in the type of the product.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let dtype = product_dtype(weight.dtype(), weight.device());
        let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
        Ok(Self { weight: weight.to_dtype(dtype)?.t()?, bias })
    }

    /// `x` (.., in) to (.., out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (features, out) = self.weight.dims2()?;
        let rows = if x.rank() > 1 { x.dim(0)? } else { 1 };
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        if x.elem_count() == 0 {
            return Tensor::zeros(shape, x.dtype(), x.device());
        }
        let input = x.to_dtype(self.weight.dtype())?.reshape((rows, x.elem_count() / (rows * features), features))?;
        let y = by_rows(&input, |row| {
            let (b, n, _) = row.dims3()?;
            row.reshape((b * n, features))?.matmul(&self.weight)?.reshape((b, n, out))
        })?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        y.reshape(shape)?.to_dtype(x.dtype())
    }
}
