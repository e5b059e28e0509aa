#pragma once
// State of the barriers of a block (bar.sync) and of clusters and grids (arrive, then wait).
#include <cstdint>
#include <vector>

#include "simt/clocks.h"

namespace simt {

struct Thread;
struct Domain;

struct Barrier {
  uint32_t arrived = 0, expected = 0;
  int predicates = 0;
  std::vector<Thread*> waiting;
  Released released;
};

struct PhaseBarrier {
  uint32_t live = 0, arrived = 0;
  uint64_t phase = 0;
  std::vector<Thread*> waiting;
  Released released;
  SnapshotRef completed;  // what the last phase released
};

// An exited thread counts as arrived at the barriers of its cluster and grid.
void on_exit_barriers(Thread&);

}  // namespace simt
