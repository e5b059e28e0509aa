#pragma once
// Copies between global and shared memory, mbarriers, and the shared memory of a cluster.
#include "cuda/device/device.h"

namespace selftest {

constexpr int kCopyFloats = 256;

struct CopyShared {
  alignas(16) float values[kCopyFloats];
  alignas(8) uint64_t mbarrier;
};

enum class CopyWait { group, all, mbarrier, mbarrier_noinc };

// 32 threads copy 256 floats, kBytes at a time; every third copy is off: zeros.
template <int kBytes, CopyWait kWait, bool kThroughL1>
__global__ void cp_async_kernel(const float* x, float* out) {
  using namespace xlstm::device;
  XLSTM_SHARED(CopyShared, s);
  constexpr int kFloats = kBytes / 4;
  const uint32_t mbarrier = shared_address(&s.mbarrier);
  constexpr bool kUsesMbarrier = kWait == CopyWait::mbarrier || kWait == CopyWait::mbarrier_noinc;
  if (kUsesMbarrier && threadIdx.x == 0) {
    mbarrier_init(mbarrier, kWait == CopyWait::mbarrier ? 1 : 33);
    fence_mbarrier_init();
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kCopyFloats / kFloats; i += 32) {
    const uint32_t to = shared_address(&s.values[i * kFloats]);
    if constexpr (kThroughL1 && kBytes == 16) {
      cp_async_16_ca(to, x + i * kFloats, i % 3 != 2);
    } else {
      cp_async<kBytes>(to, x + i * kFloats, i % 3 != 2);
    }
  }
  if constexpr (kWait == CopyWait::group) {
    cp_async_commit();
    cp_async_wait<0>();
  } else if constexpr (kWait == CopyWait::all) {
    cp_async_wait_all();
  } else {
    if constexpr (kWait == CopyWait::mbarrier) cp_async_mbarrier_arrive(mbarrier);
    if constexpr (kWait == CopyWait::mbarrier_noinc) cp_async_mbarrier_arrive_noinc(mbarrier);
    __syncthreads();  // all have raised the pending count before the last arrival
    if (threadIdx.x == 0) mbarrier_arrive(mbarrier);
    mbarrier_wait(mbarrier, 0);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kCopyFloats; i += 32) out[i] = s.values[i];
}

// 32 threads copy a float each and arrive behind their copies, 32 others double them. An arrival comes after the copies
// alone. The fault: the copying threads write something themselves, which is read after the same wait.
template <bool kFault>
__global__ void arrival_of_copies_kernel(const float* x, float* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(CopyShared, s);
  const uint32_t mbarrier = shared_address(&s.mbarrier);
  if (threadIdx.x == 0) mbarrier_init(mbarrier, 32);
  __syncthreads();
  if (threadIdx.x < 32) {
    cp_async<4>(shared_address(&s.values[threadIdx.x]), x + threadIdx.x, true);
    s.values[32 + threadIdx.x] = 2.f;
    cp_async_mbarrier_arrive_noinc(mbarrier);
  } else {
    mbarrier_wait(mbarrier, 0);
    out[threadIdx.x - 32] = s.values[threadIdx.x - 32] * (kFault ? s.values[threadIdx.x] : 2.f);
  }
  cp_async_wait_all();
#endif
}

// Thread t copies t % 17 of 16 bytes.
static __global__ void cp_async_part_kernel(const uint8_t* x, float* out) {
  using namespace xlstm::device;
  XLSTM_SHARED(CopyShared, s);
  cp_async_part(shared_address(&s.values[4 * threadIdx.x]), x + 16 * threadIdx.x, threadIdx.x % 17);
  cp_async_commit();
  cp_async_wait<0>();
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&s.values[4 * threadIdx.x]);
  for (int i = 0; i < 16; ++i) out[16 * threadIdx.x + i] = bytes[i];
}

