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

/// The device for networks that run beside the steps, such as a decoder: with `EASEL_CUDA_DECODE_STREAM=1` the same GPU of
/// CUDA's with a stream of its own, so that nothing of theirs queues before a step; else the device itself.
///
/// To candle that is another device: tensors go there and back through the host's memory ([`elsewhere`]), which waits for
/// them to be computed.
#[must_use]
pub fn device_beside(device: &Device) -> Device {
    #[cfg(feature = "cuda")]
    if let Ok(cuda) = device.as_cuda_device() {
        return crate::cuda::decoder(cuda).unwrap_or_else(|| device.clone());
    }
    device.clone()
}

/// `tensor` on `device`. Between two streams of a GPU it goes through the host's memory: when it is there, it has been
/// computed, and no stream needs to wait for the other.
///
/// # Errors
/// If the device has no room.
pub fn elsewhere(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    if tensor.device().is_cuda() && device.is_cuda() && !tensor.device().same_device(device) {
        return tensor.to_device(&Device::Cpu)?.to_device(device);
    }
    tensor.to_device(device)
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
