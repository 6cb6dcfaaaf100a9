//! Compiles the bridge between oneDNN and the program's pool of threads.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

pub(crate) fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=onednn");
    let include = PathBuf::from(env::var("DEP_DNNL_INCLUDE_PATH")?);
    check(&include)?;
    cc::Build::new().cpp(true).std("c++11").include(include).file("onednn/pool.cpp").compile("easel_onednn_pool");
    Ok(())
}

/// Fails if oneDNN was built for threads of its own.
fn check(include: &Path) -> Result<(), Box<dyn Error>> {
    let config = fs::read_to_string(include.join("oneapi/dnnl/dnnl_config.h"))?;
    if config.contains("#define DNNL_CPU_THREADING_RUNTIME DNNL_RUNTIME_THREADPOOL") {
        return Ok(());
    }
    let options = env::current_dir()?.join("onednn/options.cmake");
    Err(format!(
        "oneDNN was built for threads of its own. Set CMAKE_TOOLCHAIN_FILE={} (a toolchain file of your own can include it), \
         `cargo clean -p onednn-src`, and build again",
        options.display()
    )
    .into())
}
