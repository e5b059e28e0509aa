#pragma once
// The engine of TMA, bulk copies and st.async: operations in flight, each landing at some time of its own.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "simt/clocks.h"
#include "simt/cp_async.h"
#include "simt/executor.h"
#include "simt/tensor_map.h"

namespace simt {

struct Block;
struct Domain;
struct Thread;

// Of a TMA operation.
struct Tile {
  TensorMap map;
  int at[kMaxDims];
};

// When the race detector sees an access of an operation: the slot is the agent.
struct Moment {
  uint32_t slot, clock;
};

struct Operation {
  enum Kind { tile_load, tile_store, bulk_load, bulk_store, store_async, copies_arrive } kind;
  Thread* issuer;
  Moment reads, writes;  // both in the same slot, but for a multicast: its blocks have one read
  Source where;
  View view{};  // the issuer's, when it issued, where the operation hands it on
  uint32_t shared = 0, mbarrier = 0, bytes = 0;
  uint8_t* global = nullptr;
  uint8_t value[16] = {};       // of st.async
  std::vector<uint8_t> data{};  // that a store has read
  std::unique_ptr<Tile> tile{};
  std::vector<Copy> copies{};
  uint32_t batch = 0;  // the last one of `copies`

  bool is_store() const { return kind == tile_store || kind == bulk_store; }
};

constexpr uint32_t kEngineSlots = 64;

struct Engine {
  std::vector<Operation> operations;  // in flight
  uint32_t next_slot = 0;
  uint32_t clock[kEngineSlots] = {};
  uint32_t in_flight[kEngineSlots] = {};
};

// Bulk stores of a thread that it has yet to wait for.
struct BulkGroups {
  struct Store {
    Moment reads, writes;
    uint32_t group;
    bool read = false;  // from shared memory; its writes may be outstanding
  };
  std::vector<Store> stores;
  uint32_t committed = 0;  // groups

  bool all_read() const {
    return std::all_of(stores.begin(), stores.end(), [](const Store& store) { return store.read; });
  }
};

void land_operation(Domain&, size_t which);
void land_any_operation();
void finish_operations(Domain&);  // when its threads have exited
// Moves the thread's copies to an operation that arrives at an mbarrier when they have landed.
void arrive_after_copies(uint32_t mbarrier, std::vector<Copy>, uint32_t batch, Source);
void land_moved_copies(Thread&);

}  // namespace simt
