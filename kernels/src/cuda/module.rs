//! The compiled kernels, and the functions that were loaded from them.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use candle_core::{
    CudaDevice, DType, Result,
    cuda_backend::{
        WrapErr,
        cudarc::{
            driver::{CudaFunction, CudaModule, sys::CUfunction_attribute},
            nvrtc::Ptx,
        },
    },
};

use super::fill::{File, Kernel};

/// One fat binary each, named as its file.
mod images {
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// The fat binary of one file of `cuda/`.
fn image(file: File) -> &'static [u8] {
    match file {
        File::Attention => images::ATTENTION,
        File::Conv2d => images::CONV2D,
        File::Elementwise => images::ELEMENTWISE,
        File::GroupNorm => images::GROUP_NORM,
        File::Norm => images::NORM,
        File::Rope => images::ROPE,
    }
}

/// A function of a device's, and the shared memory that it may take.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) function: CudaFunction,
    shared: AtomicU32,
}

/// Without asking, a block may have this many bytes of dynamic shared memory.
const FREE_SHARED: u32 = 48 * 1024;

impl Loaded {
    /// Makes sure that a block may have `bytes` of dynamic shared memory.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<()> {
        if bytes > self.shared.load(Ordering::Relaxed) {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.function.set_attribute(attribute, i32::try_from(bytes).unwrap_or(i32::MAX)).w()?;
            self.shared.fetch_max(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The functions that were loaded, by the GPU's number and their names: a module belongs to the GPU's one context, whatever
/// streams there are.
#[derive(Default)]
struct Store {
    modules: HashMap<(usize, File), Arc<CudaModule>>,
    functions: HashMap<(usize, &'static str, DType), Arc<Loaded>>,
}

static STORE: LazyLock<Mutex<Store>> = LazyLock::new(Mutex::default);

/// The function of `kernel`, loaded at its first use on this GPU.
pub(crate) fn function(device: &CudaDevice, kernel: Kernel) -> Result<Arc<Loaded>> {
    let Kernel { file, name, dtype } = kernel;
    let context = device.cuda_stream().context().clone();
    let gpu = context.ordinal();
    let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = store.functions.get(&(gpu, name, dtype)) {
        return Ok(loaded.clone());
    }
    let module = match store.modules.get(&(gpu, file)) {
        Some(module) => module.clone(),
        None => {
            let module = context.load_module(Ptx::from_binary(image(file).to_vec())).w()?;
            store.modules.insert((gpu, file), module.clone());
            module
        }
    };
    let function = module.load_function(&format!("{name}_{}", dtype.as_str())).w()?;
    let loaded = Arc::new(Loaded { function, shared: AtomicU32::new(FREE_SHARED) });
    store.functions.insert((gpu, name, dtype), loaded.clone());
    Ok(loaded)
}
