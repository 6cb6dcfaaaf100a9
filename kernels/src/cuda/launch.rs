//! Starting a kernel: its arguments, in order, and its grid.

use std::{marker::PhantomData, sync::Arc};

use candle_core::{
    CudaDevice, DType, Device, Result, Shape, Storage, Tensor, bail,
    cuda_backend::{
        CudaStorageSlice, WrapErr,
        cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg},
    },
};

use super::module::{Image, Loaded, function};

/// How many blocks, of how many threads, with how many bytes of dynamic shared memory each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: (u32, u32, u32),
    pub(crate) threads: (u32, u32, u32),
    pub(crate) shared: u32,
}

impl Grid {
    /// Enough blocks of `threads` for `count` things, one a thread.
    ///
    /// # Errors
    /// If there are more than a grid can have.
    pub(crate) fn over(count: usize, threads: u32) -> Result<Self> {
        let Ok(blocks) = i32::try_from(count.div_ceil(threads as usize)) else {
            bail!("a kernel over {count} things needs more blocks than a grid has");
        };
        Ok(Self { blocks: (blocks.unsigned_abs(), 1, 1), threads: (threads, 1, 1), shared: 0 })
    }
}

/// One argument, as the kernel's parameter holds it.
#[derive(Debug, Clone, Copy)]
enum Argument {
    Address(u64),
    I32(i32),
    I64(i64),
    F32(f32),
}

/// A kernel about to start. Arguments are added in the order of its parameters.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    device: &'a CudaDevice,
    loaded: Arc<Loaded>,
    arguments: Vec<Argument>,
    /// The tensors' memory must live until the kernel is in the stream; what is freed later is freed in the stream.
    tensors: PhantomData<&'a Tensor>,
}

impl<'a> Launch<'a> {
    /// The kernel `NAME_f32`, `NAME_f16` or `NAME_bf16` of `image`.
    ///
    /// # Errors
    /// If `device` is none of CUDA's, or the kernel is not there.
    pub(crate) fn new(device: &'a Device, image: &'static Image, name: &'static str, dtype: DType) -> Result<Self> {
        let device = device.as_cuda_device()?;
        let loaded = function(device, image, name, dtype)?;
        Ok(Self { device, loaded, arguments: Vec::new(), tensors: PhantomData })
    }

    /// A pointer to a tensor's values, which must be contiguous. An output is one that [`empty`] made.
    ///
    /// # Errors
    /// If the tensor is not contiguous, or on another device.
    pub(crate) fn tensor(mut self, tensor: &'a Tensor) -> Result<Self> {
        self.arguments.push(Argument::Address(address(tensor, self.device)?));
        Ok(self)
    }

    /// A pointer to a tensor's values, or null.
    ///
    /// # Errors
    /// As [`Launch::tensor`].
    pub(crate) fn maybe(mut self, tensor: Option<&'a Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => {
                self.arguments.push(Argument::Address(0));
                Ok(self)
            }
        }
    }

    /// An `int`.
    ///
    /// # Errors
    /// If `number` is beyond it.
    pub(crate) fn int(mut self, number: usize) -> Result<Self> {
        let Ok(number) = i32::try_from(number) else { bail!("{number} is more than a kernel counts to") };
        self.arguments.push(Argument::I32(number));
        Ok(self)
    }

    /// A `long long`.
    ///
    /// # Errors
    /// If `number` is beyond it.
    pub(crate) fn long(mut self, number: usize) -> Result<Self> {
        let Ok(number) = i64::try_from(number) else { bail!("{number} is more than a kernel counts to") };
        self.arguments.push(Argument::I64(number));
        Ok(self)
    }

    /// A `float`.
    pub(crate) fn float(mut self, number: f32) -> Self {
        self.arguments.push(Argument::F32(number));
        self
    }

    /// Puts the kernel into the device's stream.
    ///
    /// # Safety
    /// The arguments must be the kernel's parameters in number, order and type. Its threads, in this grid, may write only
    /// to outputs that nothing else refers to yet, and must stay inside the tensors.
    ///
    /// # Errors
    /// If the driver refuses.
    pub(crate) unsafe fn launch(self, grid: Grid) -> Result<()> {
        self.loaded.allow_shared(grid.shared)?;
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(&self.loaded.function);
        for argument in &self.arguments {
            match argument {
                Argument::Address(address) => builder.arg(address),
                Argument::I32(number) => builder.arg(number),
                Argument::I64(number) => builder.arg(number),
                Argument::F32(number) => builder.arg(number),
            };
        }
        let config = LaunchConfig { grid_dim: grid.blocks, block_dim: grid.threads, shared_mem_bytes: grid.shared };
        // SAFETY: the caller's promise; the addresses are of tensors that are borrowed until here.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
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
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!("a tensor on {:?} cannot be given to a kernel", tensor.device());
    };
    if !tensor.device().same_device(&Device::Cuda(device.clone())) {
        bail!("a kernel on one device cannot be given a tensor of another");
    }
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("a kernel needs contiguous values, not the strides {:?} of {:?}", layout.stride(), layout.dims());
    };
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
    Ok(base + (start * tensor.dtype().size_in_bytes()) as u64)
}
