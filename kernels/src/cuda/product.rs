//! Matrix products through cublasLt, whose algorithm does not depend on the number of rows.
//!
//! cublasLt offers many kernels for a product, and its advice depends on all three sizes; another kernel sums in another
//! order, and then a row's last bits would depend on its company. So the advice is asked for once for each weight's shape
//! and number of a row's positions, as if there were [`PLANNED_ROWS`] rows, and holds for any number of them. Kernels that
//! share the depth of one sum out between blocks are excluded: each element is summed by one block, along the whole depth,
//! in an order that the algorithm alone decides. What cublasLt does not promise, and `scripts/gpu-bench` therefore checks,
//! is that an algorithm's order is the same for every size; its kernels have no reason to let it differ.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    mem::{MaybeUninit, size_of},
    ptr::{from_ref, null_mut},
    sync::{LazyLock, Mutex, PoisonError},
};

use candle_core::{CudaDevice, DType, Error, Result, Tensor, bail, cuda_backend::DeviceId};
use cudarc::{
    cublas::sys::cublasOperation_t,
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t,
            cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreferenceAttributes_t, cublasLtReductionScheme_t,
            cudaDataType_t,
        },
    },
};

use super::launch::{address, empty};

/// How many rows the algorithms are chosen for: two requests with guidance.
const PLANNED_ROWS: usize = 4;

/// What the kernels may use beside inputs and outputs; NVIDIA recommends as much for Hopper.
const WORKSPACE: usize = 32 << 20;

/// What happens to a product's elements before they are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    /// Nothing.
    None,
    /// The bias is added.
    Bias,
    /// The bias is added, and GELU taken by its tanh approximation, the only one that cublasLt has.
    BiasGeluTanh,
}

impl Epilogue {
    fn code(self) -> cublasLtEpilogue_t {
        match self {
            Self::None => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            Self::Bias => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            Self::BiasGeluTanh => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS,
        }
    }
}

/// What an algorithm is chosen by. The number of rows is not among it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    out: usize,
    features: usize,
    positions: usize,
    dtype: DType,
    epilogue: Epilogue,
}

/// A device's handle, the memory its kernels use, and the algorithms chosen so far.
struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: Tensor,
    algorithms: HashMap<Key, cublasLtMatmulAlgo_t>,
}

// SAFETY: a cublasLt handle may be used by any thread; it is only reached through the mutex below.
unsafe impl Send for Library {}

static LIBRARIES: LazyLock<Mutex<HashMap<DeviceId, Library>>> = LazyLock::new(Mutex::default);

/// `x · Wᵀ`, then the epilogue: `x` is (rows · positions, in), `weight` (out, in), `bias` (out), all of one type and
/// contiguous; gives (rows · positions, out).
///
/// # Errors
/// If the library refuses, or the device has no room.
pub(crate) fn product(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    positions: usize,
    gelu: bool,
) -> Result<Tensor> {
    let device = x.device().as_cuda_device()?;
    let ((count, features), (out, _)) = (x.dims2()?, weight.dims2()?);
    let epilogue = match (bias, gelu) {
        (None, false) => Epilogue::None,
        (Some(_), false) => Epilogue::Bias,
        (Some(_), true) => Epilogue::BiasGeluTanh,
        (None, true) => bail!("a product with GELU needs a bias"),
    };
    let key = Key { out, features, positions, dtype: x.dtype(), epilogue };
    // SAFETY: the products below write each of its elements.
    let y = unsafe { empty((count, out), x.dtype(), x.device())? };
    let bytes = x.dtype().size_in_bytes();
    let bias = bias.map_or(Ok(0), |bias| address(bias, device))?;
    let mut call = Call { x: address(x, device)?, weight: address(weight, device)?, y: address(&y, device)? };
    if !call.x.is_multiple_of(alignment(features, bytes)) {
        bail!("a product's input begins at an address that cublasLt cannot load from");
    }

    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let library = match libraries.entry(device.id()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Library::new(x, device)?),
    };
    let whole = Problem::new(key, count, bias)?;
    let algorithm = library.algorithm(key, bias)?;
    if library.fits(&whole, &algorithm) {
        library.run(&whole, &algorithm, call, device)?;
        return Ok(y);
    }
    // The algorithm cannot take so many positions at once; each row alone has as many as any other call's.
    let row = Problem::new(key, positions, bias)?;
    for _ in 0..count / positions {
        library.run(&row, &algorithm, call, device)?;
        call.x += (positions * features * bytes) as u64;
        call.y += (positions * out * bytes) as u64;
    }
    Ok(y)
}

/// Where a product's operands begin.
#[derive(Debug, Clone, Copy)]
struct Call {
    x: u64,
    weight: u64,
    y: u64,
}

impl Library {
    fn new(like: &Tensor, device: &CudaDevice) -> Result<Self> {
        // A handle belongs to the context that is current on the thread.
        device.cuda_stream().context().bind_to_thread().map_err(Error::wrap)?;
        let handle = result::create_handle().map_err(failed)?;
        // SAFETY: kernels write to it before they read it.
        let workspace = unsafe { empty(WORKSPACE, DType::U8, like.device())? };
        Ok(Self { handle, workspace, algorithms: HashMap::new() })
    }

