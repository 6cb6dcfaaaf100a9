//! The CPU forms, in f32; products of bf16 weights in bf16 where the processor has instructions for them.
//!
//! They compute with the widest vectors of the processor (AVX-512, AVX2, NEON;
//! chosen at run time), read and write every tensor once where that
//! is possible, and split work over rayon's pool. f16 and bf16 are converted on
//! the way in and out, as the plain forms do it, but for those products.
//!
//! The bits of a row do not depend on its batch, because nothing that is
//! summed is ever split by it: a product's element is summed over its whole
//! depth in one order of passes that depend on the depth alone; statistics are
//! summed over chunks whose size is fixed; and vector lanes never mix. How many
//! threads take part changes only who computes an element, never how.

#![expect(unsafe_code, reason = "vector loads and stores, and threads that fill disjoint parts of one result")]

mod attention;
mod attention_bf16;
mod buffer;
mod conv2d;
mod convert;
mod element;
mod elementwise;
mod linear;
mod math;
mod norm;
mod pool;
mod product;
mod product_bf16;
mod rope;
mod simd;
mod winograd;

use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};
use half::bf16;

pub(crate) use attention::attention;
#[cfg(feature = "onednn")]
pub(crate) use buffer::{filled, room};
pub(crate) use conv2d::Conv2d;
pub(crate) use elementwise::{add, gated_add, geglu, gelu, gelu_tanh, quick_gelu, silu, upsample_nearest};
pub(crate) use linear::{Linear, QuantizedLinear};
pub(crate) use norm::{GroupNorm, ada_layer_norm, layer_norm, rms_norm};
pub use pool::on_pool;
#[cfg(test)]
pub(crate) use product_bf16::with_tiles;
pub(crate) use rope::{rms_norm_rope, rotary};

use self::element::Element;
use crate::plain_forms;

/// Whether these forms are to compute `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && !plain_forms()
}

/// Bytes that a layer keeps for weights of this shape and type on `device`, at most: a convolution of 3x3 may keep
/// transformed weights on the CPU, of which there are more.
#[must_use]
pub fn weight_bytes(shape: &[usize], dtype: DType, device: &Device) -> usize {
    let values = shape.iter().product::<usize>();
    if !device.is_cpu() {
        return values * dtype.size_in_bytes();
    }
    // The plain forms on the CPU are in f32, and so are the other products there.
    if plain_forms() {
        return 4 * values;
    }
    match conv2d::tile(shape, 1, dtype) {
        Some(tile) => 4 * values / 9 * tile.places(),
        None if dtype == DType::BF16 && product_bf16::available() => 2 * values,
        None => 4 * values,
    }
}

/// What multiplies bf16 on this processor, in words: `AMX`, `AVX-512 BF16`, or `f32`, in which it is computed elsewhere. Where
/// AMX is there and gave wrong sums when it was first tried, it is not taken, and this says so.
#[must_use]
pub fn bf16_products() -> &'static str {
    product_bf16::name()
}

/// Gives `f` the values of `x`, contiguous and in f32.
pub(crate) fn with_values<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    with(x, f)
}

/// Gives `f` the values of `x`, contiguous and in bf16.
pub(crate) fn with_bf16<T>(x: &Tensor, f: impl FnOnce(&[bf16]) -> Result<T>) -> Result<T> {
    with(x, f)
}

/// Gives `f` the values of `x`, contiguous and of type `E`.
fn with<E: Element, T>(x: &Tensor, f: impl FnOnce(&[E]) -> Result<T>) -> Result<T> {
    let x = contiguous(x, E::DTYPE)?;
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(values), Some((from, to))) => f(&E::cpu_storage_as_slice(values)?[from..to]),
        _ => bail!("a contiguous tensor on the CPU is expected, not {:?} on {:?}", x.layout(), x.device()),
    }
}

/// As [`with`], for a tensor that may be missing.
fn with_some<E: Element, T>(x: Option<&Tensor>, f: impl FnOnce(Option<&[E]>) -> Result<T>) -> Result<T> {
    match x {
        Some(x) => with(x, |values| f(Some(values))),
        None => f(None),
    }
}

/// `x` contiguous and of this type.
fn contiguous(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if (x.dtype(), dtype) == (DType::BF16, DType::F32) {
        return with(x, |values| Tensor::from_vec(convert::to_f32(values), x.shape(), &Device::Cpu));
    }
    x.to_dtype(dtype)?.contiguous()
}

/// The tensor of `values`, in the type of `like`.
fn tensor<E: Element>(values: Vec<E>, shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    let y = Tensor::from_vec(values, shape.into(), &Device::Cpu)?;
    if (y.dtype(), like.dtype()) == (DType::F32, DType::BF16) {
        return with(&y, |values| Tensor::from_vec(convert::to_bf16(values), y.shape(), &Device::Cpu));
    }
    y.to_dtype(like.dtype())
}
