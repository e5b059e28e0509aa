#pragma once
// What a launch consists of while it runs: threads, in warps, in blocks, in clusters, in domains.
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "simt/barrier.h"
#include "simt/bulk.h"
#include "simt/clocks.h"
#include "simt/cp_async.h"
#include "simt/executor.h"
#include "simt/mbarrier.h"
#include "simt/ready_queue.h"
#include "simt/wgmma.h"

namespace simt {

constexpr uint32_t kWarp = 32;
constexpr int kNamedBarriers = 16;

struct Block;
struct Domain;
struct Warp;

// Why a thread does not run: for the deadlock report.
struct Wait {
  const char* what = nullptr;
  Source where{};
  const void* object = nullptr;
  uint32_t detail = 0;
};

struct Thread {
  void* context;
  Block* block;
  Warp* warp;
  uint3 index;
  uint32_t rank, lane, agent;  // in its block, its warp, its domain
  Wait wait;
  void* argument;     // of the collective it waits in
  int barrier_count;  // predicates counted by the barrier it left
  uint64_t cluster_ticket;
  bool exited;
  uint8_t* stack;
  View view;
  CopyQueue copies;
  BulkGroups bulk;
  std::vector<uint32_t> wgmma_groups;  // operations issued before each commit not yet waited for
  std::vector<Mbarrier*> initialised;  // that no fence has shown to others yet
  void* log = nullptr;                 // of what it executes, where that is counted (ptx/count.h)
};

// A collective that some lanes of a warp have reached. `kind` tells apart what must not be mixed.
struct Rendezvous {
  int kind;
  uint32_t mask, arrived = 0;
  Source where;
  Thread* lanes[kWarp];
};

struct Warp {
  uint32_t live = 0;
  Rendezvous rendezvous[4];  // of disjoint masks
};

struct Block {
  Domain* domain;
  uint3 index;
  uint32_t rank, cluster;  // rank in its cluster, cluster in its domain
  uint32_t live;
  uint8_t* shared;
  std::vector<Warp> warps;
  Barrier barriers[kNamedBarriers];
  std::vector<Warpgroup> warpgroups;
};

// Blocks that may synchronise with one another: one cluster, or the whole of a cooperative grid.
struct Domain {
  uint32_t number;  // in the launch
  uint32_t serial;  // over all launches: the race detector's name for it
  uint32_t live = 0;
  uint32_t first_window;
  std::vector<Block> blocks;
  std::vector<Thread> threads;
  std::vector<PhaseBarrier> clusters;
  PhaseBarrier grid;
  std::deque<Mbarrier> mbarriers;
  Engine engine;
  std::unordered_map<const void*, Released> flags;  // of release_to and acquire
};

struct Random {
  uint64_t state = 1;
  void seed(uint64_t value) {
    state = value * 0x9E3779B97F4A7C15ull | 1;
    for (int i = 0; i < 8; ++i) next();
  }
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  }
  uint32_t below(size_t n) { return static_cast<uint32_t>(next() % n); }
  bool coin() { return next() & 1; }
};

struct Machine {
  Thread* running = nullptr;  // null: the main context
  void* main_context = nullptr;
  ReadyQueue ready;
  Random random;
  LaunchConfig config;
  const std::function<void()>* body = nullptr;
  Order order{};
  Landing landing{};
  bool shuffled = false;  // starts and some continuations in random order
  bool races = false;
  bool stopped = false;  // enough races were reported
  uint32_t block_threads = 0, domain_blocks = 0, cluster_blocks = 0;
  uint32_t domain_count = 0, next_domain = 0;
  size_t operations_in_flight = 0;
  uint64_t polls = 0;                            // by all threads since one of them made progress
  std::vector<std::unique_ptr<Domain>> domains;  // resident
};
extern Machine machine;
extern bool instrumented;  // kernel code was compiled for the race detector

inline uint32_t domain_threads() {
  return machine.block_threads * machine.domain_blocks;
}

// Agents of a domain: its threads, their copies, slots of the bulk engine, wgmma units.
inline uint32_t copies_agent(const Thread& thread) {
  return domain_threads() + thread.agent;
}
inline uint32_t slot_agent(uint32_t slot) {
  return 2 * domain_threads() + slot;
}
inline uint32_t wgmma_agent(const Thread& thread) {
  const uint32_t first = thread.agent - thread.rank % kWarpgroup;
  return 2 * domain_threads() + kEngineSlots + first / kWarpgroup;
}
inline uint32_t agent_count() {
  return 2 * domain_threads() + kEngineSlots + (domain_threads() + kWarpgroup - 1) / kWarpgroup;
}

// Another thread stands in as the running one: its accesses and faults are done on its behalf.
class Impersonate {
 public:
  explicit Impersonate(Thread* thread) : before_(machine.running) { machine.running = thread; }
  ~Impersonate() { machine.running = before_; }
  Impersonate(const Impersonate&) = delete;

 private:
  Thread* before_;
};

}  // namespace simt
