// softmax(q · kᵀ · scale + mask) · v for each head, the scores never leaving the multiprocessor (Dao, "FlashAttention-2",
// 2023): a block keeps some queries of one head, goes over the keys in tiles, and carries each query's greatest score,
// the sum of its weights and its weighted values along.
//
// Two forms. `attention_*` multiplies on the tensor cores, in f16 or bf16 with sums in f32; the weights are rounded to the
// type of the values before their product, as every fused attention does it. `attention_exact_*` multiplies in f32 whatever
// the type, and takes any head size up to 512 and any alignment.
//
// Work: 4·n·m·d FLOP a head; memory (n + m)·d a head, so from some hundred keys on it is bound by the tensor cores.
// Expected, not measured: half to two thirds of what mma.sync reaches, which on sm_90 is itself near two thirds of wgmma's
// peak. A warp of 32 queries (head sizes up to 128) uses each fragment of K and V twice, without which reading them from
// shared memory would take longer than multiplying. Rows of shared memory are padded by 16 bytes, which makes their
// distance an odd number of 16 bytes, so that eight rows of ldmatrix touch all banks once. V arrives while the scores are
// made, and the next K while the weights are made and multiplied. Blocks of one head are neighbours in the grid: they read
// the same K and V, from L2.
//
// The order in which a query's keys are added up depends on nothing but their number.

#include "async.cuh"
#include "common.cuh"
#include "mma.cuh"

struct AttentionParameters {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  const float* mask;  // null for none
  // Elements from one row, and one position, to the next.
  int64_t q_row, k_row, v_row;
  int64_t q_step, k_step, v_step;
  int64_t mask_row, mask_head, mask_query, mask_key;
  int32_t queries, keys, heads, d;
  float scale;
};

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;

// Copies `ROWS` rows from the one numbered `first`, `COLUMNS` values each from column `from`, into shared memory with
// rows of `PITCH`; rows from `rows` and columns from `columns` on become zeros.
template <class T, int ROWS, int COLUMNS, int PITCH>
__device__ __forceinline__ void copy_tile(T* to, const T* head, int64_t step, int first, int rows, int from, int columns) {
  constexpr int CHUNKS = COLUMNS / 8;
#pragma unroll 2
  for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
    int row = i / CHUNKS, column = i % CHUNKS * 8;
    bool real = first + row < rows && from + column < columns;
    copy_async(to + row * PITCH + column, real ? head + (first + row) * step + from + column : head, real);
  }
}

