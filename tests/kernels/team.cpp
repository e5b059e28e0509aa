// team CORES THREADS MEETINGS: threads that meet as those of a recurrence do, two steps' values side by side, so that
// one meeting a step is enough. Ends with 1 where a thread does not see what another one wrote before it arrived.
#include "cpu/team.h"

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace {

// This process and its threads on that many cores.
void stay_on(int cores) {
#if defined(__linux__)
  cpu_set_t all, some;
  sched_getaffinity(0, sizeof(all), &all);
  CPU_ZERO(&some);
  for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&some) < cores; ++core) {
    if (CPU_ISSET(core, &all)) CPU_SET(core, &some);
  }
  sched_setaffinity(0, sizeof(some), &some);
#else
  (void)cores;
#endif
}

struct alignas(64) Slot {
  int value[2] = {};  // of an even and of an odd step
};

}  // namespace

int main(int, char** argv) {
  stay_on(std::atoi(argv[1]));
  const int threads = std::atoi(argv[2]), meetings = std::atoi(argv[3]);
  xlstm::cpu::Meeting meeting(threads + 1);  // the first thread carries two parts
  std::vector<Slot> slots(threads);
  std::atomic<int> wrong{0};
  std::vector<std::thread> team;
  for (int self = 0; self < threads; ++self) {
    team.emplace_back([&, self] {
      for (int step = 1; step <= meetings; ++step) {
        // Each is late in its turn, so that the others fall asleep.
        if (step % 256 == 8 * self) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        slots[self].value[step % 2] = step;
        meeting.wait(self == 0 ? 2 : 1);
        for (const Slot& slot : slots) wrong += slot.value[step % 2] != step;
      }
    });
  }
  for (std::thread& thread : team) thread.join();
  std::printf("%d values of the wrong step\n", wrong.load());
  return wrong != 0;
}
