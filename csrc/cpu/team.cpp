// Meetings of threads. Compiled once: nothing here depends on the SIMD level.
#include "cpu/team.h"

#include <chrono>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#endif

namespace xlstm::cpu {
namespace {

constexpr int kCoreShift = 32;
constexpr uint64_t kPartsMask = (uint64_t{1} << kCoreShift) - 1;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
// Not std::atomic::wait: libstdc++'s yields before it sleeps, and that gives the core away for a whole turn of a
// process that is busy there.
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  static_assert(sizeof(word) == sizeof(uint32_t) && std::atomic<uint32_t>::is_always_lock_free);
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr);  // also returns for no reason
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX);
}

// The core of this thread, from 1 on; 0: not known.
uint64_t core() {
  return static_cast<uint64_t>(sched_getcpu() + 1);
}
#else
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  word.wait(value);
}

void wake_all(std::atomic<uint32_t>& word) {
  word.notify_all();
}

uint64_t core() {
  return 0;
}
#endif

std::atomic_flag permit_taken = ATOMIC_FLAG_INIT;

}  // namespace

TeamPermit::TeamPermit() : granted_(!permit_taken.test_and_set(std::memory_order_acquire)) {}

TeamPermit::~TeamPermit() {
  if (granted_) permit_taken.clear(std::memory_order_release);
}

void Meeting::wait(int64_t carried) {
  if (static_cast<uint64_t>(carried) == parts_) return;
  const uint32_t now = round();
  const uint64_t here = core();
  uint64_t before = arrived_.load(std::memory_order_relaxed), after = 0;
  do {
    after = here << kCoreShift | ((before & kPartsMask) + static_cast<uint64_t>(carried));
  } while (!arrived_.compare_exchange_weak(before, after, std::memory_order_acq_rel, std::memory_order_relaxed));
  if ((after & kPartsMask) == parts_) {
    const bool crowded = here != 0 && before >> kCoreShift == here;
    arrived_.store(0, std::memory_order_relaxed);
    const uint32_t next = ((now + kNext) & ~kCrowded) | (crowded ? kCrowded : 0);
    if (round_.exchange(next, std::memory_order_acq_rel) & kSleeper) wake_all(round_);
    return;
  }
  if ((now & kCrowded) || !spin_through(now)) sleep_through(now);
}

// Whether the round ended within about 100 microseconds: longer than threads of a quiet machine wait for each other, as
// waking one takes tens of them; far shorter than the turn of another process.
bool Meeting::spin_through(uint32_t now) const {
  using Clock = std::chrono::steady_clock;
  constexpr int kPauses = 64;  // some microseconds; most waits end before the first look at the clock
  Clock::time_point start{};
  while (true) {
    for (int n = 0; n < kPauses; ++n) {
      if (round() != now) return true;
      pause();
    }
    const Clock::time_point time = Clock::now();
    if (start == Clock::time_point{}) start = time;
    if (time - start > std::chrono::microseconds(100)) return false;
  }
}

void Meeting::sleep_through(uint32_t now) {
  uint32_t expected = now;
  round_.compare_exchange_strong(expected, now | kSleeper, std::memory_order_acq_rel);
  while (round() == now) sleep_while(round_, now | kSleeper);
}

}  // namespace xlstm::cpu
