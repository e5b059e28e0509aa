#pragma once
// Thread-block clusters (sm_90): ranks, the cluster's barrier, and the shared memory of other blocks.
//
// A shared::cluster address is 32 bits: that of a block's own shared memory, or what map_to_rank makes of it.
#include <type_traits>

#include "cuda/device/platform.h"

namespace xlstm::device {

XLSTM_DEVICE uint32_t cluster_rank() {
#if XLSTM_SIMT
  return simt::cluster_rank();
#else
  uint32_t rank = 0;
  XLSTM_ASM_SM90("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

XLSTM_DEVICE uint32_t cluster_size() {
#if XLSTM_SIMT
  return simt::cluster_size();
#else
  uint32_t size = 0;
  XLSTM_ASM_SM90("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#endif
}

// All threads of the cluster, each warp together.
XLSTM_DEVICE void cluster_arrive([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::cluster_arrive(where);
#else
  __syncwarp();  // the instruction is aligned: all lanes at once, also after a branch
  XLSTM_ASM_SM90("barrier.cluster.arrive.release.aligned;" :: : "memory");
#endif
}

XLSTM_DEVICE void cluster_wait([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::cluster_wait(where);
#else
  XLSTM_ASM_SM90("barrier.cluster.wait.acquire.aligned;" :: : "memory");
#endif
}

XLSTM_DEVICE void cluster_sync(Source where = Source::here()) {
  device::cluster_arrive(where);  // qualified: Source also finds namespace simt
  device::cluster_wait(where);
}

// The same place in the shared memory of another block of the cluster.
XLSTM_DEVICE uint32_t map_to_rank(uint32_t address, uint32_t rank, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  return simt::map_rank(address, rank, where);
#else
  uint32_t mapped = 0;
  XLSTM_ASM_SM90("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
#endif
}

// ---- loads: 4 or 16 bytes ----
template <class T>
XLSTM_DEVICE T load_cluster(uint32_t from, [[maybe_unused]] Source where = Source::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16);
#if XLSTM_SIMT
  T value;
  simt::load_cluster(&value, from, sizeof value, where);
  return value;
#else
  if constexpr (sizeof(T) == 4) {
    uint32_t r = 0;
    XLSTM_ASM_SM90("ld.shared::cluster.b32 %0, [%1];" : "=r"(r) : "r"(from) : "memory");
    return bits_as<T>(r);
  } else {
    uint4 r{};
    XLSTM_ASM_SM90("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z),
                   "=r"(r.w) : "r"(from) : "memory");
    return bits_as<T>(r);
  }
#endif
}

// ---- stores: 4 or 16 bytes ----
template <class T>
XLSTM_DEVICE void store_cluster(uint32_t to, const T& value, [[maybe_unused]] Source where = Source::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16);
#if XLSTM_SIMT
  simt::store_cluster(to, &value, sizeof value, where);
#else
  if constexpr (sizeof(T) == 4) {
    XLSTM_ASM_SM90("st.shared::cluster.b32 [%0], %1;" ::"r"(to), "r"(bits_as<uint32_t>(value)) : "memory");
  } else {
    [[maybe_unused]] const uint4 r = bits_as<uint4>(value);
    XLSTM_ASM_SM90("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r.x), "r"(r.y), "r"(r.z),
                   "r"(r.w) : "memory");
  }
#endif
}

// ---- asynchronous stores: b32, b64, v2.b32, v4.b32 ----
// The bytes count as transactions of the mbarrier, which lies in the same block as `to`. 8 bytes go as b64, or as
// v2.b32 where T is a pair such as float2.
#define XLSTM_ST_ASYNC(type) "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes" type

template <class T>
XLSTM_DEVICE void st_async(uint32_t to, const T& value, uint32_t mbarrier,
                           [[maybe_unused]] Source where = Source::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if XLSTM_SIMT
  simt::st_async(to, &value, sizeof value, mbarrier, where);
#else
  if constexpr (sizeof(T) == 4) {
    XLSTM_ASM_SM90(XLSTM_ST_ASYNC(".b32") " [%0], %1, [%2];" ::"r"(to), "r"(bits_as<uint32_t>(value)),
                   "r"(mbarrier) : "memory");
  } else if constexpr (sizeof(T) == 8 && std::is_arithmetic_v<T>) {
    XLSTM_ASM_SM90(XLSTM_ST_ASYNC(".b64") " [%0], %1, [%2];" ::"r"(to), "l"(bits_as<uint64_t>(value)),
                   "r"(mbarrier) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    [[maybe_unused]] const uint2 r = bits_as<uint2>(value);
    XLSTM_ASM_SM90(XLSTM_ST_ASYNC(".v2.b32") " [%0], {%1, %2}, [%3];" ::"r"(to), "r"(r.x), "r"(r.y),
                   "r"(mbarrier) : "memory");
  } else {
    [[maybe_unused]] const uint4 r = bits_as<uint4>(value);
    XLSTM_ASM_SM90(XLSTM_ST_ASYNC(".v4.b32") " [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "r"(r.x), "r"(r.y), "r"(r.z),
                   "r"(r.w), "r"(mbarrier) : "memory");
  }
#endif
}

#undef XLSTM_ST_ASYNC

}  // namespace xlstm::device
