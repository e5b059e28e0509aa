#pragma once
// Elements of every type, alone and in vectors; words that one block gives to another.
#include "cuda/device/device.h"

namespace selftest {

// ---- elements: one warp ----

// x (32) rounded to T, eight of them alone and eight two at a time, and back
template <class T, class A>
__global__ void convert_kernel(const A* x, T* narrowed, A* widened) {
  using namespace xlstm::device;
  const int i = threadIdx.x;
  const Pack<T, 2> two = narrow_two<T>(x[i / 2 * 2], x[i / 2 * 2 + 1]);
  narrowed[i] = i / 8 % 2 ? two.x[i % 2] : narrow<T>(x[i]);
  widened[i] = widen<A>(narrowed[i]);
}

// Thread t reads vector t of x, and the first t % (kCount + 1) elements of it. out (threads, 2, kCount)
template <class T>
__global__ void vector_kernel(const T* x, float* out) {
  using namespace xlstm::device;
  constexpr int kCount = Vector<T>::kCount;
  const T* from = x + threadIdx.x * kCount;
  const int count = threadIdx.x % (kCount + 1);
  const Vector<T> whole = load_vector(from), part = load_elements(from, count);
  for (int c = 0; c < kCount; ++c) {
    out[threadIdx.x * 2 * kCount + c] = static_cast<float>(whole.x[c]);
    out[(threadIdx.x * 2 + 1) * kCount + c] = static_cast<float>(part.x[c]);
  }
}

// Thread t gets packs t and t + 32 of x (64 of them), and the even threads' second ones change place with the odd
// threads' first ones.
template <class T, int kCount>
__global__ void pack_kernel(const T* x, T* out) {
  using namespace xlstm::device;
  using P = Pack<T, kCount>;
  P first = load_whole(reinterpret_cast<const P*>(x) + threadIdx.x);
  P second = load_whole(reinterpret_cast<const P*>(x) + threadIdx.x + 32);
  swap_with_neighbour(first, second);
  store_whole(reinterpret_cast<P*>(out) + threadIdx.x, first);
  store_whole(reinterpret_cast<P*>(out) + threadIdx.x + 32, second);
}

constexpr int kAnyThreads = 16;

// Thread t: element t of x, then elements t, t + 16, t + 32. copy: all of them. out (threads, 4)
template <class A>
__global__ void any_kernel(const void* x, xlstm::cuda::Type type, void* copy, A* out) {
  using namespace xlstm::device;
  A values[3];
  load_any(values, x, type, threadIdx.x, kAnyThreads);
  out[threadIdx.x * 4] = load_any<A>(x, type, threadIdx.x);
  for (int n = 0; n < 3; ++n) {
    out[threadIdx.x * 4 + 1 + n] = values[n];
    store_any(copy, type, threadIdx.x + n * kAnyThreads, values[n]);
  }
}

template <class T>
__global__ void opaque_kernel(const T* x, T* out) {
  out[threadIdx.x] = xlstm::device::opaque(x[threadIdx.x]) + x[threadIdx.x];
}

// ---- words: 2 blocks of one thread, launched cooperatively ----
enum class WordAccess { volatile_access, relaxed, release };

template <class T>
__device__ __forceinline__ bool has_zeros(const T& value) {
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof value);
  bool zero = false;
  for (uint32_t word : words) zero = zero || word == 0;
  return zero;
}

// Block 1 stores `value`, none of whose words is zero; block 0 polls for all of it: out[0]. What block 1 wrote before a
// release, block 0 sees after its acquire: out[1].
template <class T, WordAccess kAccess>
__global__ void word_kernel(T* flag, T value, T* data, T* out) {
  using namespace xlstm::device;
  if (blockIdx.x == 1) {
    if constexpr (kAccess == WordAccess::volatile_access) store_volatile(flag, value);
    if constexpr (kAccess == WordAccess::relaxed) store_relaxed(flag, value);
    if constexpr (kAccess == WordAccess::release) {
      *data = value;
      store_release(flag, value);
    }
    return;
  }
  T seen;
  do {
    if constexpr (kAccess == WordAccess::volatile_access) seen = load_volatile(flag);
    if constexpr (kAccess == WordAccess::relaxed) seen = load_relaxed(flag);
    if constexpr (kAccess == WordAccess::release) seen = load_acquire(flag);
  } while (has_zeros(seen));
  out[0] = seen;
  out[1] = kAccess == WordAccess::release ? *data : seen;
}

// ---- bulk copy of what the kernel itself wrote: one warp ----
struct RereadShared {
  alignas(16) float values[32];
  alignas(8) uint64_t full;
};

static __global__ void reread_kernel(float* between, float* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(RereadShared, s);
  const uint32_t full = shared_address(&s.full);
  between[threadIdx.x] = static_cast<float>(threadIdx.x);
  fence_proxy_async_global();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(full, sizeof s.values);
    bulk_load(shared_address(s.values), between, sizeof s.values, full);
  }
  mbarrier_wait(full, 0);
  out[threadIdx.x] = s.values[31 - threadIdx.x];
#endif
}

}  // namespace selftest
