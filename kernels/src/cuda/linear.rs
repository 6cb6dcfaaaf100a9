//! The affine map as one product with its bias.

use candle_core::{Result, Tensor};

use super::product::product;

/// The weight (out, in) and the bias (out), in the type that is computed in.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let bias = bias.map(|bias| bias.to_dtype(weight.dtype())?.contiguous()).transpose()?;
        Ok(Self { weight: weight.contiguous()?, bias })
    }

    /// `x` (.., in) to (.., out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, false)
    }

    /// `x` (.., in) to (.., out), followed by GELU's tanh approximation.
    pub(crate) fn forward_gelu_tanh(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, true)
    }

    fn apply(&self, x: &Tensor, gelu: bool) -> Result<Tensor> {
        let (out, features) = self.weight.dims2()?;
        let rows = if x.rank() > 1 { x.dim(0)? } else { 1 };
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        if x.elem_count() == 0 {
            return Tensor::zeros(shape, x.dtype(), x.device());
        }
        let count = x.elem_count() / features;
        let input = x.to_dtype(self.weight.dtype())?.contiguous()?.reshape((count, features))?;
        let y = product(&input, &self.weight, self.bias.as_ref(), count / rows, gelu && self.bias.is_some())?;
        let y = if gelu && self.bias.is_none() { crate::gelu_tanh(&y)? } else { y };
        y.reshape(shape)?.to_dtype(x.dtype())
    }
}
