//! Rotary position embedding (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021).

use candle_core::{Result, Tensor, bail};

use crate::{RmsNorm, dispatch::form};

/// Which two channels of a head turn together by the angle i.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Neighbours, 2i and 2i + 1: FLUX and Z-Image.
    Interleaved,
    /// One of each half, i and i + d/2: the language models.
    Halves,
}

/// Turns the pairs of channels (x, y) of every head by its position's angles: to (x·cos - y·sin, y·cos + x·sin).
///
/// `x` is (b, n, heads·d) in f32, f16 or bf16, as is the result; `cos` and `sin` are (n, d/2) for all rows, or
/// (b, n, d/2), and are the same for every head. All is computed in f32, and rounded once.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize, pairing: Pairing) -> Result<Tensor> {
    check(x, cos, sin, heads, "rotary")?;
    form!(x, rotary in [cpu, cuda])(x, cos, sin, heads, pairing)
}

/// [`rotary`] of each head's RMSNorm: what transformers with normalised queries and keys (QK-norm) do before the attention.
///
/// `x`, `cos`, `sin` and the result are as in [`rotary`]; `norm` is of d channels. A form may round what comes between the
/// two to the type of `x`, or not round it.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn rms_norm_rope(
    x: &Tensor,
    norm: &RmsNorm,
    cos: &Tensor,
    sin: &Tensor,
    heads: usize,
    pairing: Pairing,
) -> Result<Tensor> {
    let d = 2 * check(x, cos, sin, heads, "rms_norm_rope")?;
    if norm.weight.dims() != [d] {
        bail!("rms_norm_rope: the norm is of {:?} channels, and a head has {d}", norm.weight.dims());
    }
    form!(x, rms_norm_rope in [cpu, cuda])(x, &norm.weight, norm.eps, cos, sin, heads, pairing)
}

/// The number of pairs in a head of `x`, where all shapes fit.
fn check(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize, operation: &str) -> Result<usize> {
    let (b, n, width) = x.dims3()?;
    if heads == 0 || width % (2 * heads) != 0 {
        bail!("{operation}: a width of {width} cannot be split into {heads} heads of channels in pairs");
    }
    let pairs = width / (2 * heads);
    for (name, angles) in [("cosines", cos), ("sines", sin)] {
        if angles.dims() != [n, pairs] && angles.dims() != [b, n, pairs] {
            bail!("{operation}: the {name} {:?} must be ({n}, {pairs}) or ({b}, {n}, {pairs})", angles.dims());
        }
    }
    if cos.rank() != sin.rank() {
        bail!("{operation}: the cosines {:?} and the sines {:?} must have one shape", cos.dims(), sin.dims());
    }
    Ok(pairs)
}
