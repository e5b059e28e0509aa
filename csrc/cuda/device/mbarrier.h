#pragma once
// mbarrier (sm_90): arrivals and transaction bytes complete a phase; waiting names the parity of the phase, 0 first.
#include "cuda/device/platform.h"
#include "cuda/device/waiting.h"

namespace xlstm::device {

XLSTM_DEVICE void mbarrier_init(uint32_t mbarrier, uint32_t count, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_init(mbarrier, count, where);
#else
  XLSTM_ASM_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(count) : "memory");
#endif
}

// Before its memory is used for something else.
XLSTM_DEVICE void mbarrier_invalidate(uint32_t mbarrier, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_invalidate(mbarrier, where);
#else
  XLSTM_ASM_SM90("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
#endif
}

XLSTM_DEVICE void mbarrier_arrive(uint32_t mbarrier, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_arrive(mbarrier, 1, 0, where);
#else
  XLSTM_ASM_SM90("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(mbarrier) : "memory");
#endif
}

// `count` arrivals at once.
XLSTM_DEVICE void mbarrier_arrive(uint32_t mbarrier, uint32_t count, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_arrive(mbarrier, count, 0, where);
#else
  XLSTM_ASM_SM90("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier), "r"(count) : "memory");
#endif
}

// On an mbarrier of any block of the cluster: an address from map_to_rank.
XLSTM_DEVICE void mbarrier_arrive_remote(uint32_t mbarrier, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_arrive(mbarrier, 1, 0, where);
#else
  XLSTM_ASM_SM90("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(mbarrier) : "memory");
#endif
}

XLSTM_DEVICE void mbarrier_arrive_remote(uint32_t mbarrier, uint32_t count,
                                         [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_arrive(mbarrier, count, 0, where);
#else
  XLSTM_ASM_SM90("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(mbarrier),
                 "r"(count) : "memory");
#endif
}

// The current phase also waits for `bytes` bytes.
XLSTM_DEVICE void mbarrier_expect_tx(uint32_t mbarrier, uint32_t bytes,
                                     [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_expect_tx(mbarrier, bytes, where);
#else
  XLSTM_ASM_SM90("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
#endif
}

XLSTM_DEVICE void mbarrier_arrive_expect_tx(uint32_t mbarrier, uint32_t bytes,
                                            [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mbarrier_arrive(mbarrier, 1, bytes, where);
#else
  XLSTM_ASM_SM90("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier),
                 "r"(bytes) : "memory");
#endif
}

// Whether the phase of that parity is complete.
XLSTM_DEVICE bool mbarrier_test(uint32_t mbarrier, uint32_t parity, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  return simt::mbarrier_test(mbarrier, parity, simt::Scope::block, where);
#else
  uint32_t done = 0;
  XLSTM_ASM_SM90(
      "{ .reg .pred p; mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(mbarrier), "r"(parity)
      : "memory");
  return done != 0;
#endif
}

#if XLSTM_SIMT
// Without a limit a thread sleeps until the phase is complete, and a deadlock is found at once.
inline void mbarrier_wait_by_turns(uint32_t mbarrier, uint32_t parity, simt::Scope scope, Patience& patience,
                                   Source where) {
  if (simt::options().wait_limit == 0) return simt::mbarrier_wait(mbarrier, parity, scope, where);
  while (!simt::mbarrier_test(mbarrier, parity, scope, where)) patience.spend(where);
}
#else
// One attempt, suspended by the hardware for a while.
XLSTM_DEVICE bool mbarrier_try_wait_cta(uint32_t mbarrier, uint32_t parity) {
  uint32_t done = 0;
  XLSTM_ASM_SM90(
      "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(mbarrier), "r"(parity)
      : "memory");
  return done != 0;
}

XLSTM_DEVICE bool mbarrier_try_wait_cluster(uint32_t mbarrier, uint32_t parity) {
  uint32_t done = 0;
  XLSTM_ASM_SM90(
      "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(mbarrier), "r"(parity)
      : "memory");
  return done != 0;
}
#endif

// Waits for the phase of that parity; sees what threads of this block wrote before they arrived, and what TMA wrote.
XLSTM_DEVICE void mbarrier_wait(uint32_t mbarrier, uint32_t parity, const Awaited& of = {"an mbarrier"},
                                Source where = Source::here()) {
  Patience patience(of);
#if XLSTM_SIMT
  mbarrier_wait_by_turns(mbarrier, parity, simt::Scope::block, patience, where);
#else
  while (!mbarrier_try_wait_cta(mbarrier, parity)) patience.spend(where);
#endif
}

// The same for arrivals and st.async from other blocks of the cluster.
XLSTM_DEVICE void mbarrier_wait_cluster(uint32_t mbarrier, uint32_t parity, const Awaited& of = {"an mbarrier"},
                                        Source where = Source::here()) {
  Patience patience(of);
#if XLSTM_SIMT
  mbarrier_wait_by_turns(mbarrier, parity, simt::Scope::cluster, patience, where);
#else
  while (!mbarrier_try_wait_cluster(mbarrier, parity)) patience.spend(where);
#endif
}

// After mbarrier_init, before the barrier that shows the mbarrier to the cluster and to the async proxy.
XLSTM_DEVICE void fence_mbarrier_init() {
#if XLSTM_SIMT
  simt::fence_mbarrier_init();
#else
  XLSTM_ASM_SM90("fence.mbarrier_init.release.cluster;" :: : "memory");
#endif
}

// Between ordinary writes of shared memory and its reads by TMA stores, bulk copies or wgmma. Also between ordinary
// reads and writes by TMA or bulk copies. By the threads that wrote or read, before the barrier that says so.
XLSTM_DEVICE void fence_proxy_async() {
#if XLSTM_SIMT
  simt::fence_proxy_async();
#else
  XLSTM_ASM_SM90("fence.proxy.async.shared::cta;" :: : "memory");
#endif
}

// The same for global memory, before TMA loads of what this kernel wrote.
XLSTM_DEVICE void fence_proxy_async_global() {
#if XLSTM_SIMT
  simt::fence_proxy_async();
#else
  XLSTM_ASM_SM90("fence.proxy.async.global;" :: : "memory");
#endif
}

}  // namespace xlstm::device
