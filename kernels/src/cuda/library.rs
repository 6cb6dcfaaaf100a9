//! Finding CUDA's libraries when they are needed.
//!
//! A program that `scripts/build-cuda` made is not linked to them, so that it starts without them. They are loaded here by
//! their paths; the shims that the program is linked to (`scripts/cuda-shims`) then find them by their names, because a
//! library that is loaded is not searched for again.

use std::{
    collections::HashSet,
    env, fmt, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use candle_core::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// What candle calls when it opens a device; the second comes before the third, which needs it.
const NEEDED: [&str; 4] = ["libcuda.so.1", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"];

/// What is used where it is there: the compiler that cuDNN asks for some kernels, and cuDNN.
const OPTIONAL: [&str; 2] = ["libnvrtc.so.13", "libcudnn.so.9"];

static LOADED: OnceLock<std::result::Result<bool, String>> = OnceLock::new();

/// Loads CUDA's libraries, once.
///
/// # Errors
/// If one that is needed is nowhere: the message says which, and where it was looked for.
pub(crate) fn load() -> Result<()> {
    loaded().as_ref().map(|_| ()).map_err(|message| Error::Msg(message.clone()))
}

/// Whether cuDNN is there.
pub(crate) fn has_cudnn() -> bool {
    loaded().as_ref().is_ok_and(|cudnn| *cudnn)
}

/// Whether cuDNN is there, be the rest of CUDA there or not.
#[cfg(test)]
pub(crate) fn has_cudnn_alone() -> bool {
    let folders = Folders::new();
    OPTIONAL.map(|name| load_one(name, &folders).is_ok())[1]
}

fn loaded() -> &'static std::result::Result<bool, String> {
    LOADED.get_or_init(|| {
        let folders = Folders::new();
        for name in NEEDED {
            load_one(name, &folders).map_err(|error| {
                format!(
                    "CUDA is not available: cannot load {name} ({error}). Besides the system's, these folders were searched: \
                     {folders}; EASEL_CUDA_LIBRARIES can name more"
                )
            })?;
        }
        Ok(OPTIONAL.map(|name| load_one(name, &folders).is_ok())[1])
    })
}

/// Loads a library for the rest of the program's life: from the folders that were named, from where the system's loader
/// looks, or from the other folders.
fn load_one(name: &str, folders: &Folders) -> std::result::Result<(), String> {
    let inside = |folders: &[PathBuf]| -> Vec<PathBuf> {
        folders.iter().map(|folder| folder.join(name)).filter(|path| path.is_file()).collect()
    };
    let mut first = None;
    for path in [inside(&folders.named), vec![name.into()], inside(&folders.found)].concat() {
        // SAFETY: the library's initialisers run, which are NVIDIA's own; the same that run where a program is linked to it.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // The functions that the shims look up stay in use until the program ends.
                std::mem::forget(library);
                return Ok(());
            }
            Err(error) => _ = first.get_or_insert(error.to_string()),
        }
    }
    Err(first.unwrap_or_default())
}

/// Where to look besides the loader's own places.
struct Folders {
    /// `$EASEL_CUDA_LIBRARIES`, folders between colons; they come before the loader's.
    named: Vec<PathBuf>,
    /// An installed CUDA, and the packages of each Python on the path, since a machine with PyTorch has the libraries there
    /// and often nowhere else.
    found: Vec<PathBuf>,
}

impl Folders {
    fn new() -> Self {
        let paths =
            |name| env::var_os(name).map(|value| env::split_paths(&value).collect::<Vec<_>>()).unwrap_or_default();
        let mut found = Vec::new();
        for home in paths("CUDA_HOME").into_iter().chain(["/usr/local/cuda".into()]) {
            found.extend(["lib64", "lib"].map(|lib| home.join(lib)));
        }
        for bin in paths("PATH") {
            let python = bin.join("python3");
            // A virtual environment's Python is a link to another's; either may hold the packages.
            for python in [Some(python.clone()), python.canonicalize().ok()].into_iter().flatten() {
                if let (true, Some(prefix)) = (python.is_file(), python.parent().and_then(Path::parent)) {
                    found.extend(packages(prefix).iter().flat_map(|packages| nvidia(packages)));
                }
            }
        }
        let mut seen = HashSet::new();
        found.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
        Self { named: paths("EASEL_CUDA_LIBRARIES"), found }
    }
}

impl fmt::Display for Folders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.named.iter().chain(&self.found).map(|folder| folder.display().to_string()).collect();
        if all.is_empty() { f.write_str("none") } else { f.write_str(&all.join(", ")) }
    }
}

/// The folders of installed packages below a Python's prefix.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for lib in ["lib", "local/lib", "lib64"] {
        for entry in fs::read_dir(prefix.join(lib)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("python3") {
                found.extend(["site-packages", "dist-packages"].map(|packages| entry.path().join(packages)));
            }
        }
    }
    found
}

/// The libraries' folders of NVIDIA's packages: `nvidia/*/lib`.
fn nvidia(packages: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(packages.join("nvidia")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path().join("lib")).filter(|lib| lib.is_dir()).collect();
    found.sort();
    found
}
