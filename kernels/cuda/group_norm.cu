// Group normalisation of channels-last images, alone or followed by SiLU.
//
// x is (rows, positions, channels). A row's positions are cut into chunks; `group_norm_moments_*` gives each chunk's mean
// and squared deviations for each group, `group_norm_*` merges them and makes the result. A chunk's length depends on the
// image alone, and all sums have one order, so a row's bits do not depend on the number of rows.
//
// Bound by memory: x is read twice and the result written once, the second reading from L2 where the image fits there (an
// H200's 50 MB hold every activation of SDXL's UNet at batch 1). Expected, not measured: 80 to 90 % of the memory's speed.
// A thread keeps one set of neighbouring channels for all its positions, so that each warp reads whole lines of 16 bytes a
// thread, and has four of them on their way at a time.

#include "common.cuh"
#include "moments.cuh"

struct GroupNormParameters {
  const void* x;
  void* out;
  const float* moments;  // (rows, chunks, groups, 2): mean and sum of squared deviations
  const float* weight;
  const float* bias;
  int32_t positions, channels, groups, chunk;  // positions a chunk
  float eps;
};

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int AHEAD = 4;

// How a block's threads lie over channels and positions: `columns` sets of N channels side by side, as many of them as fit,
// each at `lines` positions at a time.
struct Layout {
  int columns, lines, column, line;
};

template <int N>
__device__ __forceinline__ Layout layout(int channels) {
  const int columns = channels / N, lines = max(THREADS / columns, 1);
  return {columns, lines, int(threadIdx.x) % columns, int(threadIdx.x) / columns};
}

// Shared memory: the moments of each of `lines` by channel, mean and squares; lines · channels each.
template <class T, int N>
__device__ __forceinline__ void moments(const GroupNormParameters& p) {
  DYNAMIC_SHARED(shared);
  const Layout own = layout<N>(p.channels);
  float* const means = reinterpret_cast<float*>(shared);
  float* const squares = means + own.lines * p.channels;
  const int first = blockIdx.x * p.chunk, count = min(p.chunk, p.positions - first);
  const int64_t row = blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + (row * p.positions + first) * p.channels;

  // With more columns than threads a thread has several of them, one after the other; else the threads that are left over
  // have none.
  for (int column = own.column; own.line < own.lines && column < own.columns; column += THREADS) {
    const T* const from = x + column * N;
    // Deviations from the first value are summed: they are small where the mean is large.
    float base[N], sum[N] = {}, square[N] = {};
    const int number = own.line < count ? (count - own.line - 1) / own.lines + 1 : 0;
    if (number > 0) {
      const Pack<T, N> values = load<T, N>(from + int64_t(own.line) * p.channels);
#pragma unroll
      for (int i = 0; i < N; i++) base[i] = to_f32(values.at[i]);
    }
    for (int done = 1; done < number; done += AHEAD) {
      Pack<T, N> values[AHEAD];
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        if (done + j < number) values[j] = load<T, N>(from + int64_t(own.line + (done + j) * own.lines) * p.channels);
      }
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        if (done + j < number) {
#pragma unroll
          for (int i = 0; i < N; i++) {
            const float deviation = to_f32(values[j].at[i]) - base[i];
            sum[i] += deviation;
            square[i] += deviation * deviation;
          }
        }
      }
    }
    const float inverse = number > 0 ? 1.0f / number : 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float mean = sum[i] * inverse;
      means[own.line * p.channels + column * N + i] = number > 0 ? base[i] + mean : 0;
      squares[own.line * p.channels + column * N + i] = fmaxf(square[i] - sum[i] * mean, 0);
    }
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, size = p.channels / p.groups;
  float* const out = static_cast<float*>(p.out) + (row * gridDim.x + blockIdx.x) * p.groups * 2;
  for (int group = warp; group < p.groups; group += WARPS) {
    Moments all{0, 0, 0};
    for (int i = lane; i < own.lines * size; i += 32) {
      const int line = i / size, at = line * p.channels + group * size + i % size;
      const float number = line < count ? (count - line - 1) / own.lines + 1 : 0;
      all = merge(all, Moments{number, means[at], squares[at]});
    }
    all = merge_lanes(all);
    if (lane == 0) {
      out[group * 2] = all.mean;
      out[group * 2 + 1] = all.squares;
    }
  }
}

