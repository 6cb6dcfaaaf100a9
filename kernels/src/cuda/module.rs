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

/// The fat binary of one file of `cuda/`.
#[derive(Debug)]
pub(crate) struct Image {
    name: &'static str,
    bytes: &'static [u8],
}

/// One image each, named as its file.
pub(crate) mod images {
    #[allow(unused_imports, reason = "there may be no kernel yet")]
    use super::Image;

    include!(concat!(env!("OUT_DIR"), "/images.rs"));
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

/// What is loaded, by the GPU's number: a module belongs to the GPU's one context, whatever streams there are.
#[derive(Default)]
struct Store {
    modules: HashMap<(usize, &'static str), Arc<CudaModule>>,
    functions: HashMap<(usize, &'static str, &'static str, DType), Arc<Loaded>>,
}

static STORE: LazyLock<Mutex<Store>> = LazyLock::new(Mutex::default);

/// The function `NAME_f32`, `NAME_f16` or `NAME_bf16` of `image`, loaded at its first use on this GPU.
pub(crate) fn function(
    device: &CudaDevice,
    image: &'static Image,
    name: &'static str,
    dtype: DType,
) -> Result<Arc<Loaded>> {
    let context = device.cuda_stream().context().clone();
    let gpu = context.ordinal();
    let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = store.functions.get(&(gpu, image.name, name, dtype)) {
        return Ok(loaded.clone());
    }
    let module = match store.modules.get(&(gpu, image.name)) {
        Some(module) => module.clone(),
        None => {
            let module = context.load_module(Ptx::from_binary(image.bytes.to_vec())).w()?;
            store.modules.insert((gpu, image.name), module.clone());
            module
        }
    };
    let function = module.load_function(&format!("{name}_{}", dtype.as_str())).w()?;
    let loaded = Arc::new(Loaded { function, shared: AtomicU32::new(FREE_SHARED) });
    store.functions.insert((gpu, image.name, name, dtype), loaded.clone());
    Ok(loaded)
}
