// Convolution of channels-last images as one product of matrices that is never laid out: the left operand's rows are the
// positions of the result, its columns the window's pixels and channels, gathered from the image as they are needed; zeros
// around the image are zeros that the copy writes. In f16 and bf16, with sums in f32.
//
// The weight is (out, window height, window width, in), so that both operands have their sums' direction contiguous. The
// channels are a multiple of 8: 16 bytes are always of one pixel.
//
// 2 · positions · out · in · window FLOP: bound by the tensor cores from some hundred channels on. A block makes 128 x 128
// sums, each warp 64 x 32, from tiles 32 deep of which three are on their way while one is multiplied; rows of shared
// memory are padded by 16 bytes, against conflicts of banks. Expected, not measured: 60 to 70 % of what mma.sync reaches
// (on sm_90, some 40 % of wgmma's peak). Small images leave most multiprocessors without a block: there the sums' direction
// is cut into parts, summed by a kernel of its own.
//
// Each sum has one order, whatever the block's size, and the number of parts depends on the sizes of one image alone, so a
// row's bits do not depend on the number of rows.

#include "async.cuh"
#include "common.cuh"
#include "mma.cuh"

struct Conv2dParameters {
  const void* x;       // (rows, h, w, in)
  const void* weight;  // (out, window_h, window_w, in)
  const float* bias;   // (out), or null
  void* out;           // (rows, out_h, out_w, out), or with parts (parts, rows · out_h · out_w, out) in f32
  int32_t h, w, in;
  int32_t out_h, out_w, channels;
  int32_t window_h, window_w, stride, top, left;
  int32_t positions;  // rows · out_h · out_w
  int32_t steps;      // tiles of a part in the sums' direction
};

constexpr int DEPTH = 32;
constexpr int PITCH = DEPTH + 8;
constexpr int STAGES = 4;

// ROWS positions by COLUMNS channels a block, in warps of 64 x 32 or, DOWN being 2, of 32 x 32.
template <class T, int ROWS, int COLUMNS, int DOWN, bool PARTS>
__device__ __forceinline__ void convolve(const Conv2dParameters& p) {
  constexpr int WARP_ROWS = DOWN * 16, WARPS_DOWN = ROWS / WARP_ROWS, WARPS = WARPS_DOWN * (COLUMNS / 32);
  constexpr int THREADS = WARPS * 32, CHUNKS = DEPTH / 8, LINES = THREADS / CHUNKS;
  constexpr int STAGE = (ROWS + COLUMNS) * PITCH, OUT_PITCH = COLUMNS + 8;
  DYNAMIC_SHARED(shared);
  T* const stages = reinterpret_cast<T*>(shared);

  const int first_column = blockIdx.x * COLUMNS, first_row = blockIdx.y * ROWS;
  const int depth = p.window_h * p.window_w * p.in, first_depth = blockIdx.z * p.steps * DEPTH;
  const int steps = min(p.steps, (depth - first_depth + DEPTH - 1) / DEPTH);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % WARPS_DOWN * WARP_ROWS, warp_column = warp / WARPS_DOWN * 32;

  // Each thread copies the same 16 bytes of some lines of each tile: their pixels, and where it is in the window.
  const int line = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS * 8;
  constexpr int OWN = ROWS / LINES, OWN_COLUMNS = COLUMNS / LINES;
  int from_y[OWN], from_x[OWN];
  const T* image[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int position = first_row + line + i * LINES, y = position / p.out_w, row = y / p.out_h;
    const bool live = position < p.positions;
    // A position behind the last one is above every image.
    from_y[i] = live ? (y - row * p.out_h) * p.stride - p.top : -(1 << 30);
    from_x[i] = (position - y * p.out_w) * p.stride - p.left;
    image[i] = static_cast<const T*>(p.x) + (live ? int64_t(row) * p.h * p.w * p.in : 0);
  }
  int at = first_depth + chunk, channel = at % p.in, window_x = at / p.in % p.window_w, window_y = at / p.in / p.window_w;

  const auto copy_tile = [&](int stage) {
    T* const rows = stages + stage * STAGE + line * PITCH + chunk;
    T* const columns = rows + ROWS * PITCH;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const int y = from_y[i] + window_y, x = from_x[i] + window_x;
      const bool real = at < depth && y >= 0 && y < p.h && x >= 0 && x < p.w;
      const T* const from = image[i] + (int64_t(y) * p.w + x) * p.in + channel;
      copy_async(rows + i * LINES * PITCH, real ? from : p.x, real);
    }
#pragma unroll
    for (int i = 0; i < OWN_COLUMNS; i++) {
      const int column = first_column + line + i * LINES;
      const bool real = at < depth && column < p.channels;
      const T* const from = static_cast<const T*>(p.weight) + int64_t(column) * depth + at;
      copy_async(columns + i * LINES * PITCH, real ? from : p.weight, real);
    }
    at += DEPTH;
    channel += DEPTH;
    while (channel >= p.in) {
      channel -= p.in;
      if (++window_x == p.window_w) {
        window_x = 0;
        window_y++;
      }
    }
  };

  float sum[DOWN][4][4] = {};
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++) {
    if (stage < steps) copy_tile(stage);
    commit_copies();
  }
  const int down_row = lane % 16, down_column = lane / 16 * 8;
  const int across_row = lane % 8 + lane / 16 * 8, across_column = lane / 8 % 2 * 8;
  for (int step = 0; step < steps; step++) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // this tile is there, and the one before it is no longer read
    if (step + STAGES - 1 < steps) copy_tile((step + STAGES - 1) % STAGES);
    commit_copies();
    const T* const rows = stages + step % STAGES * STAGE;
    const T* const columns = rows + ROWS * PITCH;
