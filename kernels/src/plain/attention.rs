//! Attention with all scores in memory.

use candle_core::{Result, Tensor};

use super::{product_dtype, sum_dtype};

/// `q` (b, n, heads·d), `k` and `v` (b, m, heads·d), `mask` (b, heads, n, m) or none; gives (b, n, heads·d).
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let (b, n, width) = q.dims3()?;
    let d = width / heads;
    let product = product_dtype(q.dtype(), q.device());
    let split = |x: &Tensor| {
        let (b, n, _) = x.dims3()?;
        x.to_dtype(product)?.reshape((b, n, heads, d))?.transpose(1, 2)?.contiguous()
    };
    let (q_heads, k, v) = (split(q)?, split(k)?, split(v)?);
    let scores = (q_heads.matmul(&k.t()?)? / (d as f64).sqrt())?.to_dtype(sum_dtype(product))?;
    let scores = match mask {
        Some(mask) => (scores + mask.to_dtype(sum_dtype(product))?)?,
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores.contiguous()?)?.to_dtype(product)?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((b, n, width))?.to_dtype(q.dtype())
}