// Shared memory: each group's mean and the inverse of its deviation.
template <class T, int N, bool SILU>
__device__ __forceinline__ void normalize(const GroupNormParameters& p) {
  DYNAMIC_SHARED(shared);
  float* const means = reinterpret_cast<float*>(shared);
  float* const inverses = means + p.groups;
  const Layout own = layout<N>(p.channels);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, size = p.channels / p.groups;
  const int chunks = gridDim.x, first = blockIdx.x * p.chunk, count = min(p.chunk, p.positions - first);
  const int64_t row = blockIdx.y;

  const float* const moments = p.moments + row * chunks * p.groups * 2;
  for (int group = warp; group < p.groups; group += WARPS) {
    Moments all{0, 0, 0};
    for (int chunk = lane; chunk < chunks; chunk += 32) {
      const float number = float(min(p.chunk, p.positions - chunk * p.chunk)) * size;
      const Pack<float, 2> of = load<float, 2>(moments + (chunk * p.groups + group) * 2);
      all = merge(all, Moments{number, of.at[0], of.at[1]});
    }
    all = merge_lanes(all);
    if (lane == 0) {
      means[group] = all.mean;
      inverses[group] = 1 / sqrtf(all.squares / all.count + p.eps);
    }
  }
  __syncthreads();

  const int64_t start = (row * p.positions + first) * p.channels;
  for (int column = own.column; own.line < own.lines && column < own.columns; column += THREADS) {
    const T* const from = static_cast<const T*>(p.x) + start + column * N;
    T* const to = static_cast<T*>(p.out) + start + column * N;
    float mean[N], factor[N], bias[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      const int channel = column * N + i, group = channel / size;
      mean[i] = means[group];
      factor[i] = inverses[group] * p.weight[channel];
      bias[i] = p.bias[channel];
    }
    for (int line = own.line; line < count; line += own.lines * AHEAD) {
      Pack<T, N> values[AHEAD];
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        const int at = line + j * own.lines;
        if (at < count) values[j] = load<T, N>(from + int64_t(at) * p.channels);
      }
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        const int at = line + j * own.lines;
        if (at < count) {
#pragma unroll
          for (int i = 0; i < N; i++) {
            const float y = (to_f32(values[j].at[i]) - mean[i]) * factor[i] + bias[i];
            values[j].at[i] = from_f32<T>(SILU ? silu(y) : y);
          }
          store(to + int64_t(at) * p.channels, values[j]);
        }
      }
    }
  }
}

#define GROUP_NORM(T)                                                                                             \
  KERNEL(group_norm_moments_##T, GroupNormParameters, THREADS, 3) { moments<T, WIDE<T>>(p); }                      \
  KERNEL(group_norm_moments_single_##T, GroupNormParameters, THREADS, 4) { moments<T, 1>(p); }                     \
  KERNEL(group_norm_##T, GroupNormParameters, THREADS, 3) { normalize<T, WIDE<T>, false>(p); }                     \
  KERNEL(group_norm_single_##T, GroupNormParameters, THREADS, 4) { normalize<T, 1, false>(p); }                    \
  KERNEL(group_norm_silu_##T, GroupNormParameters, THREADS, 3) { normalize<T, WIDE<T>, true>(p); }                 \
  KERNEL(group_norm_silu_single_##T, GroupNormParameters, THREADS, 4) { normalize<T, 1, true>(p); }

GROUP_NORM(f32)
GROUP_NORM(f16)
GROUP_NORM(bf16)
