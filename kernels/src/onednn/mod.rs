//! Linear layers and convolutions in bf16 by oneDNN, with the feature `onednn`.
//!
//! oneDNN compiles an operation for its sizes and this processor when it is first asked for. The CPU forms use the same
//! instructions, AVX-512 BF16 and AMX, without it; it is here to compare them with, where speed on a processor counts that
//! they have not been measured on. The weights are arranged once, when a layer is made, as the library likes them best. Its
//! work is shared over rayon's pool.
//!
//! Each row of a batch is an operation of its own, so its bits do not depend on the other rows: how the library splits the
//! work, and in what order it adds, follows from the sizes of one row and the number of threads.
//!
//! `EASEL_ONEDNN` in the environment (read once) says when this form is taken: `0` never, `1` wherever the processor has
//! instructions for bf16; unset, where it has AMX.

#![expect(unsafe_code, reason = "oneDNN is a library in C++")]

mod ffi;
mod handles;
mod layer;
mod pool;

use std::{ffi::c_int, sync::LazyLock};

use candle_core::{DType, Tensor};

pub(crate) use layer::{Conv2d, Linear};

use crate::plain_forms;

static ENABLED: LazyLock<bool> = LazyLock::new(|| match std::env::var("EASEL_ONEDNN").as_deref() {
    Ok("0") => false,
    Ok("1") => has(ffi::ISA_BF16),
    _ => has(ffi::ISA_AMX),
});

/// Whether the processor has these instructions, and the library takes them.
fn has(isa: c_int) -> bool {
    // SAFETY: a question without arguments.
    let all = unsafe { ffi::dnnl_get_effective_cpu_isa() };
    all & isa == isa
}

/// Whether this form is to keep `weight`.
pub(crate) fn takes(weight: &Tensor) -> bool {
    weight.device().is_cpu() && weight.dtype() == DType::BF16 && weight.elem_count() > 0 && !plain_forms() && *ENABLED
}

#[cfg(test)]
mod tests;
