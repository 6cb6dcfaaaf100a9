//! The CUDA forms, in f32, f16 and bf16.
//!
//! `cuda/NAME.cu` holds the kernels, which `build.rs` compiles into one fat binary each; beside it, `src/cuda/NAME.rs` says
//! what its operation takes and how large a grid it is launched with, and [`fill`](fill::fill) is the one way to start a
//! kernel. Everything runs on the one stream of its device (see [`open`]), so nothing here waits for anything.
//!
//! Only what calls CUDA's libraries is behind the feature `cuda`. The rest is built without it, too: its tests run the same
//! kernels on the CPU (see [`emulated`](tests::emulated)).

#![expect(unsafe_code, reason = "a kernel is given addresses, and no compiler checks what it does with them")]

mod attention;
mod conv2d;
#[cfg(feature = "cuda")]
mod cudnn;
#[cfg(feature = "cuda")]
mod device;
mod elementwise;
mod fill;
#[cfg(feature = "cuda")]
mod graph;
mod group_norm;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod library;
#[cfg(feature = "cuda")]
mod linear;
#[cfg(feature = "cuda")]
mod module;
mod norm;
#[cfg(feature = "cuda")]
mod product;
mod rope;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "cuda"))]
mod upload;

use candle_core::{DType, Result, Tensor};

pub(crate) use attention::attention;
pub(crate) use conv2d::OwnConv2d;
#[cfg(feature = "cuda")]
pub(crate) use cudnn::Conv2d;
#[cfg(feature = "cuda")]
pub(crate) use device::{decoder, memory, open};
pub(crate) use elementwise::{add, gated_add, geglu, gelu, gelu_tanh, quick_gelu, silu, upsample_nearest};
#[cfg(feature = "cuda")]
pub(crate) use graph::{Graph, StreamRecorder};
pub(crate) use group_norm::group_norm;
#[cfg(feature = "cuda")]
pub(crate) use linear::Linear;
pub(crate) use norm::{ada_layer_norm, layer_norm, rms_norm};
pub(crate) use rope::{rms_norm_rope, rotary};
#[cfg(feature = "cuda")]
pub(crate) use upload::upload;

use crate::plain_forms;

/// Whether these forms are to compute `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && !plain_forms()
}

/// The bytes of shared memory that a block can have on the device of `x`.
fn shared_memory(x: &Tensor) -> Result<u32> {
    #[cfg(feature = "cuda")]
    if let Ok(cuda) = x.device().as_cuda_device() {
        return launch::shared_memory(cuda);
    }
    _ = x;
    // H100's and H200's, for the tests.
    Ok(227 << 10)
}
