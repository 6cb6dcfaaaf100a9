//! Opening a GPU, and how much of its memory is left.

use std::{
    collections::HashMap,
    env,
    ffi::c_void,
    ptr::from_mut,
    sync::{LazyLock, Mutex, PoisonError},
};

use candle_core::{
    CudaDevice, Device, Result,
    cuda_backend::{
        DeviceId, WrapErr,
        cudarc::driver::{
            result,
            sys::{CUmemPool_attribute, CUmemoryPool},
        },
    },
};

use super::library;

/// The GPU of this number, set up for easel.
///
/// It has one stream for all threads, in which everything comes in the order that it was asked for: candle's own default,
/// a stream a thread, would need an event around each use of each tensor to be right.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    library::load()?;
    let device = with_stream(ordinal)?;
    if env::var("EASEL_CUDA_DECODE_STREAM").is_ok_and(|value| !value.is_empty() && value != "0") {
        let decoders = &mut DECODERS.lock().unwrap_or_else(PoisonError::into_inner);
        decoders.insert(device.as_cuda_device()?.id(), with_stream(ordinal)?);
    }
    Ok(device)
}

/// For a device that [`open`] made, the same GPU with another stream, where that was asked for.
static DECODERS: LazyLock<Mutex<HashMap<DeviceId, Device>>> = LazyLock::new(Mutex::default);

/// The same GPU with another stream, if there is one.
pub(crate) fn decoder(cuda: &CudaDevice) -> Option<Device> {
    DECODERS.lock().unwrap_or_else(PoisonError::into_inner).get(&cuda.id()).cloned()
}

/// A GPU with a new stream.
fn with_stream(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: what is not tracked is the use of one tensor on several streams, and this device has one. Its tensors cannot
    // meet another device's in an operation, since candle refuses that.
    unsafe { cuda.disable_event_tracking() };
    if let Some(pool) = pool(cuda) {
        // By default a pool gives all memory back whenever the host waits for the GPU, which is after every step.
        let mut threshold = u64::MAX;
        let value = from_mut(&mut threshold).cast::<c_void>();
        // SAFETY: the attribute is a 64-bit number, which the driver reads before it returns.
        unsafe {
            result::mem_pool::set_attribute(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, value).w()?;
        }
    }
    Ok(device)
}

/// The bytes that are free on a GPU, and all that it has. What its pool keeps but does not use is free.
pub(crate) fn memory(cuda: &CudaDevice) -> Result<(u64, u64)> {
    let (free, total) = cuda.cuda_stream().context().mem_get_info().w()?;
    let kept = pool(cuda).map_or(Ok(0), |pool| -> Result<u64> {
        let reserved = number(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = number(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(reserved.saturating_sub(used))
    });
    Ok((free as u64 + kept?, total as u64))
}

/// The pool that allocations in a stream come from, on a GPU that has one.
fn pool(cuda: &CudaDevice) -> Option<CUmemoryPool> {
    let stream = cuda.cuda_stream();
    let context = stream.context();
    // SAFETY: the context is alive, so its device is there.
    context.has_async_alloc().then(|| unsafe { result::device::get_mem_pool(context.cu_device()) }.ok()).flatten()
}

/// A pool's attribute that is a number of bytes.
fn number(pool: CUmemoryPool, attribute: CUmemPool_attribute) -> Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: both attributes asked for are 64-bit numbers.
    unsafe { result::mem_pool::get_attribute(pool, attribute, from_mut(&mut bytes).cast::<c_void>()).w()? };
    Ok(bytes)
}
