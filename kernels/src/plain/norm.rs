//! The normalisations, from means and squares.

use candle_core::{D, Result, Tensor};

use super::sum_dtype;

/// `x` (b, .., c) with statistics for each row and group.
pub(crate) fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let (rows, channels) = (x.dim(0)?, weight.dim(0)?);
    let positions = x.dims()[1..x.rank() - 1].iter().product::<usize>();
    let dtype = sum_dtype(x.dtype());
    // (b, n, g, c/g) to (b, g, n·c/g): candle sums a contiguous last dimension best.
    let grouped = x
        .to_dtype(dtype)?
        .reshape((rows, positions, groups, channels / groups))?
        .transpose(1, 2)?
        .reshape((rows, groups, positions * channels / groups))?;
    normalize(&grouped, eps)?
        .reshape((rows, groups, positions, channels / groups))?
        .transpose(1, 2)?
        .reshape(x.shape())?
        .broadcast_mul(&weight.to_dtype(dtype)?)?
        .broadcast_add(&bias.to_dtype(dtype)?)?
        .to_dtype(x.dtype())
}

/// `x` (.., c) with statistics for each vector of the last dimension.
pub(crate) fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let dtype = sum_dtype(x.dtype());
    let mut y = normalize(&x.to_dtype(dtype)?, eps)?;
    if let Some(weight) = weight {
        y = y.broadcast_mul(&weight.to_dtype(dtype)?)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.to_dtype(dtype)?)?;
    }
    y.to_dtype(x.dtype())
}

/// `x` (b, n, c), normalised over c; `scale` and `shift` (b, c).
pub(crate) fn ada_layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = sum_dtype(x.dtype());
    let of_row = |vectors: &Tensor| vectors.to_dtype(dtype)?.unsqueeze(1);
    normalize(&x.to_dtype(dtype)?, eps)?
        .broadcast_mul(&(of_row(scale)? + 1.0)?)?
        .broadcast_add(&of_row(shift)?)?
        .to_dtype(x.dtype())
}

/// `x` (.., c) divided by the root mean square of each vector of the last dimension.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = sum_dtype(x.dtype());
    let y = x.to_dtype(dtype)?;
    let scale = (y.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    y.broadcast_div(&scale)?.broadcast_mul(&weight.to_dtype(dtype)?)?.to_dtype(x.dtype())
}

/// Brings the last dimension to mean 0 and variance 1.
fn normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)
}
