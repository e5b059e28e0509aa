#pragma once
// Threads that advance one recurrence together, each with its part of the hidden units: they meet once per step.
#include <atomic>
#include <cstdint>
#include <thread>

#include "core/runtime.h"
#include "cpu/simd/vec.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// Waits for all parts of a recurrence. A thread may carry several of them and then arrives for all at once: where the
// pool hands every part to one thread nobody waits.
class Meeting {
 public:
  explicit Meeting(int64_t parts) : parts_(parts) {}

  void wait(int64_t carried) {
    if (carried == parts_) return;
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(carried, std::memory_order_acq_rel) + carried == parts_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < kSpins)
        pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  // A few microseconds. The other thread may not run at all, be it for a moment: then this one has to make way.
  static constexpr int kSpins = 64;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int64_t parts_;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// At most one kernel of the process lets its threads wait for each other: two of them could each hold the threads that
// the other one waits for.
class TeamPermit {
 public:
  TeamPermit() : granted_(!taken_.test_and_set(std::memory_order_acquire)) {}
  ~TeamPermit() {
    if (granted_) taken_.clear(std::memory_order_release);
  }
  TeamPermit(const TeamPermit&) = delete;
  bool granted() const { return granted_; }

 private:
  inline static std::atomic_flag taken_ = ATOMIC_FLAG_INIT;
  const bool granted_;
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
