#pragma once
// Instructions that all threads of a warpgroup execute, `.sync.aligned`: the same ones in the same order, though not at
// one time. And setmaxnreg, one of them.
#include <cstdint>
#include <deque>

#include "simt/executor.h"

namespace simt {

struct Thread;
struct Warpgroup;

constexpr uint32_t kWarpgroup = 128;

class AlignedInstructions {
 public:
  // The next one of this thread. True for the first thread that comes to it.
  bool pass(uint32_t member, const char* name, int operand, Source);
  void finish() const;  // all have exited

  int registers = 0;  // of a thread, as setmaxnreg has set them; 0: as launched

 private:
  struct Instruction {
    const char* name;
    int operand;
    Source where;
    uint32_t passed;
  };
  std::deque<Instruction> instructions_;  // that some threads have yet to execute
  uint32_t done_ = 0;                     // by all, no longer in the list
  uint32_t next_[kWarpgroup] = {};        // of each thread
};

// The running thread's; a fault where the block has no 128 threads for it.
Warpgroup& warpgroup_of(const Thread&, const char* instruction, Source);

}  // namespace simt
