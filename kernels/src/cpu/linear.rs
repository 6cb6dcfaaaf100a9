//! The affine map: the product of one tap.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{
    product::{Packed, multiply},
    tensor, with_values,
};

/// The packed weight (in, out) and the bias (out).
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Arc<Packed>,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Packs the weight (out, in).
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (out, features) = weight.dims2()?;
        let weight =
            with_values(weight, |w| Ok(Packed::new(features, out, |depth, column| w[column * features + depth])))?;
        let bias = bias.map(|bias| with_values(bias, |values| Ok(values.to_vec()))).transpose()?;
        Ok(Self { weight: Arc::new(weight), bias })
    }

    /// `x` (.., in) to (.., out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let features = self.weight.depth();
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.weight.columns();
        }
        with_values(x, |values| {
            let rows = values.len() / features;
            let fill = |range: std::ops::Range<usize>, table: &mut [*const f32]| {
                let lines = values[range.start * features..range.end * features].chunks_exact(features);
                for (pointer, line) in table.iter_mut().zip(lines) {
                    *pointer = line.as_ptr();
                }
            };
            // SAFETY: each pointer is at a line of `features` values, the depth of the weight.
            let y = unsafe { multiply(rows, (1, features), &self.weight, self.bias.as_deref(), fill) };
            tensor(y, shape, x)
        })
    }
}
