//! The `easel` binary: parse the command line, hand over to [`easel::cli`].

use easel_models::KeepingAllocator;
use mimalloc::MiMalloc;

/// Keeps large blocks that were freed, which a step would otherwise ask the system for again: several tensors an operation.
#[global_allocator]
static ALLOCATOR: KeepingAllocator<MiMalloc> = KeepingAllocator::new(MiMalloc);

fn main() -> std::process::ExitCode {
    easel::cli::main()
}