    /// The algorithm for products like `key`'s, whatever the number of rows.
    fn algorithm(&mut self, key: Key, bias: u64) -> Result<cublasLtMatmulAlgo_t> {
        if let Some(algorithm) = self.algorithms.get(&key) {
            return Ok(*algorithm);
        }
        let planned = Problem::new(key, key.positions * PLANNED_ROWS, bias)?;
        let preference = Preference::new(key)?;
        // SAFETY: all descriptors are alive.
        let advice = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                planned.operation,
                planned.weight,
                planned.x,
                planned.y,
                planned.y,
                preference.0,
            )
        };
        let algorithm = advice.map_err(failed)?.algo;
        self.algorithms.insert(key, algorithm);
        Ok(algorithm)
    }

    /// Whether `algorithm` can solve `problem` in the workspace.
    fn fits(&self, problem: &Problem, algorithm: &cublasLtMatmulAlgo_t) -> bool {
        let mut found = MaybeUninit::<cublasLtMatmulHeuristicResult_t>::uninit();
        // SAFETY: all descriptors are alive, and the result is read only where the library says that it wrote it.
        unsafe {
            let status = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                problem.operation,
                problem.weight,
                problem.x,
                problem.y,
                problem.y,
                from_ref(algorithm),
                found.as_mut_ptr(),
            );
            status.result().is_ok() && found.assume_init().workspaceSize <= WORKSPACE
        }
    }

    fn run(&self, problem: &Problem, algorithm: &cublasLtMatmulAlgo_t, call: Call, device: &CudaDevice) -> Result<()> {
        let (one, zero) = (1_f32, 0_f32);
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        // SAFETY: the addresses are of tensors of the shapes that the problem describes, which live until this call has put
        // its work into the stream; the workspace's users come one after the other, since there is one stream.
        unsafe {
            result::matmul(
                self.handle,
                problem.operation,
                from_ref(&one).cast(),
                from_ref(&zero).cast(),
                pointer(call.weight),
                problem.weight,
                pointer(call.x),
                problem.x,
                pointer(call.y),
                problem.y,
                pointer(call.y),
                problem.y,
                from_ref(algorithm),
                pointer(address(&self.workspace, device)?),
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    }
}

/// An address of the device's as the library takes it.
fn pointer(address: u64) -> *mut c_void {
    address as *mut c_void
}

fn failed(error: CublasError) -> Error {
    Error::Msg(format!("cublasLt: {error}"))
}

/// The largest power of two up to 16 that divides the bytes of one position, and so every position's address.
fn alignment(width: usize, bytes: usize) -> u64 {
    1 << (width * bytes).trailing_zeros().min(4)
}

/// The descriptors of one product. cublasLt counts in columns: a row-major (n, k) is its column-major (k, n), so it computes
/// yᵀ (out, n) = W (k, out)ᵀ · xᵀ (k, n).
struct Problem {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
}

impl Problem {
    /// The product of `key` for `count` positions, with the bias at an address, 0 for none.
    fn new(key: Key, count: usize, bias: u64) -> Result<Self> {
        let dtype = match key.dtype {
            DType::F32 => cudaDataType_t::CUDA_R_32F,
            DType::F16 => cudaDataType_t::CUDA_R_16F,
            DType::BF16 => cudaDataType_t::CUDA_R_16BF,
            other => bail!("cublasLt is not asked to multiply values of type {other:?}"),
        };
        // Null is what the drop below leaves alone, should a later step fail.
        let mut problem = Self { operation: null_mut(), weight: null_mut(), x: null_mut(), y: null_mut() };
        problem.operation =
            result::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F)
                .map_err(failed)?;
        let layout = |rows: usize, columns: usize| {
            result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64).map_err(failed)
        };
        problem.weight = layout(key.features, key.out)?;
        problem.x = layout(key.features, count)?;
        problem.y = layout(key.out, count)?;
        let transposed = cublasOperation_t::CUBLAS_OP_T;
        problem.set(cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
        problem.set(cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &key.epilogue.code())?;
        if bias != 0 {
            problem.set(cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(problem)
    }

    fn set<T>(&self, attribute: cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive, and the value is as long as the attribute: the callers give the library's types.
        unsafe { result::set_matmul_desc_attribute(self.operation, attribute, from_ref(value).cast(), size_of::<T>()) }
            .map_err(failed)
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // An error here would mean that a descriptor is no such thing; there is nobody to tell.
        // SAFETY: each was made by `new`, and is not used again.
        unsafe {
            if !self.operation.is_null() {
                _ = result::destroy_matmul_desc(self.operation);
            }
            for layout in [self.weight, self.x, self.y] {
                if !layout.is_null() {
                    _ = result::destroy_matrix_layout(layout);
                }
            }
        }
    }
}

/// What an algorithm must keep to.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(key: Key) -> Result<Self> {
        let preference = Self(result::create_matmul_pref().map_err(failed)?);
        let bytes = key.dtype.size_in_bytes();
        let (input, output) = (alignment(key.features, bytes) as u32, alignment(key.out, bytes) as u32);
        use cublasLtMatmulPreferenceAttributes_t as Attribute;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        let unsplit = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &unsplit)?;
        // A tensor may begin inside another's memory, so no more can be promised than its positions' size says.
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &input)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &input)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &output)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &output)?;
        Ok(preference)
    }

    fn set<T>(&self, attribute: cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive, and the value is as long as the attribute.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) }
            .map_err(failed)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and it is not used again.
        _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
