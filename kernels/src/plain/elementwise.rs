//! The activations and the resize, element by element.

use candle_core::{D, Result, Tensor};

use super::sum_dtype;

/// Computes `f` in f32 at least, and rounds once at the end.
fn in_f32(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    f(&x.to_dtype(sum_dtype(x.dtype()))?)?.to_dtype(x.dtype())
}

pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::silu)
}

pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::gelu_erf)
}

pub(crate) fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::gelu)
}

/// `x · sigmoid(1.702 x)`, which is SiLU at another scale.
pub(crate) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| (x * 1.702)?.silu()? / 1.702)
}

/// `x` (.., 2d) to (.., d).
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    let d = x.dim(D::Minus1)? / 2;
    in_f32(x, |x| x.narrow(D::Minus1, 0, d)? * x.narrow(D::Minus1, d, d)?.gelu_erf()?)
}

/// `x` (b, .., c) and `y` of the same shape or (b, c).
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let mut y = y.to_dtype(x.dtype())?;
    if x.dims() == y.dims() {
        return x + y;
    }
    while y.rank() < x.rank() {
        y = y.unsqueeze(1)?;
    }
    x.broadcast_add(&y)
}

/// `residual + gate · x`: (b, n, c) both, `gate` (b, c).
pub(crate) fn gated_add(residual: &Tensor, gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    let dtype = sum_dtype(residual.dtype());
    let gated = x.to_dtype(dtype)?.broadcast_mul(&gate.to_dtype(dtype)?.unsqueeze(1)?)?;
    (residual.to_dtype(dtype)? + gated)?.to_dtype(residual.dtype())
}

/// `x` (b, h0, w0, c) to (b, h, w, c).
pub(crate) fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let pick = |from: usize, to: usize| {
        let indices: Vec<u32> = nearest(from, to).map(|index| index as u32).collect();
        Tensor::from_vec(indices, to, x.device())
    };
    let (_, height, width, _) = x.dims4()?;
    x.contiguous()?.index_select(&pick(height, h)?, 1)?.index_select(&pick(width, w)?, 2)
}

/// The source index of each of `to` pixels in a line of `from`.
pub(crate) fn nearest(from: usize, to: usize) -> impl Iterator<Item = usize> {
    let scale = from as f32 / to as f32;
    (0..to).map(move |i| ((i as f32 * scale) as usize).min(from - 1))
}
