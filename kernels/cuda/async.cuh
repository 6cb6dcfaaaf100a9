// Copies of 16 bytes from global to shared memory that go past the registers, in the background (cp.async, sm_80).
#pragma once

#include "common.cuh"

// Copies 16 bytes, both addresses multiples of 16; where `real` is false, writes zeros and reads nothing.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool real) {
#ifdef EMULATED
  emulated::copy_async(to, from, real ? 16 : 0);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(real ? 16 : 0)
               : "memory");
#endif
}

// Closes the group of the copies issued since the last group.
__device__ __forceinline__ void commit_copies() {
#ifdef EMULATED
  emulated::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies, except those of the last `GROUPS` groups. The other threads' need a barrier besides.
template <int GROUPS>
__device__ __forceinline__ void wait_copies() {
#ifdef EMULATED
  emulated::wait_copies(GROUPS);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}