// D: the head size, padded with zeros to a multiple of 16. PART: how many columns of the values a block makes; the others
// are made by other blocks. MASKED: whether there is a mask. TILES: how many times 16 queries a warp has. KEYS: keys a tile.
template <class T, int D, int PART, int TILES, int KEYS, bool MASKED>
__device__ __forceinline__ void attend(const AttentionParameters& p) {
  constexpr int QUERIES = WARPS * 16 * TILES, PITCH = D + 8, PART_PITCH = PART + 8, PARTS = D / PART;
  DYNAMIC_SHARED(shared);
  T* const q_tile = reinterpret_cast<T*>(shared);
  T* const k_tile = q_tile + QUERIES * PITCH;
  T* const v_tile = k_tile + KEYS * PITCH;

  const int first_query = blockIdx.x / PARTS * QUERIES, part = blockIdx.x % PARTS * PART;
  const int head = blockIdx.y;
  const int64_t row = blockIdx.z;
  const T* const q = static_cast<const T*>(p.q) + row * p.q_row + head * p.d;
  const T* const k = static_cast<const T*>(p.k) + row * p.k_row + head * p.d;
  const T* const v = static_cast<const T*>(p.v) + row * p.v_row + head * p.d;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Of each 16 queries a thread has two, `lane / 4` and 8 further on, and of each 8 keys or columns two neighbours.
  const int own_query = warp * 16 * TILES + lane / 4, own_pair = lane % 4 * 2;
  // The row and column of the 8x8 matrix whose address this thread gives to ldmatrix: for queries and values the four
  // matrices lie as A wants them, down first; for keys across first.
  const int down_row = lane % 16, down_column = lane / 16 * 8;
  const int across_row = lane % 8 + lane / 16 * 8, across_column = lane / 8 % 2 * 8;

  float out[TILES][PART / 8][4] = {};
  float greatest[TILES][2], total[TILES][2];
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      greatest[tile][half] = -INFINITY;
      total[tile][half] = 0;
    }
  }

  copy_tile<T, QUERIES, D, PITCH>(q_tile, q, p.q_step, first_query, p.queries, 0, p.d);
  copy_tile<T, KEYS, D, PITCH>(k_tile, k, p.k_step, 0, p.keys, 0, p.d);
  commit_copies();

  for (int first_key = 0; first_key < p.keys; first_key += KEYS) {
    wait_copies<0>();
    __syncthreads();  // these keys are there, and the last values are no longer read
    copy_tile<T, KEYS, PART, PART_PITCH>(v_tile, v, p.v_step, first_key, p.keys, part, p.d);
    commit_copies();

    float score[TILES][KEYS / 8][4] = {};
#pragma unroll
    for (int column = 0; column < D; column += 16) {
      uint32_t a[TILES][4];
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        load_matrices(a[tile], q_tile + ((warp * TILES + tile) * 16 + down_row) * PITCH + column + down_column);
      }
#pragma unroll
      for (int key = 0; key < KEYS; key += 16) {
        uint32_t both[4];
        load_matrices(both, k_tile + (key + across_row) * PITCH + column + across_column);
        const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          mma<T>(score[tile][key / 8], a[tile], b[0]);
          mma<T>(score[tile][key / 8 + 1], a[tile], b[1]);
        }
      }
    }

    wait_copies<0>();
    __syncthreads();  // these values are there, and these keys are no longer read
    if (first_key + KEYS < p.keys) {
      copy_tile<T, KEYS, D, PITCH>(k_tile, k, p.k_step, first_key + KEYS, p.keys, 0, p.d);
    }
    commit_copies();

    if constexpr (MASKED) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int query = first_query + own_query + tile * 16 + half * 8;
          // A query behind the last one reads the last one's mask; its result is not stored.
          const float* const mask = p.mask + row * p.mask_row + head * p.mask_head +
                                    min(query, p.queries - 1) * p.mask_query + first_key * p.mask_key;
#pragma unroll
          for (int i = 0; i < KEYS / 4; i++) {
            const int key = i / 2 * 8 + own_pair + i % 2;
            float& value = score[tile][i / 2][half * 2 + i % 2];
            if (first_key + key < p.keys) value = value * p.scale + mask[key * p.mask_key];
          }
        }
      }
    }
    if (first_key + KEYS > p.keys) {
#pragma unroll
      for (int i = 0; i < KEYS / 4; i++) {
        if (first_key + i / 2 * 8 + own_pair + i % 2 >= p.keys) {
#pragma unroll
          for (int tile = 0; tile < TILES; tile++) {
            score[tile][i / 2][i % 2] = -INFINITY;
            score[tile][i / 2][2 + i % 2] = -INFINITY;
          }
        }
      }
    }

    // With a mask the scores are scaled already: before the mask is added, and not yet by log2(e), by which the least
    // finite number, which some masks hold, would become infinite. The difference comes first for the same reason.
    const float scale = MASKED ? LOG2_E : p.scale * LOG2_E;
    const auto weight_of = [&](float score, float base) {
      return exp2_fast(MASKED ? (score - base) * scale : fmaf(score, scale, -base * scale));
    };
    uint32_t weights[TILES][KEYS / 16][4];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float most = greatest[tile][half];
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) most = fmaxf(most, score[tile][i / 2][half * 2 + i % 2]);
        most = max_lanes<4>(most);
        // Until a key is allowed, any finite number will do: all weights are 0, and in the end so is their sum, and the
        // result 0 / 0, as it should be.
        const float base = most == -INFINITY ? 0 : most;
        const float shrink = weight_of(greatest[tile][half], base);
        greatest[tile][half] = most;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
          const float first = weight_of(score[tile][i][half * 2], base);
          const float second = weight_of(score[tile][i][half * 2 + 1], base);
          sum += first + second;
          // The sums' places of two sets of 8 keys are the places of A in 16 columns.
          weights[tile][i / 2][i % 2 * 2 + half] = pair<T>(first, second);
        }
        // Each thread sums its own keys; the four of a query come together at the end.
        total[tile][half] = total[tile][half] * shrink + sum;