// 32 threads: a bulk copy in, doubled, a bulk copy out, of which one is read back. expect_tx before a plain arrival;
// test before wait. The fault: the last wait is for the copy's reads alone.
template <bool kFault>
__global__ void bulk_kernel(const float* x, float* out, float* tested) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(CopyShared, s);
  const uint32_t mbarrier = shared_address(&s.mbarrier), values = shared_address(s.values);
  if (threadIdx.x == 0) {
    mbarrier_init(mbarrier, 1);
    fence_mbarrier_init();
    tested[0] = mbarrier_test(mbarrier, 0);
    tested[1] = mbarrier_test(mbarrier, 1);
    mbarrier_expect_tx(mbarrier, sizeof s.values);
    bulk_load(values, x, sizeof s.values, mbarrier);
    mbarrier_arrive(mbarrier);
  }
  __syncthreads();
  mbarrier_wait(mbarrier, 0);
  if (threadIdx.x == 0) tested[2] = mbarrier_test(mbarrier, 0);
  for (int i = threadIdx.x; i < kCopyFloats; i += 32) s.values[i] *= 2.f;
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_invalidate(mbarrier);
    bulk_store(out, values, sizeof s.values);
    bulk_commit();
    if constexpr (kFault) {
      bulk_wait_read<0>();
    } else {
      bulk_wait<0>();
    }
    tested[3] = out[kCopyFloats - 1];
  }
#endif
}

struct ExchangeShared {
  alignas(16) float from_next[8];  // what the next block of the cluster stored here
  alignas(16) float async[16];
  alignas(8) uint64_t full, arrived;
};

// A cluster of two: each block stores into the other one, by st.shared::cluster and by st.async of every width, and
// loads back from it. out (2, 8 + 16 + 5 + 1)
constexpr int kExchangeFloats = 30;

static __global__ void exchange_kernel(float* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(ExchangeShared, s);
  const uint32_t rank = cluster_rank(), peer = rank ^ 1;
  const float base = static_cast<float>(100 * rank);
  const auto at_peer = [&](const void* pointer) { return map_to_rank(shared_address(pointer), peer); };
  if (threadIdx.x == 0) {
    mbarrier_init(shared_address(&s.full), 1);
    mbarrier_init(shared_address(&s.arrived), 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(shared_address(&s.full), sizeof s.async);
    s.from_next[5] = s.from_next[6] = s.from_next[7] = 0.f;
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    store_cluster(at_peer(&s.from_next[0]), make_float4(base, base + 1, base + 2, base + 3));
    store_cluster(at_peer(&s.from_next[4]), base + 4);
    const uint32_t full = at_peer(&s.full);
    st_async(at_peer(&s.async[0]), base, full);
    st_async(at_peer(&s.async[1]), __float_as_uint(base + 1), full);
    st_async(at_peer(&s.async[2]), make_float2(base + 2, base + 3), full);
    const uint64_t pair = uint64_t{__float_as_uint(base + 5)} << 32 | __float_as_uint(base + 4);
    st_async(at_peer(&s.async[4]), pair, full);
    st_async(at_peer(&s.async[8]), make_float4(base + 8, base + 9, base + 10, base + 11), full);
    const uint4 bits = {__float_as_uint(base + 12), __float_as_uint(base + 13), __float_as_uint(base + 14),
                        __float_as_uint(base + 15)};
    st_async(at_peer(&s.async[12]), bits, full);
    st_async(at_peer(&s.async[6]), make_uint2(__float_as_uint(base + 6), __float_as_uint(base + 7)), full);
    mbarrier_arrive_remote(at_peer(&s.arrived));
  }
  __syncthreads();
  mbarrier_wait_cluster(shared_address(&s.arrived), 0);
  mbarrier_wait_cluster(shared_address(&s.full), 0);
  cluster_sync();
  float* mine = out + rank * kExchangeFloats;
  if (threadIdx.x < 8) mine[threadIdx.x] = s.from_next[threadIdx.x];
  if (threadIdx.x < 16) mine[8 + threadIdx.x] = s.async[threadIdx.x];
  if (threadIdx.x == 0) {
    const float4 loaded = load_cluster<float4>(at_peer(&s.from_next[0]));
    mine[24] = loaded.x, mine[25] = loaded.y, mine[26] = loaded.z, mine[27] = loaded.w;
    mine[28] = load_cluster<float>(at_peer(&s.from_next[4]));
    mine[29] = static_cast<float>(cluster_size());
  }
  cluster_sync();  // nobody leaves while the other one reads
#endif
}

}  // namespace selftest
