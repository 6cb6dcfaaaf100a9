//! The CUDA forms, in f32, f16 and bf16.
//!
//! `cuda/NAME.cu` holds the kernels, which `build.rs` compiles into one [`Image`](module::Image) each; beside it,
//! `src/cuda/NAME.rs` says what its operation takes and how large a grid it is launched with. [`Launch`] is the one way to
//! start a kernel. Everything runs on the one stream of its device (see [`open`]), so nothing here waits for anything.

#![expect(unsafe_code, reason = "a kernel is given addresses, and no compiler checks what it does with them")]

mod cudnn;
mod device;
mod launch;
mod library;
mod linear;
mod module;
mod product;

pub(crate) use cudnn::Conv2d;
pub(crate) use device::{memory, open};
pub(crate) use launch::{Grid, Launch, empty};
pub(crate) use linear::Linear;
pub(crate) use module::images;

use candle_core::{DType, Tensor};

use crate::plain_forms;

/// Whether these forms are to compute `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && !plain_forms()
}
