//! The CPU forms, in f32.
//!
//! They compute with the widest vectors of the processor (AVX-512, AVX2, NEON;
//! chosen at run time), read and write every tensor once where that
//! is possible, and split work over rayon's pool. f16 and bf16 are converted on
//! the way in and out, as the plain forms do it.
//!
//! The bits of a row do not depend on its batch, because nothing that is
//! summed is ever split by it: a product's element is summed over its whole
//! depth in one order of passes that depend on the depth alone; statistics are
//! summed over chunks whose size is fixed; and vector lanes never mix. How many
//! threads take part changes only who computes an element, never how.

#![expect(unsafe_code, reason = "vector loads and stores, and threads that fill disjoint parts of one result")]

mod attention;
mod buffer;
mod conv2d;
mod elementwise;
mod linear;
mod math;
mod norm;
mod pool;
mod product;
mod rope;
mod simd;

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail};

pub(crate) use attention::attention;
pub(crate) use conv2d::Conv2d;
pub(crate) use elementwise::{gated_add, geglu, gelu, gelu_tanh, quick_gelu, silu, upsample_nearest};
pub(crate) use linear::{Linear, QuantizedLinear};
pub(crate) use norm::{GroupNorm, ada_layer_norm, layer_norm, rms_norm};
pub use pool::on_pool;
pub(crate) use rope::rotary;

use crate::plain_forms;

/// Whether these forms are to compute `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && !plain_forms()
}

/// Gives `f` the values of `x`, contiguous and in f32.
fn with_values<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => f(&values[from..to]),
        _ => bail!("a contiguous f32 tensor on the CPU is expected, not {:?} on {:?}", x.dtype(), x.device()),
    }
}

/// The tensor of `values`, in the type of `like`.
fn tensor(values: Vec<f32>, shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)?.to_dtype(like.dtype())
}
