// The activations, GEGLU, sums, the gate before a residual, and the enlarging of images: one value at a time.
//
// Bound by memory. Expected, not measured: 85 to 90 % of its speed: each thread has four sets of 16 bytes on their way at a
// time, and a warp's lie side by side. The error function of GEGLU, some 20 instructions, stays below what the memory takes.

#include "common.cuh"

constexpr int THREADS = 256;
constexpr int AHEAD = 4;

struct ActivationParameters {
  const void* x;
  void* out;
  int64_t count;
};

struct Silu {
  template <class T>
  static __device__ __forceinline__ float of(float x) {
    return silu(x);
  }
};

struct Gelu {
  template <class T>
  static __device__ __forceinline__ float of(float x) {
    constexpr float ROOT_HALF = 0.70710678118654752f;
    // 1 + erf loses all digits where it comes near 0; in half precision there are none to lose, and erf is cheaper.
    return sizeof(T) == 4 ? 0.5f * x * erfcf(-x * ROOT_HALF) : 0.5f * x * (1 + erff(x * ROOT_HALF));
  }
};

struct GeluTanh {
  template <class T>
  static __device__ __forceinline__ float of(float x) {
    // (1 + tanh(u)) / 2 is sigmoid(2u), which keeps its digits.
    constexpr float TWICE_ROOT = 1.5957691216057308f;  // 2 · sqrt(2 / pi)
    return x / (1 + expf(-TWICE_ROOT * (x + 0.044715f * x * x * x)));
  }
};

struct QuickGelu {
  template <class T>
  static __device__ __forceinline__ float of(float x) {
    return x / (1 + expf(-1.702f * x));
  }
};

template <class T, class F>
__device__ __forceinline__ void activate(const ActivationParameters& p) {
  constexpr int N = WIDE<T>;
  const T* const x = static_cast<const T*>(p.x);
  T* const out = static_cast<T*>(p.out);
  const int64_t first = (int64_t(blockIdx.x) * THREADS * AHEAD + threadIdx.x) * N;
  Pack<T, N> values[AHEAD];
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int64_t at = first + j * THREADS * N;
    if (at + N <= p.count) values[j] = load<T, N>(x + at);
  }
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int64_t at = first + j * THREADS * N;
    if (at + N <= p.count) {
#pragma unroll
      for (int i = 0; i < N; i++) values[j].at[i] = from_f32<T>(F::template of<T>(to_f32(values[j].at[i])));
      store(out + at, values[j]);
    } else {
      for (int64_t i = at; i < p.count; i++) out[i] = from_f32<T>(F::template of<T>(to_f32(x[i])));
    }
  }
}

struct GegluParameters {
  const void* x;  // (vectors, 2 · d): hidden, gate
  void* out;      // (vectors, d)
  int32_t packs;  // sets of N values in the result
  int32_t d;
};

template <class T, int N>
__device__ __forceinline__ void geglu(const GegluParameters& p) {
  const int width = p.d / N, first = blockIdx.x * THREADS * AHEAD + threadIdx.x;
  const T* const x = static_cast<const T*>(p.x);
  Pack<T, N> hidden[AHEAD], gate[AHEAD];
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int pack = first + j * THREADS;
    if (pack < p.packs) {
      const int vector = pack / width;
      const T* const from = x + int64_t(vector) * 2 * p.d + (pack - vector * width) * N;
      hidden[j] = load<T, N>(from);
      gate[j] = load<T, N>(from + p.d);
    }
  }
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int pack = first + j * THREADS;
    if (pack < p.packs) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        hidden[j].at[i] = from_f32<T>(to_f32(hidden[j].at[i]) * Gelu::of<T>(to_f32(gate[j].at[i])));
      }
      store(static_cast<T*>(p.out) + int64_t(pack) * N, hidden[j]);
    }
  }
}

struct GatedAddParameters {
  const void* residual;  // (rows, positions, channels)
  const void* gate;      // (rows, channels)
  const void* x;
  void* out;
  int64_t gate_row;
  int32_t packs;  // sets of N values in the result
  int32_t positions, channels;
};

template <class T, int N>
__device__ __forceinline__ void gated_add(const GatedAddParameters& p) {
  const int width = p.channels / N, first = blockIdx.x * THREADS * AHEAD + threadIdx.x;
  Pack<T, N> residual[AHEAD], x[AHEAD], gate[AHEAD];
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int pack = first + j * THREADS;
    if (pack < p.packs) {
      const int vector = pack / width, row = vector / p.positions;
      residual[j] = load<T, N>(static_cast<const T*>(p.residual) + int64_t(pack) * N);
      x[j] = load<T, N>(static_cast<const T*>(p.x) + int64_t(pack) * N);
      gate[j] = load<T, N>(static_cast<const T*>(p.gate) + row * p.gate_row + (pack - vector * width) * N);
    }
  }
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int pack = first + j * THREADS;
    if (pack < p.packs) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        residual[j].at[i] = from_f32<T>(to_f32(residual[j].at[i]) + to_f32(gate[j].at[i]) * to_f32(x[j].at[i]));
      }
      store(static_cast<T*>(p.out) + int64_t(pack) * N, residual[j]);
    }
  }
}

