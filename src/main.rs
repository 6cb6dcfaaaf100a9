//! The `easel` binary: parse the command line, hand over to [`easel::cli`].

/// Keeps freed pages, which a step would otherwise ask the system for again: several large tensors each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    easel::cli::main()
}
