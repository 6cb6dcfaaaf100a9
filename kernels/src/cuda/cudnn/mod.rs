//! Convolution of channels-last images by cuDNN, with the bias added before the result is rounded.
//!
//! cuDNN's graph interface is used, not its older one: it takes bf16, padding that differs from side to side, and a bias in
//! the same kernel; and it lets an engine be named, which [`plan`] needs to keep a row's bits from its company.

mod descriptor;
mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    ptr::null_mut,
    sync::{LazyLock, Mutex, PoisonError},
};

use candle_core::{CudaDevice, DType, Error, Result, Tensor, bail, cuda_backend::DeviceId};
use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnCreate, cudnnHandle_t,
    cudnnSetStream,
};

use self::{
    descriptor::{Descriptor, check},
    plan::{B, Choice, Plan, Shape, Target, W, X, Y},
};
use super::{
    launch::{address, empty},
    product::product,
};
use crate::Conv2dConfig;

/// The weight (out, kh, kw, in), contiguous, and the bias (out), in the type that is computed in.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
}

impl Conv2d {
    /// Whether convolutions can be computed here: cuDNN may be missing where the rest of CUDA is not.
    pub(crate) fn available() -> bool {
        super::library::has_cudnn()
    }

    /// Takes the weight (out, in, kh, kw).
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Self> {
        let bias = bias.map(|bias| bias.to_dtype(weight.dtype())?.contiguous()).transpose()?;
        Ok(Self { weight: weight.permute((0, 2, 3, 1))?.contiguous()?, bias, config })
    }

    /// `x` (b, h, w, in) to (b, h', w', out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, input) = x.dims4()?;
        let (out, kh, kw, _) = self.weight.dims4()?;
        let (out_h, out_w) = self.config.output_size((h, w), (kh, kw))?;
        if b == 0 {
            return Tensor::zeros((b, out_h, out_w, out), x.dtype(), x.device());
        }
        let input_x = x.to_dtype(self.weight.dtype())?.contiguous()?;
        if (kh, kw) == (1, 1) && self.config == Conv2dConfig::default() {
            let pixels = input_x.reshape((b * h * w, input))?;
            let weight = self.weight.reshape((out, input))?;
            let y = product(&pixels, &weight, self.bias.as_ref(), h * w, false)?;
            return y.reshape((b, h, w, out))?.to_dtype(x.dtype());
        }
        let shape = Shape {
            image: (h, w),
            window: (kh, kw),
            channels: (input, out),
            output: (out_h, out_w),
            stride: self.config.stride,
            padding: self.config.padding,
            dtype: self.weight.dtype(),
            bias: self.bias.is_some(),
        };
        // SAFETY: the convolution writes each of its elements.
        let y = unsafe { empty((b, out_h, out_w, out), input_x.dtype(), x.device())? };
        convolve(&shape, &input_x, &self.weight, self.bias.as_ref(), &y)?;
        y.to_dtype(x.dtype())
    }
}

/// A device's handle, and what was chosen and planned so far.
struct Library {
    target: Target,
    handle: cudnnHandle_t,
    choices: HashMap<Shape, Choice>,
    /// By the number of rows; `None` where the engine cannot take so many at once.
    plans: HashMap<(Shape, usize), Option<Plan>>,
}

// SAFETY: a handle may be used by any thread, one at a time; it is only reached through the mutex below.
unsafe impl Send for Library {}

static LIBRARIES: LazyLock<Mutex<HashMap<DeviceId, Library>>> = LazyLock::new(Mutex::default);

impl Library {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        // A handle belongs to the context that is current on the thread.
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        let mut handle = null_mut();
        // SAFETY: the library writes a handle, or fails; the stream lives as long as its device, whose id is never used again.
        unsafe {
            check(cudnnCreate(&raw mut handle))?;
            check(cudnnSetStream(handle, stream.cu_stream().cast()))?;
        }
        Ok(Self { target: Target::Handle(handle), handle, choices: HashMap::new(), plans: HashMap::new() })
    }

    /// The plan for `rows` rows at once, if there is one.
    fn plan(&mut self, shape: &Shape, rows: usize) -> Result<Option<&Plan>> {
        let choice = match self.choices.entry(*shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(shape.choose(&self.target)?),
        };
        let plan = self.plans.entry((*shape, rows)).or_insert_with(|| shape.plan(choice, rows, &self.target).ok());
        Ok(plan.as_ref())
    }
}

/// Fills `y` with the convolution of `x`: all rows at once, or one after the other if the engine takes no more.
fn convolve(shape: &Shape, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
    let device = x.device().as_cuda_device()?;
    let (rows, bytes) = (x.dim(0)?, x.dtype().size_in_bytes());
    let (weight, bias) = (address(weight, device)?, bias.map(|bias| address(bias, device)).transpose()?);
    let (mut from, mut to) = (address(x, device)?, address(y, device)?);
    device.cuda_stream().context().bind_to_thread().map_err(Error::wrap)?;

    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let library = match libraries.entry(device.id()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Library::new(device)?),
    };
    let handle = library.handle;
    let at_once = if library.plan(shape, rows)?.is_some() { rows } else { 1 };
    let Some(plan) = library.plan(shape, at_once)? else { bail!("cuDNN cannot plan one row of {shape:?}") };
    // SAFETY: the kernels write to it before they read it.
    let workspace = unsafe { empty(plan.workspace.max(1), DType::U8, x.device())? };
    let workspace = address(&workspace, device).map(pointer)?;
    for _ in 0..rows / at_once {
        let mut names = vec![X, W, Y];
        let mut addresses = vec![pointer(from), pointer(weight), pointer(to)];
        if let Some(bias) = bias {
            names.push(B);
            addresses.push(pointer(bias));
        }
        let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &names)?
            .set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?
            .set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[workspace])?
            .finalize()?;
        // SAFETY: the tensors have the plan's shapes and live until the work is in the stream; `y` is new, and the workspace
        // is freed in the stream, after the kernels that use it.
        unsafe { plan.plan.execute(handle, &pack)? };
        from += (x.elem_count() / rows * bytes) as u64;
        to += (y.elem_count() / rows * bytes) as u64;
    }
    Ok(())
}

/// An address of the device's as the library takes it.
fn pointer(address: u64) -> *mut c_void {
    address as *mut c_void
}