#pragma unroll
        for (int i = 0; i < PART / 8; i++) {
          out[tile][i][half * 2] *= shrink;
          out[tile][i][half * 2 + 1] *= shrink;
        }
      }
    }

#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
#pragma unroll
      for (int column = 0; column < PART; column += 16) {
        uint32_t both[4];
        load_matrices_transposed(both, v_tile + (key + down_row) * PART_PITCH + column + down_column);
        const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          mma<T>(out[tile][column / 8], weights[tile][key / 16], b[0]);
          mma<T>(out[tile][column / 8 + 1], weights[tile][key / 16], b[1]);
        }
      }
    }
  }

  // The result goes through this warp's own queries in shared memory, which no other warp reads, to be stored in 16 bytes.
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float factor = 1 / sum_lanes<4>(total[tile][half]);
      T* const line = q_tile + (own_query + tile * 16 + half * 8) * PITCH + own_pair;
#pragma unroll
      for (int i = 0; i < PART / 8; i++) {
        const uint32_t both = pair<T>(out[tile][i][half * 2] * factor, out[tile][i][half * 2 + 1] * factor);
        *reinterpret_cast<uint32_t*>(line + i * 8) = both;
      }
    }
  }
  __syncwarp();
  constexpr int CHUNKS = PART / 8;
  T* const results = static_cast<T*>(p.out) + (row * p.queries * p.heads + head) * p.d;
  for (int i = lane; i < 16 * TILES * CHUNKS; i += 32) {
    const int local = warp * 16 * TILES + i / CHUNKS, query = first_query + local, column = i % CHUNKS * 8;
    if (query < p.queries && part + column < p.d) {
      T* const to = results + int64_t(query) * p.heads * p.d + part + column;
      store(to, load<T, 8>(q_tile + local * PITCH + column));
    }
  }
}

// Head sizes of 40, 64, 80, 96, 128, 160 and 256 are those of Stable Diffusion and of the transformers; 512 is the
// autoencoders' one head, whose sums are too many for a thread's registers: each block makes a half of the columns.
// Blocks on a multiprocessor: as many as the registers allow; the mask's addresses take more of them.
#define ATTENTION(D, PART, TILES, KEYS, BLOCKS)          \
  ATTENTION_OF(bf16, D, PART, TILES, KEYS, BLOCKS)       \
  ATTENTION_OF(f16, D, PART, TILES, KEYS, BLOCKS)
#define ATTENTION_OF(T, D, PART, TILES, KEYS, BLOCKS)                          \
  KERNEL(attention_##D##_##T, AttentionParameters, THREADS, BLOCKS) {          \
    attend<T, D, PART, TILES, KEYS, false>(p);                                 \
  }                                                                            \
  KERNEL(attention_masked_##D##_##T, AttentionParameters, THREADS, BLOCKS < 2 ? BLOCKS : 2) {   \
    attend<T, D, PART, TILES, KEYS, true>(p);                                  \
  }

ATTENTION(32, 32, 2, 64, 3)
ATTENTION(48, 48, 2, 64, 3)
ATTENTION(64, 64, 2, 64, 3)
ATTENTION(80, 80, 2, 64, 2)
ATTENTION(96, 96, 2, 64, 2)
ATTENTION(128, 128, 2, 64, 2)
ATTENTION(160, 160, 1, 64, 2)
ATTENTION(256, 256, 1, 64, 2)
ATTENTION(512, 256, 1, 32, 1)

