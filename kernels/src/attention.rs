//! Scaled dot-product attention with several heads.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::{count, cpu, cuda, dispatch::form};

/// `softmax(q · kᵀ / sqrt(d) + mask) · v` for each head.
///
/// `q` is (b, n, heads·d), `k` and `v` are (b, m, heads·d), all of one type
/// (f32, f16 or bf16); the result is (b, n, heads·d). The heads lie one after
/// the other in the last dimension. `mask` is added to the scores; its shape
/// broadcasts to (b, heads, n, m), and a plain (n, m) will do. Minus infinity
/// forbids a key; a query whose every key is forbidden gives NaN, as in PyTorch.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let ((b, n, width), (rows, m, _)) = (q.dims3()?, k.dims3()?);
    if k.dims() != [b, m, width] || v.dims() != k.dims() {
        bail!("attention: q {:?}, k {:?} and v {:?} (rows: {rows}) do not fit", q.dims(), k.dims(), v.dims());
    }
    if heads == 0 || width % heads != 0 {
        bail!("attention: a width of {width} cannot be split into {heads} heads");
    }
    count::product(b * n * m * heads, width / heads); // q · kᵀ
    count::product(b * n * width, m); // · v
    // Metal's form and the plain one take masks of any type.
    let in_f32 = [q, k, v].into_iter().all(|x| cpu::takes(x) || cuda::takes(x));
    let dtype = |mask: &Tensor| if in_f32 { DType::F32 } else { mask.dtype() };
    let mask = mask.map(|mask| mask.to_dtype(dtype(mask))?.broadcast_as((b, heads, n, m))).transpose()?;
    form!(q, attention in [cpu, cuda, metal])(q, k, v, heads, mask.as_ref())
}

/// The additive mask (n, n) that lets each position see itself and what came before, in f32.
///
/// # Errors
/// If the device fails.
pub fn causal_mask(n: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..n * n).map(|index| if index % n > index / n { f32::NEG_INFINITY } else { 0.0 }).collect();
    Tensor::from_vec(mask, (n, n), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_causal_mask_forbids_the_future_only() -> Result<()> {
        let hidden = f32::NEG_INFINITY;
        let mask = causal_mask(3, &Device::Cpu)?.to_vec2::<f32>()?;
        assert_eq!(mask, [[0., hidden, hidden], [0., 0., hidden], [0., 0., 0.]]);
        Ok(())
    }
}
