//! Starting a kernel on a GPU.

use candle_core::{
    CudaDevice, DType, Device, Result, Shape, Storage, Tensor, bail,
    cuda_backend::{
        CudaStorageSlice, WrapErr,
        cudarc::driver::{DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, sys::CUdevice_attribute},
    },
};

use super::{
    fill::{Grid, Kernel},
    module::function,
};

/// A kernel's one parameter, as it lies in memory.
#[repr(transparent)]
struct Parameters<P>(P);

// SAFETY: the structures are `#[repr(C)]` mirrors of the kernels', made of numbers and addresses.
unsafe impl<P: Copy> DeviceRepr for Parameters<P> {}

/// As [`fill`](super::fill::fill), on a GPU.
///
/// # Safety
/// As there.
pub(super) unsafe fn fill<P: Copy>(
    kernel: Kernel,
    grid: Grid,
    inputs: &[&Tensor],
    shape: &Shape,
    dtype: DType,
    parameters: impl FnOnce(&[u64], u64) -> P,
) -> Result<Tensor> {
    let device = inputs[0].device();
    let cuda = device.as_cuda_device()?;
    let loaded = function(cuda, kernel)?;
    // SAFETY: the kernel writes all of it, by the caller's promise.
    let out = unsafe { empty(shape, dtype, device)? };
    let addresses = inputs.iter().map(|input| start(input, cuda)).collect::<Result<Vec<_>>>()?;
    let parameters = Parameters(parameters(&addresses, address(&out, cuda)?));
    loaded.allow_shared(grid.shared)?;
    let stream = cuda.cuda_stream();
    let mut builder = stream.launch_builder(&loaded.function);
    builder.arg(&parameters);
    let config = LaunchConfig { grid_dim: grid.blocks, block_dim: (grid.threads, 1, 1), shared_mem_bytes: grid.shared };
    // SAFETY: the caller's promise. The tensors live until the kernel is in the stream; what is freed later is freed in it.
    unsafe { builder.launch(config) }.w()?;
    Ok(out)
}

/// The bytes of shared memory that a block can have on a GPU.
pub(super) fn shared_memory(cuda: &CudaDevice) -> Result<u32> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    Ok(cuda.cuda_stream().context().attribute(attribute).w()?.unsigned_abs())
}

/// A tensor for a kernel to fill.
///
/// # Safety
/// Its values are whatever was there; a kernel must write all of them before anything reads them.
///
/// # Errors
/// If the device has no room.
pub(crate) unsafe fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: the caller's promise.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// Where a contiguous tensor's values begin in the memory of `device`.
pub(super) fn address(tensor: &Tensor, device: &CudaDevice) -> Result<u64> {
    if !tensor.is_contiguous() {
        bail!("contiguous values are needed, not the strides {:?} of {:?}", tensor.stride(), tensor.dims());
    }
    start(tensor, device)
}

/// Where a tensor's first value is in the memory of `device`.
fn start(tensor: &Tensor, device: &CudaDevice) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!("a tensor on {:?} cannot be given to a kernel", tensor.device());
    };
    if !tensor.device().same_device(&Device::Cuda(device.clone())) {
        bail!("a kernel on one device cannot be given a tensor of another");
    }
    let stream = device.cuda_stream();
    // The second value would record an event, and devices that `open` made track none: there is one stream.
    let base = match &storage.slice {
        CudaStorageSlice::U8(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::I64(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F8E4M3(slice) => slice.device_ptr(&stream).0,
        _ => bail!("no kernel takes values of type {:?}", tensor.dtype()),
    };
    Ok(base + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}
