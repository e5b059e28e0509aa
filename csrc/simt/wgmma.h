#pragma once
// wgmma of one warpgroup: operations that read shared memory and registers some time between issue and wait, and
// accumulators that are NaN in the meantime.
#include <bitset>
#include <cstdint>
#include <deque>
#include <list>
#include <vector>

#include "simt/executor.h"
#include "simt/warpgroup.h"

namespace simt {

struct Thread;

struct Accumulator {
  float* registers[kWarpgroup];  // of each thread
  int n;
  std::vector<float> values;  // 64 x n
  uint32_t last_operation;
  Source where;                    // of that one
  std::bitset<kWarpgroup> copied;  // threads that have waited and have their values
};

// A in registers, as an operation takes them: they stay what they are until it has been waited for.
struct Fragments {
  uint32_t operation;
  Source where;
  const uint32_t* registers[kWarpgroup][4];
  uint32_t values[kWarpgroup][4];
  uint32_t waited = 0;  // threads
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

// A thread's registers when it executed its last wgmma.fence: a copy of its stack, where their arrays are.
struct Fence {
  bool executed = false;
  const uint8_t* begin = nullptr;
  std::vector<uint8_t> stack{};
  std::vector<const float*> given_back{};  // accumulators that it has waited for since

  // Whether bytes that were there then are still the same. Those that were not are taken for unchanged.
  bool unchanged(const void* registers, size_t bytes) const;
};

struct Warpgroup {
  Thread* threads[kWarpgroup];
  uint32_t arrived = 0;  // at the instruction that the warpgroup executes together
  Source where{};
  std::deque<WgmmaOperation> pending;  // issued, not executed
  uint32_t issued = 0, executed = 0;
  uint32_t waited[kWarpgroup] = {};     // operations, by each thread
  std::list<Accumulator> accumulators;  // in flight
  std::deque<Fragments> fragments;      // in flight
  Fence fences[kWarpgroup];
  AlignedInstructions aligned;
};

void finish_wgmma(const Thread&);  // its last act; what it left unfinished is a fault

}  // namespace simt
