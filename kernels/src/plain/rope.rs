//! Rotary position embedding, pair by pair.

use candle_core::{DType, Result, Tensor};

use super::sum_dtype;
use crate::Pairing;

/// `x` (b, n, heads·d), `cos` and `sin` (n, d/2) or (b, n, d/2).
pub(crate) fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize, pairing: Pairing) -> Result<Tensor> {
    let (b, n, width) = x.dims3()?;
    let pairs = width / (2 * heads);
    // Where the two channels of a pair are told apart.
    let (shape, axis) = match pairing {
        Pairing::Interleaved => ((b, n, heads, pairs, 2), 4),
        Pairing::Halves => ((b, n, heads, 2, pairs), 3),
    };
    let split = x.to_dtype(sum_dtype(x.dtype()))?.reshape(shape)?;
    let (first, second) = (split.narrow(axis, 0, 1)?.squeeze(axis)?, split.narrow(axis, 1, 1)?.squeeze(axis)?);
    let angles = |of: &Tensor| of.to_dtype(DType::F32)?.to_dtype(split.dtype())?.unsqueeze(of.rank() - 1);
    let (cos, sin) = (angles(cos)?, angles(sin)?);
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Tensor::stack(&[turned_first, turned_second], axis)?.reshape((b, n, width))?.to_dtype(x.dtype())
}

/// [`rotary`] of what [`rms_norm`](super::rms_norm) gives for each head: `weight` (d).
pub(crate) fn rms_norm_rope(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    cos: &Tensor,
    sin: &Tensor,
    heads: usize,
    pairing: Pairing,
) -> Result<Tensor> {
    let (b, n, width) = x.dims3()?;
    let normed = super::rms_norm(&x.reshape((b, n, heads, width / heads))?, weight, eps)?;
    rotary(&normed.reshape((b, n, width))?, cos, sin, heads, pairing)
}
