// The tensor cores of sm_80 and later through mma.sync m16n8k16, and ldmatrix, which brings their operands from shared
// memory (PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix").
//
// With g = lane / 4 and t = lane % 4, a thread holds of the 16x16 left operand A, row-major, the pairs of columns
//   a[0]: row g,     columns 2t, 2t+1        a[2]: row g,     columns 2t+8, 2t+9
//   a[1]: row g + 8, columns 2t, 2t+1        a[3]: row g + 8, columns 2t+8, 2t+9
// of the 16x8 right operand B
//   b[0]: rows 2t, 2t+1, column g            b[1]: rows 2t+8, 2t+9, column g
// and of the 16x8 sums C in f32
//   c[0], c[1]: row g, columns 2t, 2t+1      c[2], c[3]: row g + 8, columns 2t, 2t+1.
#pragma once

#include "common.cuh"

#ifdef EMULATED
namespace emulated {

template <class T>
float half_of(uint32_t both, int which) {
  T value{uint16_t(both >> 16 * which)};
  return to_f32(value);
}

struct Product {
  const uint32_t *a, *b;
  float* c;
};

template <class T>
void multiply(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    auto own = static_cast<const Product*>(lanes[lane]);
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; i++) a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = half_of<T>(own->a[i / 2], i % 2);
    for (int i = 0; i < 4; i++) b[2 * t + i % 2 + i / 2 * 8][g] = half_of<T>(own->b[i / 2], i % 2);
  }
  for (int lane = 0; lane < 32; lane++) {
    auto own = static_cast<const Product*>(lanes[lane]);
    for (int i = 0; i < 4; i++) {
      float sum = own->c[i];
      for (int k = 0; k < 16; k++) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
      own->c[i] = sum;
    }
  }
}

struct Matrices {
  const void* row;
  uint32_t* to;
};

// Matrix i has its rows at the addresses of the threads 8i to 8i + 7.
template <bool TRANSPOSED>
void load_matrices(void* const* lanes) {
  for (int lane = 0; lane < 32; lane++) check_shared(static_cast<const Matrices*>(lanes[lane])->row);
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < 4; i++) {
      uint32_t both = 0;
      for (int half = 0; half < 2; half++) {
        int row = TRANSPOSED ? lane % 4 * 2 + half : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + half;
        uint16_t value;
        memcpy(&value, static_cast<const char*>(static_cast<const Matrices*>(lanes[8 * i + row])->row) + 2 * column, 2);
        both |= uint32_t(value) << 16 * half;
      }
      static_cast<const Matrices*>(lanes[lane])->to[i] = both;
    }
  }
}

}  // namespace emulated
#endif

// c += a · b.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#ifdef EMULATED
template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::Product product{a, b, c};
  emulated::together(emulated::multiply<T>, &product);
}
#else
template <>
__device__ __forceinline__ void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// Loads four 8x8 matrices of 2-byte values; the thread `lane` gives the address of row lane % 8 of matrix lane / 8.
// Thread 4r + j gets of each the values 2j and 2j + 1 of row r, or transposed, of column r.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
#ifdef EMULATED
  emulated::Matrices matrices{row, to};
  emulated::together(emulated::load_matrices<false>, &matrices);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
#ifdef EMULATED
  emulated::Matrices matrices{row, to};
  emulated::together(emulated::load_matrices<true>, &matrices);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
