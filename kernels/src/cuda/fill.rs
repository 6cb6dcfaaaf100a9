//! Running a kernel that fills one tensor: the seam between the operations' files here and what runs the kernels.
//!
//! Every kernel takes one structure, so a launch is a name, a grid and a `#[repr(C)]` mirror of that structure. On a GPU
//! the driver runs it. In this crate's tests tensors on the CPU are given to the same kernels, built by a C++ compiler (see
//! [`emulated`](super::tests::emulated)), so that all of these files but the driver's calls is tested where no GPU is.

use candle_core::{DType, Result, Shape, Tensor, bail};

/// A file of `cuda/`, and a kernel in it without the type that ends its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) file: File,
    pub(crate) name: &'static str,
    /// The type of the data, which ends the kernel's name.
    pub(crate) dtype: DType,
}

/// The files of `cuda/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum File {
    Attention,
    Conv2d,
    Elementwise,
    GroupNorm,
    Norm,
    Rope,
}

/// How many blocks, of how many threads, with how many bytes of dynamic shared memory each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: (u32, u32, u32),
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

/// Makes a tensor of `shape` and `dtype` on the device of the first input, and has the kernel fill it.
///
/// `parameters` is given the addresses of the inputs' first values, in their order, and of the result's. Inputs may have
/// any strides.
///
/// # Safety
/// What `parameters` gives must be the structure that the kernel takes. The kernel, in this grid, must write all of the
/// result and nothing else, and read only what lies inside of the inputs.
///
/// # Errors
/// If the inputs are not on one device, or it fails.
#[cfg_attr(not(any(test, feature = "cuda")), expect(unused_variables, reason = "there is nothing to run a kernel"))]
pub(crate) unsafe fn fill<P: Copy>(
    kernel: Kernel,
    grid: Grid,
    inputs: &[&Tensor],
    shape: impl Into<Shape>,
    dtype: DType,
    parameters: impl FnOnce(&[u64], u64) -> P,
) -> Result<Tensor> {
    let shape = &shape.into();
    let (blocks, most) = (grid.blocks, 65535);
    if blocks.1 > most || blocks.2 > most || blocks.0 > i32::MAX.unsigned_abs() {
        bail!("{}: {blocks:?} blocks are more than a grid can have", kernel.name);
    }
    #[cfg(test)]
    if inputs[0].device().is_cpu() {
        // SAFETY: the caller's promise.
        return unsafe { super::tests::emulated::fill(kernel, grid, inputs, shape, dtype, parameters) };
    }
    #[cfg(feature = "cuda")]
    {
        // SAFETY: the caller's promise.
        unsafe { super::launch::fill(kernel, grid, inputs, shape, dtype, parameters) }
    }
    #[cfg(not(feature = "cuda"))]
    {
        bail!(
            "{}_{} of {:?}, {} threads and {} bytes a block: this easel was built without CUDA",
            kernel.name,
            kernel.dtype.as_str(),
            kernel.file,
            grid.threads,
            grid.shared
        )
    }
}

/// A count as a kernel takes it.
///
/// # Errors
/// If it is beyond an `int`.
pub(crate) fn int(count: usize) -> Result<i32> {
    match i32::try_from(count) {
        Ok(count) => Ok(count),
        Err(_) => bail!("a kernel cannot count to {count}"),
    }
}

/// The number of blocks that each take `each` of `count`.
///
/// # Errors
/// If there are more than a grid can have.
pub(crate) fn blocks(count: usize, each: usize) -> Result<u32> {
    Ok(int(count.div_ceil(each))?.unsigned_abs())
}

/// `x` as a tensor whose last dimension is contiguous, and whose other strides and start are multiples of `values`.
///
/// # Errors
/// If the device has no room for a copy.
pub(crate) fn aligned(x: &Tensor, values: usize) -> Result<Tensor> {
    if is_aligned(x, values) {
        return Ok(x.clone());
    }
    let x = x.contiguous()?;
    // What is contiguous but starts in the middle of another tensor is not copied by that.
    if is_aligned(&x, values) { Ok(x) } else { x.force_contiguous() }
}

/// Whether 16 bytes, `values` of them, can be read at a time.
pub(crate) fn is_aligned(x: &Tensor, values: usize) -> bool {
    let layout = x.layout();
    let Some((last, others)) = layout.stride().split_last() else {
        return layout.start_offset().is_multiple_of(values);
    };
    let dims = layout.dims();
    (*last == 1 || dims[dims.len() - 1] <= 1)
        && layout.start_offset().is_multiple_of(values)
        && others.iter().zip(dims).all(|(stride, dim)| stride.is_multiple_of(values) || *dim <= 1)
}

/// Values of `dtype` in 16 bytes.
pub(crate) fn wide(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}
