// Kernels with one mistake each, which the emulated GPU must find: else what it says of the others would mean nothing.

#include "../async.cuh"
#include "../common.cuh"

struct WrongParameters {
  const float* x;  // 64 values
  float* out;      // 64 values
};

KERNEL(wrong_nothing_f32, WrongParameters, 64, 1) {
  DYNAMIC_SHARED(shared);
  float* const values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = p.x[threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = values[63 - threadIdx.x];
}

KERNEL(wrong_barrier_missing_f32, WrongParameters, 64, 1) {
  DYNAMIC_SHARED(shared);
  float* const values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = p.x[threadIdx.x];
  p.out[threadIdx.x] = values[63 - threadIdx.x];
}

KERNEL(wrong_barrier_for_some_f32, WrongParameters, 64, 1) {
  if (threadIdx.x < 40) __syncthreads();
  p.out[threadIdx.x] = p.x[threadIdx.x];
}

KERNEL(wrong_barriers_f32, WrongParameters, 64, 1) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.out[threadIdx.x] = p.x[threadIdx.x];
}

KERNEL(wrong_shuffle_f32, WrongParameters, 64, 1) {
  float value = p.x[threadIdx.x];
  if (threadIdx.x % 32 < 16) value = __shfl_xor_sync(0xffffffff, value, 1);
  p.out[threadIdx.x] = value;
}

KERNEL(wrong_wait_f32, WrongParameters, 64, 1) {
  DYNAMIC_SHARED(shared);
  float* const values = reinterpret_cast<float*>(shared);
  if (threadIdx.x < 16) copy_async(values + threadIdx.x * 4, p.x + threadIdx.x * 4, true);
  commit_copies();
  wait_copies<1>();
  __syncthreads();
  p.out[threadIdx.x] = values[threadIdx.x];
}

KERNEL(wrong_alignment_f32, WrongParameters, 64, 1) {
  DYNAMIC_SHARED(shared);
  if (threadIdx.x < 8) copy_async(shared + threadIdx.x * 16, p.x + threadIdx.x * 4 + 1, true);
  p.out[threadIdx.x] = 0;
}

KERNEL(wrong_read_f32, WrongParameters, 64, 1) { p.out[threadIdx.x] = p.x[threadIdx.x + 1]; }

KERNEL(wrong_write_f32, WrongParameters, 64, 1) { p.out[threadIdx.x + 1] = p.x[threadIdx.x]; }

KERNEL(wrong_shared_f32, WrongParameters, 64, 1) {
  DYNAMIC_SHARED(shared);
  reinterpret_cast<float*>(shared)[threadIdx.x + 1] = p.x[threadIdx.x];
  p.out[threadIdx.x] = 0;
}

KERNEL(wrong_index_f32, WrongParameters, 64, 1) {
  __shared__ float values[32];
  values[threadIdx.x] = p.x[threadIdx.x];
  p.out[threadIdx.x] = values[threadIdx.x];
}

KERNEL(wrong_unwritten_f32, WrongParameters, 64, 1) {
  if (threadIdx.x > 0) p.out[threadIdx.x] = p.x[threadIdx.x];
}
