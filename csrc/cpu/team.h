#pragma once
// Threads that advance one recurrence together, each with its part of the hidden units: they meet once per step.
#include <atomic>
#include <cstdint>

namespace xlstm::cpu {

// Where the threads that carry `parts` parts wait for each other. They spin for a while and then sleep, so that a
// thread that lost its core gets it back soon.
class Meeting {
 public:
  explicit Meeting(int64_t parts) : parts_(static_cast<uint64_t>(parts)) {}

  // Returns when all parts have arrived; everything written before is seen afterwards. A thread that carries several
  // parts arrives for all at once: where the pool hands every part to one thread nobody waits.
  void wait(int64_t carried);

 private:
  uint32_t round() const { return round_.load(std::memory_order_acquire) & ~kSleeper; }
  bool spin_through(uint32_t round) const;
  void sleep_through(uint32_t round);

  static constexpr uint32_t kSleeper = 1, kCrowded = 2, kNext = 4;

  const uint64_t parts_;
  // How many parts have arrived, and in the upper half the core from which the last of them came.
  alignas(64) std::atomic<uint64_t> arrived_{0};
  // Counts meetings in steps of kNext. kSleeper: a thread sleeps until the next one; only then has it to be woken.
  // kCrowded: the last two of the meeting before came from one core, where it is no use to spin.
  alignas(64) std::atomic<uint32_t> round_{0};
};

// At most one kernel of the process lets its threads wait for each other: two of them could each hold the threads that
// the other one waits for.
class TeamPermit {
 public:
  TeamPermit();
  ~TeamPermit();
  TeamPermit(const TeamPermit&) = delete;
  bool granted() const { return granted_; }

 private:
  const bool granted_;
};

}  // namespace xlstm::cpu
