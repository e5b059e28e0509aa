#pragma once
// mbarrier objects. The eight bytes in shared memory name a record; its contents live there.
#include <cstdint>
#include <vector>

#include "simt/clocks.h"
#include "simt/executor.h"

namespace simt {

struct Thread;

struct Mbarrier {
  uint8_t* address;
  uint32_t phase, pending, expected;
  int64_t transaction_bytes;
  std::vector<Thread*> waiting;
  // What was released by arrivals of this phase, and of completed ones: by other blocks apart, for a wait of this
  // block's scope does not acquire it.
  Released released, released_remotely;
  SnapshotRef completed, completed_remotely;
  bool shown = false;  // by a fence after its init: to the async proxy and to other blocks
};

// The mbarrier at an address, a fault where none is; for the running thread.
Mbarrier& find_mbarrier(uint32_t address, Source);
Mbarrier& find_mbarrier_quietly(uint32_t address, Source);  // not an access of the running thread
// For what is neither of this block nor of the generic proxy: a fault where no fence has shown it the mbarrier.
Mbarrier& find_shown_mbarrier(uint32_t address, const char* what, Source);
// Where the running thread's arrival at an address releases to.
Released& released_by_running(Mbarrier&, uint32_t address);
void show_mbarriers(Thread&);  // that it has initialised
void complete_transaction(Mbarrier&, uint32_t bytes, Source);
void count_arrivals(Mbarrier&, uint32_t arrivals, Source);
void add_expected_arrival(Mbarrier&);

}  // namespace simt