// COLUMNS: how many times 32 columns a head has at most. A warp has four queries, a lane one key of a tile of 32 in the
// scores, and the columns lane, lane + 32, .. in the result.
template <class T, int COLUMNS>
__device__ __forceinline__ void attend_exactly(const AttentionParameters& p) {
  constexpr int OWN = 4, QUERIES = WARPS * OWN, KEYS = 32, PITCH = COLUMNS * 32 + 1;
  DYNAMIC_SHARED(shared);
  float* const q_tile = reinterpret_cast<float*>(shared);
  float* const tile = q_tile + QUERIES * PITCH;  // keys, then values

  const int first_query = blockIdx.x * QUERIES, head = blockIdx.y;
  const int64_t row = blockIdx.z;
  const T* const q = static_cast<const T*>(p.q) + row * p.q_row + head * p.d;
  const T* const k = static_cast<const T*>(p.k) + row * p.k_row + head * p.d;
  const T* const v = static_cast<const T*>(p.v) + row * p.v_row + head * p.d;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  const auto fill = [&](float* to, const T* from, int64_t step, int first, int count, int rows) {
    for (int i = warp; i < count; i += WARPS) {
      for (int column = lane; column < p.d; column += 32) {
        to[i * PITCH + column] = first + i < rows ? to_f32(from[(first + i) * step + column]) : 0;
      }
    }
  };
  fill(q_tile, q, p.q_step, first_query, QUERIES, p.queries);

  float out[OWN][COLUMNS] = {};
  float greatest[OWN], total[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    greatest[i] = -INFINITY;
    total[i] = 0;
  }
  for (int first_key = 0; first_key < p.keys; first_key += KEYS) {
    __syncthreads();
    fill(tile, k, p.k_step, first_key, KEYS, p.keys);
    __syncthreads();
    float weight[OWN] = {};
    for (int column = 0; column < p.d; column++) {
      const float value = tile[lane * PITCH + column];
#pragma unroll
      for (int i = 0; i < OWN; i++) weight[i] += q_tile[(warp * OWN + i) * PITCH + column] * value;
    }
    __syncthreads();
    fill(tile, v, p.v_step, first_key, KEYS, p.keys);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const int query = min(first_query + warp * OWN + i, p.queries - 1), key = first_key + lane;
      float score = weight[i] * p.scale;
      if (key >= p.keys) {
        score = -INFINITY;
      } else if (p.mask != nullptr) {
        score += p.mask[row * p.mask_row + head * p.mask_head + query * p.mask_query + key * p.mask_key];
      }
      const float most = fmaxf(greatest[i], max_lanes<32>(score)), base = most == -INFINITY ? 0 : most;
      const float shrink = exp2f((greatest[i] - base) * LOG2_E);
      greatest[i] = most;
      weight[i] = exp2f((score - base) * LOG2_E);
      total[i] = total[i] * shrink + sum_lanes<32>(weight[i]);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) out[i][c] *= shrink;
    }
    for (int key = 0; key < KEYS; key++) {
      float of_key[OWN];
#pragma unroll
      for (int i = 0; i < OWN; i++) of_key[i] = __shfl_sync(0xffffffff, weight[i], key);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        if (c * 32 + lane < p.d) {
          const float value = tile[key * PITCH + c * 32 + lane];
#pragma unroll
          for (int i = 0; i < OWN; i++) out[i][c] += of_key[i] * value;
        }
      }
    }
  }

  T* const results = static_cast<T*>(p.out) + (row * p.queries * p.heads + head) * p.d;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int query = first_query + warp * OWN + i;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const int column = c * 32 + lane;
      if (query < p.queries && column < p.d) {
        results[int64_t(query) * p.heads * p.d + column] = from_f32<T>(out[i][c] / total[i]);
      }
    }
  }
}

#define EXACT(type, D)                                                             \
  KERNEL(attention_exact_##D##_##type, AttentionParameters, THREADS, 2) { attend_exactly<type, D / 32>(p); }

EXACT(f32, 64)
EXACT(f32, 128)
EXACT(f32, 256)
EXACT(f32, 512)
EXACT(f16, 64)
EXACT(f16, 128)
EXACT(f16, 256)
EXACT(f16, 512)
EXACT(bf16, 64)
EXACT(bf16, 128)
EXACT(bf16, 256)
EXACT(bf16, 512)
