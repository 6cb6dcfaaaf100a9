//! The plain forms: each operation in candle's tensor operations.
//!
//! They run on every device that candle knows, in f32, f16 and bf16, and are
//! the oracle for the faster forms. On the CPU they compute in f32 whatever the
//! type, since candle has no bf16 matrix product there.
//!
//! candle's CPU matrix product folds a batch that shares its right side into
//! one larger product, whose blocks, and so whose last bits, depend on the
//! number of rows. So the plain forms give each row a product of its own there.

mod attention;
mod conv2d;
mod elementwise;
mod linear;
mod norm;
mod quantized;
mod rope;

use candle_core::{DType, Device, Result, Tensor};

pub(crate) use attention::attention;
pub(crate) use conv2d::Conv2d;
pub(crate) use elementwise::{add, gated_add, geglu, gelu, gelu_tanh, nearest, quick_gelu, silu, upsample_nearest};
pub(crate) use linear::Linear;
pub(crate) use norm::{ada_layer_norm, group_norm, layer_norm, rms_norm};
pub(crate) use quantized::QuantizedLinear;
pub(crate) use rope::{rms_norm_rope, rotary};

/// The type to multiply matrices in, for data of type `dtype` on `device`.
fn product_dtype(dtype: DType, device: &Device) -> DType {
    if device.is_cpu() { sum_dtype(dtype) } else { dtype }
}

/// The type to sum in: f32 at least.
fn sum_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Applies `f` to `x` (b, ..): on the CPU to each row alone, elsewhere to all at once.
fn by_rows(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let rows = x.dim(0)?;
    if rows <= 1 || !x.device().is_cpu() {
        return f(x);
    }
    let rows = (0..rows).map(|row| f(&x.narrow(0, row, 1)?)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&rows, 0)
}
