#pragma once
// wgmma of one warpgroup: operations that read shared memory some time between issue and wait, and accumulators that
// are NaN in the meantime.
#include <bitset>
#include <cstdint>
#include <deque>
#include <list>
#include <vector>

#include "simt/executor.h"

namespace simt {

struct Thread;

struct Accumulator {
  float* registers[128];  // of each thread
  int n;
  std::vector<float> values;  // 64 x n
  uint32_t last_operation;
  std::bitset<128> copied;  // threads that have waited and have their values
};

struct WgmmaOperation {
  Element element;
  int n;
  uint64_t a_descriptor, b_descriptor;
  bool a_transposed, b_transposed, accumulate;
  Source where;
  std::vector<uint32_t> a;  // registers, four a thread; empty: by descriptor
  Accumulator* accumulator;
};

struct Warpgroup {
  Thread* threads[128];
  uint32_t arrived = 0;  // at the instruction that the warpgroup executes together
  Source where{};
  std::deque<WgmmaOperation> pending;  // issued, not executed
  uint32_t issued = 0, executed = 0;
  std::list<Accumulator> accumulators;  // in flight
  std::bitset<128> fenced;
};

bool has_wgmma_in_flight(const Thread&);

}  // namespace simt
