//! Opening a GPU.

use candle_core::{Device, Result, Tensor};

/// CUDA's GPU number `ordinal`, from 0, set up for this crate's operations.
///
/// # Errors
/// If this easel was built without CUDA, CUDA's libraries are not there (the message names the first that is missing), or
/// there is no such GPU.
pub fn cuda_device(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return crate::cuda::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!(
        "this easel was built without CUDA, so there is no device {ordinal}; scripts/build-cuda builds one with it"
    )
}

/// What a GPU of CUDA's is called; `None` for other devices.
#[must_use]
pub fn cuda_name(device: &Device) -> Option<String> {
    #[cfg(feature = "cuda")]
    return device.as_cuda_device().ok()?.cuda_stream().context().name().ok();
    #[cfg(not(feature = "cuda"))]
    {
        _ = device;
        None
    }
}

/// The bytes of memory that are free on a GPU of CUDA's, and all that it has; `None` for other devices.
///
/// What earlier work has left in the GPU's pool is free: the pool hands it out again.
#[must_use]
pub fn cuda_memory(device: &Device) -> Option<(u64, u64)> {
    #[cfg(feature = "cuda")]
    return crate::cuda::memory(device.as_cuda_device().ok()?).ok();
    #[cfg(not(feature = "cuda"))]
    {
        _ = device;
        None
    }
}

/// `tensor` on `device`, in its own type. To a GPU of CUDA's a large one goes through pinned memory, two parts at a time; the
/// first is read back and compared, and all others are left to candle where it did not arrive.
///
/// # Errors
/// If the device has no room.
pub fn upload(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if device.is_cuda()
        && let Some(moved) = crate::cuda::upload(tensor, device)?
    {
        return Ok(moved);
    }
    tensor.to_device(device)
}