struct AddParameters {
  const void* x;  // (rows, positions, channels)
  const void* y;  // the same, or (rows, channels)
  void* out;
  int64_t y_row;
  int32_t packs;  // sets of N values in the result
  int32_t positions, channels;
};

// ROWS: whether y is a vector for each row.
template <class T, int N, bool ROWS>
__device__ __forceinline__ void add(const AddParameters& p) {
  const int width = p.channels / N, first = blockIdx.x * THREADS * AHEAD + threadIdx.x;
  Pack<T, N> x[AHEAD], y[AHEAD];
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int pack = first + j * THREADS;
    if (pack < p.packs) {
      x[j] = load<T, N>(static_cast<const T*>(p.x) + int64_t(pack) * N);
      int64_t at = int64_t(pack) * N;
      if constexpr (ROWS) {
        const int vector = pack / width;
        at = vector / p.positions * p.y_row + (pack - vector * width) * N;
      }
      y[j] = load<T, N>(static_cast<const T*>(p.y) + at);
    }
  }
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int pack = first + j * THREADS;
    if (pack < p.packs) {
#pragma unroll
      for (int i = 0; i < N; i++) x[j].at[i] = from_f32<T>(to_f32(x[j].at[i]) + to_f32(y[j].at[i]));
      store(static_cast<T*>(p.out) + int64_t(pack) * N, x[j]);
    }
  }
}

struct UpsampleParameters {
  const void* x;  // (rows, from_h, from_w, units)
  void* out;      // (rows, h, w, units)
  int32_t units;  // sets of bytes a pixel
  int32_t from_h, from_w, h, w;
  int32_t count;  // sets of bytes in the result
  float scale_h, scale_w;
};

// Pixels are copied by their bytes, in sets of type U, whatever is in them.
template <class U>
__device__ __forceinline__ void upsample(const UpsampleParameters& p) {
  const int first = blockIdx.x * THREADS * AHEAD + threadIdx.x;
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const int number = first + j * THREADS;
    if (number < p.count) {
      const int pixel = number / p.units, unit = number - pixel * p.units;
      const int line = pixel / p.w, row = line / p.h;
      // PyTorch's own rounding: the quotient of the sizes in f32, and what comes of it cut off.
      const int y = min(int((line - row * p.h) * p.scale_h), p.from_h - 1);
      const int x = min(int((pixel - line * p.w) * p.scale_w), p.from_w - 1);
      const int64_t from = ((int64_t(row) * p.from_h + y) * p.from_w + x) * p.units + unit;
      static_cast<U*>(p.out)[number] = static_cast<const U*>(p.x)[from];
    }
  }
}

#define ELEMENTWISE(T)                                                                                \
  KERNEL(silu_##T, ActivationParameters, THREADS, 4) { activate<T, Silu>(p); }                         \
  KERNEL(gelu_##T, ActivationParameters, THREADS, 4) { activate<T, Gelu>(p); }                         \
  KERNEL(gelu_tanh_##T, ActivationParameters, THREADS, 4) { activate<T, GeluTanh>(p); }                \
  KERNEL(quick_gelu_##T, ActivationParameters, THREADS, 4) { activate<T, QuickGelu>(p); }              \
  KERNEL(geglu_##T, GegluParameters, THREADS, 3) { geglu<T, WIDE<T>>(p); }                             \
  KERNEL(geglu_single_##T, GegluParameters, THREADS, 4) { geglu<T, 1>(p); }                            \
  KERNEL(gated_add_##T, GatedAddParameters, THREADS, 2) { gated_add<T, WIDE<T>>(p); }                  \
  KERNEL(gated_add_single_##T, GatedAddParameters, THREADS, 4) { gated_add<T, 1>(p); }                 \
  KERNEL(add_##T, AddParameters, THREADS, 4) { add<T, WIDE<T>, false>(p); }                            \
  KERNEL(add_single_##T, AddParameters, THREADS, 4) { add<T, 1, false>(p); }                           \
  KERNEL(add_rows_##T, AddParameters, THREADS, 3) { add<T, WIDE<T>, true>(p); }                        \
  KERNEL(add_rows_single_##T, AddParameters, THREADS, 4) { add<T, 1, true>(p); }                       \
  KERNEL(upsample_wide_##T, UpsampleParameters, THREADS, 4) { upsample<uint4>(p); }                    \
  KERNEL(upsample_single_##T, UpsampleParameters, THREADS, 4) { upsample<T>(p); }

ELEMENTWISE(f32)
ELEMENTWISE(f16)
ELEMENTWISE(bf16)
