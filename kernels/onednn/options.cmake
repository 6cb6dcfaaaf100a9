# What oneDNN is built with, for the crate onednn-src, which has no way to say it: cmake reads this as its toolchain
# file, which `.cargo/config.toml` names. It sets no compiler.

# The work is shared over the program's own pool of threads, not over a second one of OpenMP's.
set(ONEDNN_CPU_RUNTIME THREADPOOL CACHE STRING "")
# The operations that are used. Their files are compiled all the same, but much of the rest stays out of the program.
set(ONEDNN_ENABLE_PRIMITIVE "CONVOLUTION;MATMUL;REORDER" CACHE STRING "")
set(ONEDNN_ENABLE_GEMM_KERNELS_ISA NONE CACHE STRING "")
