#pragma once
// cp.async: copies of one thread that land at the latest when they are waited for.
#include <cstdint>
#include <vector>

namespace simt {

struct Thread;

struct Copy {
  uint8_t* to;
  const uint8_t* from;
  uint16_t bytes, source_bytes;
  bool landed;
  uint32_t batch;
};

// Copies in the order of issue. A batch is what a commit or an mbarrier arrival closes: the clock of the copies' agent.
struct CopyQueue {
  std::vector<Copy> copies;
  uint32_t batch = 1;
  std::vector<uint32_t> committed;  // last batch of each group not yet waited for
};

void land(Copy&);

}  // namespace simt
