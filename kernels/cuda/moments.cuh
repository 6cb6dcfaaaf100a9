// Mean and variance of values that are met in parts, without the loss of a sum of squares: each part's mean and its sum of
// squared deviations from it (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979).
#pragma once

#include "common.cuh"

struct Moments {
  float count, mean, squares;
};

__device__ __forceinline__ Moments merge(Moments a, Moments b) {
  const float count = a.count + b.count;
  if (count == 0) return a;
  const float share = b.count / count, distance = b.mean - a.mean;
  return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * a.count * share};
}

// The moments of what all threads of a warp hold, in lane 0.
__device__ __forceinline__ Moments merge_lanes(Moments own) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const Moments other{__shfl_xor_sync(0xffffffff, own.count, mask), __shfl_xor_sync(0xffffffff, own.mean, mask),
                        __shfl_xor_sync(0xffffffff, own.squares, mask)};
    own = merge(own, other);
  }
  return own;
}
