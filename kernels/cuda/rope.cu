// Rotary position embedding of each head, alone or after an RMSNorm of the head (QK-norm).
//
// x is (rows, positions, heads · d); the cosines and sines are (positions, d / 2) for all rows or for each. A team of
// threads, a power of two up to 32, has one head of one position. All is computed in f32, and rounded once.
//
// Bound by memory: one reading and one writing of x; with the norm, x is read a second time, from L1, where the 64 to 512
// bytes of a head have just come to. Expected, not measured: 80 to 90 % of the memory's speed. The angles are read by all
// heads of a position, side by side, from L1 and L2.

#include "common.cuh"

struct RopeParameters {
  const void* x;
  void* out;
  const float* cosines;
  const float* sines;
  const float* weight;  // (d), for the norm
  int64_t x_row, x_step;  // elements from one row, and one position, to the next
  int64_t angles_row;     // 0 where all rows have the same
  int32_t rows, positions, heads, d, team;
  float eps;
};

constexpr int THREADS = 256;

// N values are read at a time: neighbours in pairs, or N of each half.
template <class T, int N, bool HALVES, bool NORM>
__device__ __forceinline__ void turn(const RopeParameters& p) {
  const int teams = THREADS / p.team, rank = threadIdx.x % p.team;
  const int64_t number = int64_t(blockIdx.x) * teams + threadIdx.x / p.team;
  // The threads behind the last head have no values, but take part in the sums.
  const bool live = number < int64_t(p.rows) * p.positions * p.heads;
  const int head = live ? number % p.heads : 0;
  const int64_t place = live ? number / p.heads : 0, row = place / p.positions, position = place % p.positions;
  const T* const x = static_cast<const T*>(p.x) + row * p.x_row + position * p.x_step + head * p.d;
  T* const out = static_cast<T*>(p.out) + number * p.d;
  const float* const cosines = p.cosines + row * p.angles_row + position * (p.d / 2);
  const float* const sines = p.sines + row * p.angles_row + position * (p.d / 2);

  float inverse = 1;
  if constexpr (NORM) {
    float squares = 0;
    for (int at = rank * N; live && at < p.d; at += p.team * N) {
      const Pack<T, N> values = load<T, N>(x + at);
#pragma unroll
      for (int i = 0; i < N; i++) squares += to_f32(values.at[i]) * to_f32(values.at[i]);
    }
    for (int mask = p.team / 2; mask > 0; mask /= 2) squares += __shfl_xor_sync(0xffffffff, squares, mask);
    inverse = 1 / sqrtf(squares / p.d + p.eps);
  }
  const auto value = [&](T x, int channel) { return NORM ? to_f32(x) * inverse * p.weight[channel] : to_f32(x); };
  if (!live) return;

  if constexpr (HALVES) {
    const int half = p.d / 2;
    for (int at = rank * N; at < half; at += p.team * N) {
      Pack<T, N> first = load<T, N>(x + at), second = load<T, N>(x + half + at);
      const Pack<float, N> cosine = load<float, N>(cosines + at), sine = load<float, N>(sines + at);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float a = value(first.at[i], at + i), b = value(second.at[i], half + at + i);
        first.at[i] = from_f32<T>(a * cosine.at[i] - b * sine.at[i]);
        second.at[i] = from_f32<T>(b * cosine.at[i] + a * sine.at[i]);
      }
      store(out + at, first);
      store(out + half + at, second);
    }
  } else {
    for (int at = rank * N; at < p.d; at += p.team * N) {
      Pack<T, N> values = load<T, N>(x + at);
      const Pack<float, N / 2> cosine = load<float, N / 2>(cosines + at / 2), sine = load<float, N / 2>(sines + at / 2);
#pragma unroll
      for (int i = 0; i < N / 2; i++) {
        const float a = value(values.at[2 * i], at + 2 * i), b = value(values.at[2 * i + 1], at + 2 * i + 1);
        values.at[2 * i] = from_f32<T>(a * cosine.at[i] - b * sine.at[i]);
        values.at[2 * i + 1] = from_f32<T>(b * cosine.at[i] + a * sine.at[i]);
      }
      store(out + at, values);
    }
  }
}

// What reads single values, or pairs of neighbours, ends in `single`.
#define ROPE(T)                                                                                                        \
  KERNEL(rotary_neighbours_##T, RopeParameters, THREADS, 4) { turn<T, WIDE<T>, false, false>(p); }                      \
  KERNEL(rotary_neighbours_single_##T, RopeParameters, THREADS, 4) { turn<T, 2, false, false>(p); }                     \
  KERNEL(rotary_halves_##T, RopeParameters, THREADS, 4) { turn<T, WIDE<T>, true, false>(p); }                           \
  KERNEL(rotary_halves_single_##T, RopeParameters, THREADS, 4) { turn<T, 1, true, false>(p); }                          \
  KERNEL(rms_norm_neighbours_##T, RopeParameters, THREADS, 4) { turn<T, WIDE<T>, false, true>(p); }                     \
  KERNEL(rms_norm_neighbours_single_##T, RopeParameters, THREADS, 4) { turn<T, 2, false, true>(p); }                    \
  KERNEL(rms_norm_halves_##T, RopeParameters, THREADS, 4) { turn<T, WIDE<T>, true, true>(p); }                          \
  KERNEL(rms_norm_halves_single_##T, RopeParameters, THREADS, 4) { turn<T, 1, true, true>(p); }

ROPE(f32)
ROPE(f16)
ROPE(bf16)