#pragma unroll
    for (int deep = 0; deep < DEPTH; deep += 16) {
      uint32_t a[DOWN][4], b[2][4];
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
        load_matrices(a[i], rows + (warp_row + i * 16 + down_row) * PITCH + deep + down_column);
      }
#pragma unroll
      for (int j = 0; j < 2; j++) {
        load_matrices(b[j], columns + (warp_column + j * 16 + across_row) * PITCH + deep + across_column);
      }
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const uint32_t of[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma<T>(sum[i][j], a[i], of);
        }
      }
    }
  }

  const int own_row = lane / 4, own_pair = lane % 4 * 2;
  if constexpr (PARTS) {
    float* const out = static_cast<float*>(p.out) + int64_t(blockIdx.z) * p.positions * p.channels;
#pragma unroll
    for (int i = 0; i < DOWN; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const int position = first_row + warp_row + i * 16 + own_row + part / 2 * 8;
          const int column = first_column + warp_column + j * 8 + own_pair + part % 2;
          if (position < p.positions && column < p.channels) {
            out[int64_t(position) * p.channels + column] = sum[i][j][part];
          }
        }
      }
    }
  } else {
    __syncthreads();  // the last tile is no longer read: its memory takes the result, to be stored in 16 bytes
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int column = warp_column + j * 8 + own_pair;
      float bias[2] = {0, 0};
      if (p.bias != nullptr) {
        if (first_column + column < p.channels) bias[0] = p.bias[first_column + column];
        if (first_column + column + 1 < p.channels) bias[1] = p.bias[first_column + column + 1];
      }
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          T* const to = stages + (warp_row + i * 16 + own_row + half * 8) * OUT_PITCH + column;
          *reinterpret_cast<uint32_t*>(to) = pair<T>(sum[i][j][half * 2] + bias[0], sum[i][j][half * 2 + 1] + bias[1]);
        }
      }
    }
    __syncthreads();
    T* const out = static_cast<T*>(p.out);
    for (int i = threadIdx.x; i < ROWS * COLUMNS / 8; i += THREADS) {
      const int row = i / (COLUMNS / 8), position = first_row + row;
      const int local = i % (COLUMNS / 8) * 8, column = first_column + local;
      if (position >= p.positions || column >= p.channels) continue;
      const T* const from = stages + row * OUT_PITCH + local;
      T* const to = out + int64_t(position) * p.channels + column;
      if (p.channels % 8 == 0) {
        store(to, load<T, 8>(from));
      } else {
        for (int k = 0; k < 8 && column + k < p.channels; k++) to[k] = from[k];
      }
    }
  }
}

struct SumParameters {
  const float* parts;  // (number, positions, channels)
  const float* bias;   // (channels), or null
  void* out;           // (positions, channels)
  int64_t count;       // positions · channels
  int32_t channels, number;
};

// A thread has one value: the parts are few and small, and come from L2.
template <class T>
__device__ __forceinline__ void sum_parts(const SumParameters& p) {
  const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (at >= p.count) return;
  float sum = 0;
  for (int part = 0; part < p.number; part++) sum += p.parts[part * p.count + at];
  if (p.bias != nullptr) sum += p.bias[at % p.channels];
  static_cast<T*>(p.out)[at] = from_f32<T>(sum);
}

#define CONV2D(T)                                                                             \
  KERNEL(conv2d_128_##T, Conv2dParameters, 256, 2) { convolve<T, 128, 128, 4, false>(p); }     \
  KERNEL(conv2d_64_##T, Conv2dParameters, 128, 4) { convolve<T, 64, 64, 2, false>(p); }        \
  KERNEL(conv2d_parts_##T, Conv2dParameters, 128, 4) { convolve<T, 64, 64, 2, true>(p); }      \
  KERNEL(conv2d_sum_##T, SumParameters, 256, 4) { sum_parts<T>(p); }

CONV2D(f16)
CONV2D(bf16)
