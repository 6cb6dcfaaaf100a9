//! The activation functions that a configuration may name.

use candle_core::Tensor;
use easel_kernels::{GroupNorm, add, gelu, silu};
use serde::Deserialize;

use crate::Result;

/// `act_fn` of diffusers' configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    #[serde(alias = "swish")]
    Silu,
    /// The Gaussian error linear unit, by the error function.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Applies the function to each element.
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => silu(x)?,
            Self::Gelu => gelu(x)?,
            Self::Relu => x.relu()?,
        })
    }

    /// Normalises, then applies the function; one operation where the kernels have one.
    pub(crate) fn after(self, norm: &GroupNorm, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => Ok(norm.forward_silu(x)?),
            Self::Gelu | Self::Relu => self.forward(&norm.forward(x)?),
        }
    }

    /// [`Activation::after`] of `x` (b, .., c) with the row's vector, (b, c), added at every position.
    pub(crate) fn after_sum(self, norm: &GroupNorm, x: &Tensor, vector: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => Ok(norm.forward_sum_silu(x, vector)?),
            Self::Gelu | Self::Relu => self.after(norm, &add(x, vector)?),
        }
    }
}
