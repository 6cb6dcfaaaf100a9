// CUDA's words on a processor: what the kernels beside this folder use of them, so that a C++ compiler can build the
// kernels as they are and a test can run them where no GPU is.
//
// A block's threads are fibers of one thread, so a run is the same every time. Two schedules take the orders that differ
// most, and a kernel whose result depends on the order (a barrier is missing, or a wait for a copy) gives two results:
//
//   schedule 0: threads from first to last, an asynchronous copy lands where it is issued;
//   schedule 1: threads from last to first, an asynchronous copy lands where it is waited for.
//
// What the GPU leaves undefined fails here with a message: a barrier or a warp's instruction that not all threads come
// to, an access outside of an array, a wrong alignment. Shared memory holds NaN before it is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// The threads of a block are fibers of one thread and blocks run one after the other, so what is static is shared.
#define __shared__ static

using std::max;
using std::min;

struct uint3 {
  unsigned x, y, z;
};
using dim3 = uint3;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulated {

extern uint3 thread, block, block_size, grid_size;
extern unsigned char* dynamic_shared;

// Ends the run with a message.
[[noreturn]] void fail(const char* what, int line);

// Waits for all threads of the block; they must come to the same line.
void barrier(int line);

// What a warp does together. The last of its threads to come runs `act` on what each of them brought.
using Act = void (*)(void* const* lanes);
void together(Act act, void* brought);

// Asynchronous copies of 16 bytes from global to shared memory, of which `from` are real and the others 0.
void copy_async(void* to, const void* from, unsigned bytes);
void commit_copies();
void wait_copies(unsigned groups);

// Fails unless 16 bytes at `at` lie in the dynamic shared memory, aligned.
void check_shared(const void* at);

}  // namespace emulated

#define threadIdx emulated::thread
#define blockIdx emulated::block
#define blockDim emulated::block_size
#define gridDim emulated::grid_size
#define __syncthreads() emulated::barrier(__LINE__)
#define __syncwarp() emulated::together([](void* const*) {}, nullptr)

// IEEE half precision and bfloat16, by their bits; conversions round to nearest, ties to even, as the GPU's do.
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __bfloat162float(__nv_bfloat16 x) { return from_bits(uint32_t(x.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits = to_bits(x);
  if (x != x) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half x) {
  uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent == 0) return from_bits(sign | to_bits(float(mantissa) * 0x1p-24f));
  if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13);
  return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline __half __float2half_rn(float x) {
  uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000;
  float size = std::fabs(x);
  if (x != x) return {0x7fff};
  if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  // Below the normal numbers the steps are 2^-24, and adding 0.5 (whose own steps those are) rounds to them.
  if (size < 0x1p-14f) return {uint16_t(sign | (to_bits(size + 0.5f) - to_bits(0.5f)))};
  bits &= 0x7fffffff;
  return {uint16_t(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13))};
}

// A warp's threads read each other's `value`: the thread `lane` ^ `mask`.
inline float __shfl_xor_sync(unsigned threads, float value, int mask) {
  if (threads != 0xffffffff) emulated::fail("a shuffle of part of a warp", __LINE__);
  struct Brought {
    float value;
    int mask;
    float result;
  } brought{value, mask, 0};
  emulated::together(
      [](void* const* lanes) {
        for (int lane = 0; lane < 32; lane++) {
          auto own = static_cast<Brought*>(lanes[lane]);
          own->result = static_cast<Brought*>(lanes[lane ^ own->mask])->value;
        }
      },
      &brought);
  return brought.result;
}

// A warp's threads read the `value` of the thread `source`.
inline float __shfl_sync(unsigned threads, float value, int source) {
  if (threads != 0xffffffff) emulated::fail("a shuffle of part of a warp", __LINE__);
  struct Brought {
    float value;
    int source;
    float result;
  } brought{value, source, 0};
  emulated::together(
      [](void* const* lanes) {
        for (int lane = 0; lane < 32; lane++) {
          auto own = static_cast<Brought*>(lanes[lane]);
          own->result = static_cast<Brought*>(lanes[own->source & 31])->value;
        }
      },
      &brought);
  return brought.result;
}
