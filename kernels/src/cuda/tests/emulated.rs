//! The kernels of `cuda/`, built by a C++ compiler and run on the CPU, for tests.
//!
//! `cuda/emulated` is what stands in for the GPU; it says what it finds wrong with a kernel. Each launch runs twice, with
//! the threads in two orders, and must give the same bytes both times.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    ffi::{CStr, c_char, c_void},
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    ptr::from_ref,
    sync::{LazyLock, Mutex, PoisonError},
};

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use libloading::{Library, Symbol};

use crate::cuda::fill::{Grid, Kernel};

/// The kernels in one library. One launch at a time: the emulated GPU is one thread's.
static LIBRARY: LazyLock<Mutex<Library>> = LazyLock::new(|| {
    // SAFETY: our own library, which has no initialisers.
    Mutex::new(unsafe { Library::new(build()) }.unwrap())
});

/// Compiles what is not yet, and gives the library's path.
fn build() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let mut files: Vec<_> = [sources.clone(), sources.join("emulated")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let mut hash = DefaultHasher::new();
    FLAGS.hash(&mut hash);
    for file in &files {
        fs::read(file).unwrap().hash(&mut hash);
    }
    let folder = env::current_exe().unwrap().parent().unwrap().join("emulated");
    let library = folder.join(format!("kernels-{:016x}.so", hash.finish()));
    if library.is_file() {
        return library;
    }
    fs::create_dir_all(&folder).unwrap();
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    // A file's compiler is one process: all of them at once, as there are as many as a machine has cores.
    let objects = tempfile::tempdir().unwrap();
    let mut compilers = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "cu" || end == "cpp")) {
        let object = objects.path().join(file.file_stem().unwrap()).with_extension("o");
        let mut command = Command::new(&compiler);
        command.args(FLAGS).arg("-I").arg(sources.join("emulated"));
        command.args(["-include", "cuda.h", "-x", "c++", "-c", "-o"]).arg(&object).arg(file);
        compilers.push((object, command.spawn().expect("the kernels' tests need a C++ compiler, CXX or c++")));
    }
    for (object, compiler) in &mut compilers {
        assert!(compiler.wait().unwrap().success(), "{} cannot be compiled", object.display());
    }
    // Other tests may build it, too: each in a file of its own, and the name comes with all that belongs to it.
    let own = objects.path().join("kernels.so");
    let mut link = Command::new(&compiler);
    link.args(["-shared", "-o"]).arg(&own).args(compilers.iter().map(|(object, _)| object));
    assert!(link.status().unwrap().success());
    for former in fs::read_dir(&folder).unwrap() {
        _ = fs::remove_file(former.unwrap().path());
    }
    let copy = folder.join(format!("{}.so", std::process::id()));
    fs::copy(&own, &copy).unwrap();
    fs::rename(&copy, &library).unwrap();
    library
}

/// An index outside of its array traps. Fibers change stacks by long jumps, which the fortified library would refuse.
const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fsanitize=bounds",
    "-fsanitize-undefined-trap-on-error",
    "-U_FORTIFY_SOURCE",
];

/// Memory that ends where a page that cannot be touched begins.
struct Guarded<'a> {
    library: &'a Library,
    at: *mut u8,
    bytes: usize,
}

impl<'a> Guarded<'a> {
    fn new(library: &'a Library, bytes: usize) -> Self {
        // SAFETY: the function in cuda/emulated/emulator.cpp.
        let at = unsafe {
            let allocate: Symbol<'_, unsafe extern "C" fn(usize) -> *mut u8> =
                library.get(b"emulated_allocate").unwrap();
            allocate(bytes)
        };
        Self { library, at, bytes }
    }

    fn with(library: &'a Library, bytes: &[u8]) -> Self {
        let memory = Self::new(library, bytes.len());
        // SAFETY: it has as many bytes.
        unsafe { memory.at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        memory
    }

    /// The bytes, and those behind them that nothing may write.
    fn bytes(&self) -> (&[u8], &[u8]) {
        // SAFETY: memory is given in multiples of 16 bytes, and all of it was written.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes.next_multiple_of(16)) }.split_at(self.bytes)
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        // SAFETY: it was allocated so.
        unsafe {
            let free: Symbol<'_, unsafe extern "C" fn(*mut u8, usize)> = self.library.get(b"emulated_free").unwrap();
            free(self.at, self.bytes);
        }
    }
}

/// As [`fill`](crate::cuda::fill::fill), of tensors on the CPU.
///
/// # Safety
/// As there; but what a kernel does beyond what it may is an error here.
pub(crate) unsafe fn fill<P: Copy>(
    kernel: Kernel,
    grid: Grid,
    inputs: &[&Tensor],
    shape: &Shape,
    dtype: DType,
    parameters: impl FnOnce(&[u64], u64) -> P,
) -> Result<Tensor> {
    type Launch =
        unsafe extern "C" fn(*const c_void, *const c_void, *const u32, *const u32, usize, u32) -> *const c_char;
    let library = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    let memory: Vec<_> = inputs.iter().map(|x| Ok(Guarded::with(&library, &values(x)?))).collect::<Result<Vec<_>>>()?;
    let out = Guarded::new(&library, shape.elem_count() * dtype.size_in_bytes());
    let addresses: Vec<_> = memory.iter().map(|input| input.at as u64).collect();
    let parameters = parameters(&addresses, out.at as u64);
    let name = format!("{}_{}", kernel.name, kernel.dtype.as_str());
    let mut results = Vec::new();
    for (schedule, before) in [(0, 0xff), (1, 0)] {
        // SAFETY: as many bytes as there are; the launch runs a kernel of the library with the structure whose size it has.
        let (wrong, size) = unsafe {
            out.at.write_bytes(before, out.bytes);
            let launch: Symbol<'_, Launch> = library.get(b"emulated_launch").unwrap();
            let function: Symbol<'_, *const c_void> = library.get(name.as_bytes()).unwrap();
            let size: Symbol<'_, *const usize> = library.get(format!("{name}_parameters").as_bytes()).unwrap();
            let (blocks, threads) = (<[u32; 3]>::from(grid.blocks), [grid.threads, 1, 1]);
            let size = **size;
            assert_eq!(size, size_of::<P>(), "{name} takes another structure");
            let values = from_ref(&parameters).cast();
            let wrong = launch(*function, values, blocks.as_ptr(), threads.as_ptr(), grid.shared as usize, schedule);
            (wrong.as_ref().map(|wrong| CStr::from_ptr(wrong).to_string_lossy().into_owned()), size)
        };
        if let Some(wrong) = wrong {
            bail!("{name} with {grid:?} and {size} bytes of parameters: {wrong}");
        }
        if memory.iter().chain([&out]).any(|memory| memory.bytes().1.iter().any(|byte| *byte != 0xff)) {
            bail!("{name} writes behind a tensor");
        }
        results.push(out.bytes().0.to_vec());
    }
    if results[0] != results[1] {
        bail!("{name}: the order of the threads makes a difference, or a value is not written");
    }
    Tensor::from_raw_buffer(&results[0], dtype, shape.dims(), &Device::Cpu)
}

/// The bytes from a tensor's first value to its last one in memory.
fn values(x: &Tensor) -> Result<Vec<u8>> {
    let (storage, layout) = x.storage_and_layout();
    let count = if layout.shape().elem_count() == 0 {
        0
    } else {
        1 + layout.dims().iter().zip(layout.stride()).map(|(dim, stride)| (dim - 1) * stride).sum::<usize>()
    };
    let range = layout.start_offset()..layout.start_offset() + count;
    let Storage::Cpu(storage) = &*storage else { bail!("a tensor on the CPU is expected") };
    Ok(match storage {
        CpuStorage::F32(values) => values[range].iter().flat_map(|value| value.to_le_bytes()).collect(),
        CpuStorage::F16(values) => values[range].iter().flat_map(|value| value.to_le_bytes()).collect(),
        CpuStorage::BF16(values) => values[range].iter().flat_map(|value| value.to_le_bytes()).collect(),
        CpuStorage::U8(values) => values[range].to_vec(),
        CpuStorage::U32(values) => values[range].iter().flat_map(|value| value.to_le_bytes()).collect(),
        _ => bail!("no kernel takes {:?}", x.dtype()),
    })
}

mod tests {
    use super::*;
    use crate::{cuda::fill::File, tests::noise};

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Parameters {
        x: u64,
        out: u64,
    }

    /// A kernel of `cuda/emulated/wrong.cu`.
    fn run(name: &'static str) -> Result<Vec<f32>> {
        let kernel = Kernel { file: File::Norm, name, dtype: DType::F32 };
        let grid = Grid { blocks: (1, 1, 1), threads: 64, shared: 256 };
        let x = noise(1, 64)?;
        // SAFETY: what goes wrong here is found.
        unsafe {
            fill(kernel, grid, &[&x], &Shape::from(64), DType::F32, |x, out| Parameters { x: x[0], out })?.to_vec1()
        }
    }

    #[test]
    fn each_mistake_of_a_kernel_is_found() -> Result<()> {
        let mut reversed = run("wrong_nothing")?;
        reversed.reverse();
        assert_eq!(reversed, noise(1, 64)?.to_vec1::<f32>()?);
        for (name, message) in [
            ("wrong_barrier_missing", "the order of the threads makes a difference"),
            ("wrong_barrier_for_some", "some threads wait for others that do not come"),
            ("wrong_barriers", "the threads wait at different barriers"),
            ("wrong_shuffle", "some threads wait for others that do not come"),
            ("wrong_wait", "the order of the threads makes a difference"),
            ("wrong_alignment", "not aligned to 16 bytes"),
            ("wrong_read", "an access outside of the memory"),
            ("wrong_write", "an access outside of the memory"),
            ("wrong_shared", "an access outside of the memory"),
            ("wrong_index", "an index outside of its array"),
            ("wrong_unwritten", "a value is not written"),
        ] {
            let error = run(name).map_or_else(|error| error.to_string(), |_| "nothing".to_owned());
            assert!(error.contains(message), "{name}: {error}");
        }
        Ok(())
    }
}
