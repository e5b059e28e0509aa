#pragma once
// Bulk copies and TMA (sm_90), issued by one thread. Loads complete on an mbarrier by their bytes; stores belong to
// bulk groups of the thread: commit, then wait.
#include "cuda/device/platform.h"

namespace xlstm::device {

// ---- tiles described by a tensor map ----
// at: element coordinates of the box's first corner, innermost first. What lies outside the tensor reads as zero and is
// not written. Shared addresses are 128-byte aligned, 1024 where the map swizzles by 128 bytes. The mbarrier is one of
// the block that the tile goes to.
#define XLSTM_TMA_LOAD(dims, coordinates, ...)                                                        \
  XLSTM_ASM_SM90("cp.async.bulk.tensor." dims                                                         \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates \
                 "}], [%2];" ::"r"(to),                                                               \
                 "l"(map), "r"(mbarrier), __VA_ARGS__ : "memory")

template <int kDims>
XLSTM_DEVICE void tma_load(uint32_t to, const CUtensorMap* map, const int (&at)[kDims], uint32_t mbarrier,
                           [[maybe_unused]] Source where = Source::here()) {
  static_assert(kDims >= 1 && kDims <= 5);
#if XLSTM_SIMT
  simt::tma_load(kDims, map, to, mbarrier, at, 0, where);
#else
  if constexpr (kDims == 1) {
    XLSTM_TMA_LOAD("1d", "%3", "r"(at[0]));
  } else if constexpr (kDims == 2) {
    XLSTM_TMA_LOAD("2d", "%3, %4", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kDims == 3) {
    XLSTM_TMA_LOAD("3d", "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kDims == 4) {
    XLSTM_TMA_LOAD("4d", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    XLSTM_TMA_LOAD("5d", "%3, %4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
#endif
}

#undef XLSTM_TMA_LOAD

// To the same place, and on the same mbarrier, in every block of the cluster whose bit is set in `ranks` (sm_90a: on
// targets without the `a` ptxas warns that it is slow).
#define XLSTM_TMA_MULTICAST(dims, coordinates, ...)                                              \
  XLSTM_ASM_SM90A("cp.async.bulk.tensor." dims                                                   \
                  ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster" \
                  " [%0], [%1, {" coordinates "}], [%2], %3;" ::"r"(to),                         \
                  "l"(map), "r"(mbarrier), "h"(ranks), __VA_ARGS__ : "memory")

template <int kDims>
XLSTM_DEVICE void tma_load_multicast(uint32_t to, const CUtensorMap* map, const int (&at)[kDims], uint32_t mbarrier,
                                     uint16_t ranks, [[maybe_unused]] Source where = Source::here()) {
  static_assert(kDims >= 1 && kDims <= 5);
#if XLSTM_SIMT
  simt::tma_load(kDims, map, to, mbarrier, at, ranks, where);
#else
  if constexpr (kDims == 1) {
    XLSTM_TMA_MULTICAST("1d", "%4", "r"(at[0]));
  } else if constexpr (kDims == 2) {
    XLSTM_TMA_MULTICAST("2d", "%4, %5", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kDims == 3) {
    XLSTM_TMA_MULTICAST("3d", "%4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kDims == 4) {
    XLSTM_TMA_MULTICAST("4d", "%4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    XLSTM_TMA_MULTICAST("5d", "%4, %5, %6, %7, %8", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
#endif
}

#undef XLSTM_TMA_MULTICAST

#define XLSTM_TMA_STORE(dims, coordinates, ...)                                                        \
  XLSTM_ASM_SM90("cp.async.bulk.tensor." dims ".global.shared::cta.tile.bulk_group [%0, {" coordinates \
                 "}], [%1];" ::"l"(map),                                                               \
                 "r"(from), __VA_ARGS__ : "memory")

template <int kDims>
XLSTM_DEVICE void tma_store(const CUtensorMap* map, const int (&at)[kDims], uint32_t from,
                            [[maybe_unused]] Source where = Source::here()) {
  static_assert(kDims >= 1 && kDims <= 5);
#if XLSTM_SIMT
  simt::tma_store(kDims, map, from, at, where);
#else
  if constexpr (kDims == 1) {
    XLSTM_TMA_STORE("1d", "%2", "r"(at[0]));
  } else if constexpr (kDims == 2) {
    XLSTM_TMA_STORE("2d", "%2, %3", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kDims == 3) {
    XLSTM_TMA_STORE("3d", "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kDims == 4) {
    XLSTM_TMA_STORE("4d", "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    XLSTM_TMA_STORE("5d", "%2, %3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
#endif
}

#undef XLSTM_TMA_STORE

// Fetches a tile to L2, ahead of its load.
#define XLSTM_TMA_PREFETCH(dims, coordinates, ...)                                                            \
  XLSTM_ASM_SM90("cp.async.bulk.prefetch.tensor." dims ".L2.global.tile [%0, {" coordinates "}];" ::"l"(map), \
                 __VA_ARGS__ : "memory")

template <int kDims>
XLSTM_DEVICE void tma_prefetch(const CUtensorMap* map, const int (&at)[kDims],
                               [[maybe_unused]] Source where = Source::here()) {
  static_assert(kDims >= 1 && kDims <= 5);
#if XLSTM_SIMT
  simt::tma_prefetch(kDims, map, at, where);
#else
  if constexpr (kDims == 1) {
    XLSTM_TMA_PREFETCH("1d", "%1", "r"(at[0]));
  } else if constexpr (kDims == 2) {
    XLSTM_TMA_PREFETCH("2d", "%1, %2", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kDims == 3) {
    XLSTM_TMA_PREFETCH("3d", "%1, %2, %3", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kDims == 4) {
    XLSTM_TMA_PREFETCH("4d", "%1, %2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    XLSTM_TMA_PREFETCH("5d", "%1, %2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
#endif
}

#undef XLSTM_TMA_PREFETCH

// Fetches the map, a __grid_constant__ parameter, ahead of its first use.
XLSTM_DEVICE void tma_prefetch_map([[maybe_unused]] const CUtensorMap* map) {
#if !XLSTM_SIMT
  XLSTM_ASM_SM90("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// ---- contiguous bytes: sizes and addresses are multiples of 16 ----
XLSTM_DEVICE void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier,
                            [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::bulk_load(to, from, bytes, mbarrier, where);
#else
  XLSTM_ASM_SM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(mbarrier) : "memory");
#endif
}

XLSTM_DEVICE void bulk_store(void* to, uint32_t from, uint32_t bytes, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::bulk_store(to, from, bytes, where);
#else
  XLSTM_ASM_SM90("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes) : "memory");
#endif
}

// ---- groups of stores ----
XLSTM_DEVICE void bulk_commit() {
#if XLSTM_SIMT
  simt::bulk_commit();
#else
  XLSTM_ASM_SM90("cp.async.bulk.commit_group;" :: : "memory");
#endif
}

// Until at most kGroups of the latest groups are in flight: their writes are complete.
template <int kGroups>
XLSTM_DEVICE void bulk_wait([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::bulk_wait(kGroups, false, where);
#else
  XLSTM_ASM_SM90("cp.async.bulk.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// The same, but only their reads of shared memory are: it may be written again.
template <int kGroups>
XLSTM_DEVICE void bulk_wait_read([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::bulk_wait(kGroups, true, where);
#else
  XLSTM_ASM_SM90("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
#endif
}

}  // namespace xlstm::device
