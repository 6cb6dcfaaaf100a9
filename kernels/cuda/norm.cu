// Normalisation of vectors: LayerNorm with a scale and a shift of its own, or with those of a row (adaptive LayerNorm), and
// RMSNorm.
//
// x is (vectors, channels), contiguous. A team of threads, a power of two from 1 to 256, has one vector; its size depends on
// the number of channels alone, and so does the order of all sums. The values stay in registers from the sum over the
// deviations to the result.
//
// Bound by memory: one reading, one writing. Expected, not measured: 85 to 90 % of the memory's speed at the channels of a
// diffusion transformer (1536 to 3840), where a team of 64 or 128 threads has each thread read 2 to 4 times 16 bytes, all on
// their way at a time, and a multiprocessor has 8 blocks of 256 threads.

#include "common.cuh"

struct NormParameters {
  const void* x;
  void* out;
  const float* weight;  // (channels), null for ones
  const float* bias;    // (channels), null for zeros
  const void* scale;    // (rows, channels), to which 1 is added
  const void* shift;    // (rows, channels)
  int64_t scale_row, shift_row;
  int32_t vectors, channels, team;
  int32_t positions;  // vectors a row
  float eps;
};

constexpr int THREADS = 256;
constexpr int HELD = 4;  // sets of values that a thread keeps in registers; more of them are read again

// The sum over a team, the same bits in all of its threads. All threads of the block come here.
__device__ __forceinline__ float sum_team(float x, int team) {
  __shared__ float parts[THREADS / 32];
  for (int mask = min(team, 32) / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffff, x, mask);
  if (team > 32) {
    const int warp = threadIdx.x / 32, warps = team / 32, first = warp / warps * warps;
    __syncthreads();  // the parts of the last sum are no longer read
    if (threadIdx.x % 32 == 0) parts[warp] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < warps; i++) x += parts[first + i];
  }
  return x;
}

enum class Norm { Layer, Ada, Rms };

template <class T, int N, Norm NORM>
__device__ __forceinline__ void normalize(const NormParameters& p) {
  const int teams = THREADS / p.team, vector = blockIdx.x * teams + threadIdx.x / p.team, rank = threadIdx.x % p.team;
  // The threads of a team behind the last vector have no values, but take part in the sums.
  const int packs = vector < p.vectors ? p.channels / N : 0;
  const T* const x = static_cast<const T*>(p.x) + int64_t(vector) * p.channels;
  T* const out = static_cast<T*>(p.out) + int64_t(vector) * p.channels;

  Pack<T, N> held[HELD];
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    if (rank + j * p.team < packs) held[j] = load<T, N>(x + (rank + j * p.team) * N);
  }
  // Gives `act` each of this thread's sets of values, and its number.
  const auto each = [&](auto act) {
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      if (rank + j * p.team < packs) act(held[j], rank + j * p.team);
    }
    for (int pack = rank + HELD * p.team; pack < packs; pack += p.team) act(load<T, N>(x + pack * N), pack);
  };

  float mean = 0;
  if constexpr (NORM != Norm::Rms) {
    float sum = 0;
    each([&](const Pack<T, N>& values, int) {
#pragma unroll
      for (int i = 0; i < N; i++) sum += to_f32(values.at[i]);
    });
    mean = sum_team(sum, p.team) / p.channels;
  }
  float squares = 0;
  each([&](const Pack<T, N>& values, int) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float deviation = to_f32(values.at[i]) - mean;
      squares += deviation * deviation;
    }
  });
  const float inverse = 1 / sqrtf(sum_team(squares, p.team) / p.channels + p.eps);

  const int64_t row = vector / p.positions;
  const T* const scale = static_cast<const T*>(p.scale) + row * p.scale_row;
  const T* const shift = static_cast<const T*>(p.shift) + row * p.shift_row;
  each([&](const Pack<T, N>& values, int pack) {
    Pack<T, N> result;
    if constexpr (NORM == Norm::Ada) {
      const Pack<T, N> scales = load<T, N>(scale + pack * N), shifts = load<T, N>(shift + pack * N);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float y = (to_f32(values.at[i]) - mean) * inverse;
        result.at[i] = from_f32<T>(y * (1 + to_f32(scales.at[i])) + to_f32(shifts.at[i]));
      }
    } else {
      Pack<float, N> weights, biases;
#pragma unroll
      for (int i = 0; i < N; i++) {
        weights.at[i] = 1;
        biases.at[i] = 0;
      }
      if (p.weight != nullptr) weights = load<float, N>(p.weight + pack * N);
      if (p.bias != nullptr) biases = load<float, N>(p.bias + pack * N);
#pragma unroll
      for (int i = 0; i < N; i++) {
        result.at[i] = from_f32<T>((to_f32(values.at[i]) - mean) * inverse * weights.at[i] + biases.at[i]);
      }
    }
    store(out + pack * N, result);
  });
}

#define NORM(T)                                                                                                 \
  KERNEL(layer_norm_##T, NormParameters, THREADS, 4) { normalize<T, WIDE<T>, Norm::Layer>(p); }                  \
  KERNEL(layer_norm_single_##T, NormParameters, THREADS, 4) { normalize<T, 1, Norm::Layer>(p); }                 \
  KERNEL(ada_layer_norm_##T, NormParameters, THREADS, 4) { normalize<T, WIDE<T>, Norm::Ada>(p); }                \
  KERNEL(ada_layer_norm_single_##T, NormParameters, THREADS, 4) { normalize<T, 1, Norm::Ada>(p); }               \
  KERNEL(rms_norm_##T, NormParameters, THREADS, 4) { normalize<T, WIDE<T>, Norm::Rms>(p); }                      \
  KERNEL(rms_norm_single_##T, NormParameters, THREADS, 4) { normalize<T, 1, Norm::Rms>(p); }

NORM(f32)
NORM(f16)
NORM(bf16)
