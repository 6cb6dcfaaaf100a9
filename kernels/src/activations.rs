//! Element-wise activations.
//!
//! Each takes a tensor of any shape in f32, f16 or bf16, and gives one of the
//! same shape and type; only [`geglu`] halves the last dimension.

use candle_core::{D, Result, Tensor, bail};

use crate::dispatch::form;

/// `x · sigmoid(x)`, also called swish.
///
/// # Errors
/// If the device fails.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    form!(x, silu in [cpu, cuda])(x)
}

/// `x · Φ(x)` with the normal distribution function Φ, by the error function: the exact GELU (Hendrycks and Gimpel, 2016).
///
/// # Errors
/// If the device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    form!(x, gelu in [cpu, cuda])(x)
}

/// GELU by its tanh approximation, PyTorch's `approximate="tanh"`.
///
/// # Errors
/// If the device fails.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    form!(x, gelu_tanh in [cpu, cuda])(x)
}

/// `x · sigmoid(1.702 x)`, which OpenAI's CLIP models use.
///
/// # Errors
/// If the device fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    form!(x, quick_gelu in [cpu, cuda])(x)
}

/// `hidden · gelu(gate)` for `x` (.., 2d) that holds the hidden half and then the gate, as in diffusers; gives (.., d).
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width % 2 != 0 {
        bail!("geglu: the input {:?} must end in two halves of one size", x.dims());
    }
    form!(x, geglu in [cpu, cuda])(x)
}
