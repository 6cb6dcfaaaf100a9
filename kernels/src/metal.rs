//! The Metal forms: candle's fused operations, where they compute what the operation promises.
//!
//! candle has fused attention for some head sizes only, so heads of other sizes are filled up with zeros, which change
//! neither a score nor a sum. Its fused normalisations sum in f32, as the plain forms do. Everything else on Metal is
//! the plain form's chain of candle's operations.
//!
//! Not yet run by us: `scripts/check-metal` compiles them, and the tests hold on the CPU whatever candle computes there, too.

use candle_core::{DType, Result, Tensor};

use crate::{plain, plain_forms};

/// Head sizes of candle's fused attention.
const HEADS: [usize; 7] = [32, 64, 72, 80, 96, 128, 256];

/// Whether these forms are to compute `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_metal() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && !plain_forms()
}

/// `q` (b, n, heads·d), `k` and `v` (b, m, heads·d), `mask` (b, heads, n, m) or none; gives (b, n, heads·d).
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let size = q.dim(2)? / heads;
    let (n, m) = (q.dim(1)?, k.dim(1)?);
    // candle leaves the mask out where there is one query, and cannot have more queries than keys under a mask.
    let masked = mask.is_none() || (n > 1 && n <= m);
    // The form for one query needs as many keys as queries at least, which is any number but none.
    match HEADS.into_iter().find(|&head| head >= size).filter(|_| masked && n > 0 && m > 0) {
        Some(head) => filled_up(q, k, v, heads, head, |q, k, v| {
            let mask = mask.map(|mask| mask.to_dtype(q.dtype())).transpose()?;
            candle_nn::ops::sdpa(q, k, v, mask.as_ref(), false, (size as f32).sqrt().recip(), 1.0)
        }),
        None => plain::attention(q, k, v, heads, mask),
    }
}

/// Has `fused` compute attention over (b, heads, n, `head`), with zeros where the heads are smaller.
fn filled_up(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    head: usize,
    fused: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, n, width) = q.dims3()?;
    let size = width / heads;
    let split = |x: &Tensor| {
        let (b, n, _) = x.dims3()?;
        x.reshape((b, n, heads, size))?.transpose(1, 2)?.pad_with_zeros(3, 0, head - size)?.contiguous()
    };
    fused(&split(q)?, &split(k)?, &split(v)?)?.narrow(3, 0, size)?.transpose(1, 2)?.reshape((b, n, width))
}

/// `x` (.., c) with statistics for each vector of the last dimension.
pub(crate) fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    match (weight, bias) {
        (Some(weight), Some(bias)) => in_f32(x, |x| candle_nn::ops::layer_norm(x, weight, bias, eps as f32)),
        // candle's has no form without one of them.
        _ => plain::layer_norm(x, weight, bias, eps),
    }
}

/// `x` (.., c) divided by the root mean square of each vector of the last dimension.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    in_f32(x, |x| candle_nn::ops::rms_norm(x, weight, eps as f32))
}

/// Computes `f` of contiguous values in f32, the type that the layers keep their weights in, and rounds once.
fn in_f32(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    f(&x.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{distance, noise};

    #[test]
    fn heads_filled_up_with_zeros_give_the_same() -> Result<()> {
        for (n, m, heads, size, head) in [(5, 7, 2, 40, 64), (1, 3, 1, 160, 256), (9, 9, 3, 64, 64)] {
            let (q, kv) =
                (noise(1, (2, n, heads * size))?, [noise(2, (2, m, heads * size))?, noise(3, (2, m, heads * size))?]);
            let filled = filled_up(&q, &kv[0], &kv[1], heads, head, |q, k, v| {
                assert_eq!((q.dims(), k.dims()), (&[2, heads, n, head][..], &[2, heads, m, head][..]));
                let scores = (q.matmul(&k.t()?)? / (size as f64).sqrt())?;
                candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)
            })?;
            let plain = plain::attention(&q, &kv[0], &kv[1], heads, None)?;
            assert!(distance(&filled, &plain)? < 1e-6, "{size} in {head}");
        }
        Ok(())
    }

    #[test]
    fn fused_normalisations_are_the_plain_ones() -> Result<()> {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = noise(4, (2, 5, 96))?.to_dtype(dtype)?.transpose(0, 1)?;
            let (weight, bias) = (noise(5, 96)?, noise(6, 96)?);
            let pairs = [
                (
                    layer_norm(&x, Some(&weight), Some(&bias), 1e-5)?,
                    plain::layer_norm(&x, Some(&weight), Some(&bias), 1e-5)?,
                ),
                (layer_norm(&x, Some(&weight), None, 1e-5)?, plain::layer_norm(&x, Some(&weight), None, 1e-5)?),
                (rms_norm(&x, &weight, 1e-6)?, plain::rms_norm(&x, &weight, 1e-6)?),
            ];
            for (fused, plain) in pairs {
                assert_eq!(fused.dtype(), dtype);
                // One value in the last place of bf16 is 4e-3.
                assert!(distance(&fused, &plain)? < if dtype == DType::F32 { 1e-6 } else { 1e-3 });
            }
        }
        Ok(())
    }
}
