// What all kernels share: the three types of data, vectors of them, and how a kernel is named and given its parameters.
//
// Every kernel takes one structure, which the Rust side mirrors with `#[repr(C)]`. A processor's C++ compiler builds the
// same files with `emulated/cuda.h` included before them; where the two differ, `EMULATED` says so, in the files of this
// folder that end in .cuh alone.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#define EMULATED
#endif

using f32 = float;
using f16 = __half;
using bf16 = __nv_bfloat16;

// KERNEL(name, Parameters, threads, blocks) { .. } is a kernel of blocks of up to `threads` threads, of which at least
// `blocks` shall fit on a multiprocessor at once. Its parameters are `p`.
#ifdef EMULATED
#define KERNEL(name, Parameters, threads, blocks)               \
  extern "C" const size_t name##_parameters = sizeof(Parameters); \
  extern "C" void name(const Parameters& p)
#define DYNAMIC_SHARED(name) unsigned char* const name = emulated::dynamic_shared
#else
#define KERNEL(name, Parameters, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Parameters p)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// N values side by side, read and written by instructions of up to 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

// Values of a type in 16 bytes.
template <class T>
constexpr int WIDE = 16 / sizeof(T);

template <class T, int N>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <class T, int N>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& values) {
  *reinterpret_cast<Pack<T, N>*>(to) = values;
}

// Two values as the tensor cores take them, the first in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pair(float first, float second) {
  Pack<T, 2> both{{from_f32<T>(first), from_f32<T>(second)}};
  uint32_t bits;
  memcpy(&bits, &both, sizeof bits);
  return bits;
}

// 2^x to about 2 units in the last place, 0 where that is below the normal numbers.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

constexpr float LOG2_E = 1.4426950408889634f;

// The sum over each aligned set of `LANES` threads of a warp, the same bits in all of them.
template <int LANES>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int mask = LANES / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffff, x, mask);
  return x;
}

template <int LANES>
__device__ __forceinline__ float max_lanes(float x) {
#pragma unroll
  for (int mask = LANES / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, mask));
  return x;
}

// x · sigmoid(x). The quotient is exact to a few units in the last place, and goes to 0 and x far out.
__device__ __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }
