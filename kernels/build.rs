//! Compiles the CUDA kernels, with the feature `cuda`, and the bridge to oneDNN, with the feature `onednn`.
//!
//! Each `cuda/NAME.cu` becomes a fat binary: machine code for the GPUs named in [`ARCHITECTURES`], and PTX that a newer
//! driver compiles for newer ones, both compressed; `EASEL_CUDA_ARCHITECTURES` names other GPUs, such as `90` for H100 and
//! H200 alone. `images.rs` holds them all as statics, `NAME` in capitals.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

#[cfg(feature = "onednn")]
#[path = "onednn/build.rs"]
mod onednn;

/// Compute capabilities to make machine code for: A100, RTX 40 and L40, H100 and H200.
const ARCHITECTURES: &str = "80,89,90";

/// The variable that names others, with commas between them, from the oldest to the newest.
const CHOSEN: &str = "EASEL_CUDA_ARCHITECTURES";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "onednn")]
    onednn::build()?;
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for variable in ["CUDA_HOME", "NVCC", "NVCC_CCBIN", "PATH", "EASEL_CUDA_SHIMS", CHOSEN] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Static libraries under the names of CUDA's, which `scripts/build-cuda` makes so that the program starts without CUDA.
    if let Some(shims) = env::var_os("EASEL_CUDA_SHIMS") {
        println!("cargo:rustc-link-search=native={}", Path::new(&shims).display());
    }
    println!("cargo:rerun-if-changed=cuda");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let architectures = architectures()?;
    let mut images = String::new();
    for source in sources(Path::new("cuda"))? {
        let name = source.file_stem().and_then(|stem| stem.to_str()).ok_or("a kernel's file name is not UTF-8")?;
        let image = out.join(format!("{name}.fatbin"));
        compile(&source, &image, &architectures)?;
        let constant = name.to_uppercase();
        writeln!(images, "pub(super) static {constant}: &[u8] = include_bytes!({image:?});")?;
    }
    fs::write(out.join("images.rs"), images)?;
    Ok(())
}

/// The kernels' files, in order.
fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

/// The compute capabilities to compile for, in tenths.
fn architectures() -> Result<Vec<String>, Box<dyn Error>> {
    let chosen = env::var(CHOSEN).unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let names: Vec<String> = chosen.split(',').map(|name| name.trim().to_owned()).collect();
    match names.iter().find(|name| name.parse::<u32>().map_or(true, |number| number < 80)) {
        None => Ok(names),
        Some(wrong) => Err(format!(
            "{CHOSEN} has {wrong:?}; it takes numbers from 80 up with commas between, such as {ARCHITECTURES}"
        )
        .into()),
    }
}

fn compile(source: &Path, image: &Path, architectures: &[String]) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(compiler());
    // Compressed, an image is a tenth as long; the driver unpacks what it loads.
    command.args(["-fatbin", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "--compress-mode=size", "-Icuda"]);
    if env::var_os("DEBUG").is_some_and(|debug| debug != "false") {
        // Lines for a profiler.
        command.arg("-lineinfo");
    }
    command.arg("-o").arg(image).arg(source);
    for architecture in architectures {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    if let Some(newest) = architectures.last() {
        command.arg(format!("-gencode=arch=compute_{newest},code=compute_{newest}"));
    }
    if let Some(host) = env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(host);
    }
    let output = command.output().map_err(|error| {
        format!(
            "the feature `cuda` needs NVIDIA's compiler, and {:?} cannot be run: {error}. Set CUDA_HOME to CUDA 13's folder, \
             or build with scripts/build-cuda, which downloads what is needed",
            command.get_program()
        )
    })?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(format!("{} cannot be compiled:\n{out}{err}", source.display()).into());
    }
    Ok(())
}

/// `nvcc` from `$NVCC`, `$CUDA_HOME` or the path.
fn compiler() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    env::var_os("CUDA_HOME").map_or_else(|| PathBuf::from("nvcc"), |home| Path::new(&home).join("bin/nvcc"))
}
