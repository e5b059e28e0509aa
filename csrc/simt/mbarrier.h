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
  Released released;      // by arrivals of this phase
  SnapshotRef completed;  // what completed phases released
};

// The mbarrier at an address, a fault where none is; for the running thread.
Mbarrier& find_mbarrier(uint32_t address, Source);
Mbarrier& find_mbarrier_quietly(uint32_t address, Source);  // not an access of the running thread
void complete_transaction(Mbarrier&, uint32_t bytes, Source);
void count_arrivals(Mbarrier&, uint32_t arrivals, Source);
void add_expected_arrival(Mbarrier&);

}  // namespace simt
