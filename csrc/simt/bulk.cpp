#include "simt/bulk.h"

#include <algorithm>
#include <cstring>

#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/race.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

// A slot is an agent of the race detector, and its operations happen one after the other: better a free one.
uint32_t take_slot(Engine& engine) {
  const bool some_free = engine.operations.size() < kEngineSlots;
  while (some_free && engine.in_flight[engine.next_slot % kEngineSlots]) ++engine.next_slot;
  const uint32_t slot = engine.next_slot++ % kEngineSlots;
  ++engine.in_flight[slot];
  return slot;
}

Operation new_operation(Operation::Kind kind, Source where) {
  Thread* thread = machine.running;
  Engine& engine = thread->block->domain->engine;
  const uint32_t slot = take_slot(engine);
  return {.kind = kind, .issuer = thread, .slot = slot, .clock = ++engine.clock[slot], .where = where};
}

bool lands_at_once() {
  return machine.landing == Landing::early || (machine.landing == Landing::random && machine.random.below(4) == 0);
}

void issue(Operation&& operation) {
  Domain& domain = *machine.running->block->domain;
  if (machine.races) {
    operation.view = machine.running->view;
    tick(*machine.running);
  }
  domain.engine.operations.push_back(std::move(operation));
  ++machine.operations_in_flight;
  if (lands_at_once()) land_operation(domain, domain.engine.operations.size() - 1);
}

// What the operation itself accesses, as far as the race detector knows.
void record_own(const Operation& operation, const void* pointer, size_t bytes, Access access) {
  if (!machine.races || !in_arena(pointer)) return;
  const bool async_proxy = operation.kind != Operation::store_async;
  const uint32_t clock = operation.clock + (operation.is_store() && access == Access::write);
  const Actor actor{machine.running->view, slot_agent(operation.slot), clock, async_proxy};
  record(pointer, bytes, access, actor, site_of(operation.where));
}

// Shared memory that will be written: NaN until the operation lands.
uint8_t* destination(const Operation& operation, uint32_t address, uint32_t bytes) {
  uint8_t* to = resolve(address, bytes, operation.where);
  record_own(operation, to, bytes, Access::write);
  std::memset(to, 0xFF, bytes);
  return to;
}

void complete_at_mbarrier(const Operation& operation, uint32_t address) {
  Mbarrier& mbarrier = find_mbarrier_quietly(address, operation.where);
  if (machine.races) {
    mbarrier.released.add(operation.view);
    mbarrier.released.add(slot_agent(operation.slot), operation.clock);
  }
  complete_transaction(mbarrier, operation.bytes, operation.where);
}

void land_tile_load(const Operation& operation) {
  for (uint32_t rank = 0; rank < machine.cluster_blocks; ++rank) {
    if (!(operation.tile->blocks >> rank & 1)) continue;
    uint8_t* shared = addressed_block(make_address(rank, 0), operation.where).shared;
    for_each_piece(operation.tile->map, operation.tile->at, operation.shared & kOffsetMask,
                   [&](const uint8_t* from, uint32_t to, uint32_t bytes) {
                     if (from) {
                       std::memcpy(shared + to, from, bytes);
                     } else {
                       std::memset(shared + to, 0, bytes);
                     }
                   });
    complete_at_mbarrier(operation, make_address(rank, operation.mbarrier & kOffsetMask));
  }
}

void land_tile_store(const Operation& operation) {
  const uint8_t* shared = operation.issuer->block->shared;
  for_each_piece(operation.tile->map, operation.tile->at, operation.shared & kOffsetMask,
                 [&](uint8_t* to, uint32_t from, uint32_t bytes) {
                   if (to) std::memcpy(to, shared + from, bytes);
                 });
}

void land_copies_arrive(Operation& operation) {
  for (Copy& copy : operation.copies) land(copy);
  Mbarrier& mbarrier = find_mbarrier_quietly(operation.mbarrier, operation.where);
  if (machine.races) mbarrier.released.add(operation.view);
  count_arrivals(mbarrier, 1, operation.where);
}

void perform(Operation& operation) {
  switch (operation.kind) {
    case Operation::tile_load:
      return land_tile_load(operation);
    case Operation::tile_store:
      return land_tile_store(operation);
    case Operation::bulk_load:
      std::memcpy(resolve(operation.shared, operation.bytes, operation.where), operation.global, operation.bytes);
      return complete_at_mbarrier(operation, operation.mbarrier);
    case Operation::bulk_store:
      std::memcpy(operation.global, resolve(operation.shared, operation.bytes, operation.where), operation.bytes);
      return;
    case Operation::store_async:
      std::memcpy(resolve(operation.shared, operation.bytes, operation.where), operation.value, operation.bytes);
      return complete_at_mbarrier(operation, operation.mbarrier);
    case Operation::copies_arrive:
      return land_copies_arrive(operation);
  }
}

void add_store(Operation&& operation) {
  BulkGroups& groups = machine.running->bulk;
  groups.stores.push_back({operation.slot, operation.clock, groups.committed});
  ++machine.running->block->domain->engine.clock[operation.slot];  // of its writes
  issue(std::move(operation));
}

void check_same_block(uint32_t to, uint32_t mbarrier, const char* what, Source where) {
  if (address_rank(to) != address_rank(mbarrier))
    fault(where, "%s: the mbarrier is in another block than the data", what);
}

void check_bulk(uint32_t shared, const void* global, uint32_t bytes, Source where) {
  require_capability(90, "cp.async.bulk", where);
  if (bytes % 16 || shared % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
    fault(where, "MISALIGNED cp.async.bulk: addresses and size must be multiples of 16 bytes");
  }
}

void check_tile(const TensorMap& map, uint32_t shared, Source where) {
  if (shared % 128)
    fault(where, "MISALIGNED TMA: the shared address +0x%x is not a multiple of 128", shared & kOffsetMask);
  if (map.swizzle_bits == 3 && shared % 1024) {
    fault(where, "TMA: a tile with SWIZZLE_128B at shared +0x%x, not a multiple of 1024", shared & kOffsetMask);
  }
}

Operation new_tile_operation(Operation::Kind kind, int dims, const CUtensorMap* descriptor, uint32_t shared,
                             const int* at, Source where) {
  Operation operation = new_operation(kind, where);
  operation.tile = std::make_unique<Tile>(Tile{decode(descriptor, dims, where), {}, 0});
  check_tile(operation.tile->map, shared, where);
  std::copy(at, at + dims, operation.tile->at);
  operation.shared = shared;
  operation.bytes = tile_bytes(operation.tile->map);
  return operation;
}

void record_tile_rows(const Operation& operation, Access access) {
  if (!machine.races) return;
  for_each_piece(operation.tile->map, operation.tile->at, 0, [&](uint8_t* row, uint32_t, uint32_t bytes) {
    if (row) record_own(operation, row, bytes, access);
  });
}

}  // namespace

void land_operation(Domain& domain, size_t which) {
  std::vector<Operation>& operations = domain.engine.operations;
  Operation operation = std::move(operations[which]);
  if (which + 1 != operations.size()) operations[which] = std::move(operations.back());
  operations.pop_back();
  --machine.operations_in_flight;
  machine.polls = 0;
  --domain.engine.in_flight[operation.slot];
  const Impersonate impersonate(operation.issuer);
  perform(operation);
}

void land_any_operation() {
  size_t which = machine.random.below(machine.operations_in_flight);
  for (auto& domain : machine.domains) {
    const size_t count = domain->engine.operations.size();
    if (which < count) return land_operation(*domain, which);
    which -= count;
  }
}

void arrive_after_copies(uint32_t mbarrier, std::vector<Copy> copies, uint32_t batch, Source where) {
  Operation operation = new_operation(Operation::copies_arrive, where);
  operation.mbarrier = mbarrier;
  operation.copies = std::move(copies);
  View& view = machine.running->view;
  const uint32_t own = view.copies.clock;
  view.copies.clock = std::max(own, batch);  // the arrival knows of them, the thread does not
  issue(std::move(operation));
  view.copies.clock = own;
}

void land_moved_copies(Thread& thread) {
  Domain& domain = *thread.block->domain;
  std::vector<Operation>& operations = domain.engine.operations;
  for (size_t i = operations.size(); i-- > 0;) {
    if (operations[i].kind == Operation::copies_arrive && operations[i].issuer == &thread) land_operation(domain, i);
  }
}

void tma_load(int dims, const CUtensorMap* descriptor, uint32_t to, uint32_t mbarrier, const int* at,
              uint16_t multicast, Source where) {
  require_capability(90, "TMA", where);
  Operation operation = new_tile_operation(Operation::tile_load, dims, descriptor, to, at, where);
  operation.mbarrier = mbarrier;
  operation.tile->blocks = multicast ? multicast : static_cast<uint16_t>(1u << address_rank(to));
  if (operation.tile->blocks >> machine.cluster_blocks) fault(where, "TMA multicast to a block outside the cluster");
  record_tile_rows(operation, Access::read);
  for (uint32_t rank = 0; rank < machine.cluster_blocks; ++rank) {
    if (!(operation.tile->blocks >> rank & 1)) continue;
    find_mbarrier(make_address(rank, mbarrier & kOffsetMask), where);
    destination(operation, make_address(rank, to & kOffsetMask), operation.bytes);
  }
  issue(std::move(operation));
}

void tma_store(int dims, const CUtensorMap* descriptor, uint32_t from, const int* at, Source where) {
  require_capability(90, "TMA", where);
  Operation operation = new_tile_operation(Operation::tile_store, dims, descriptor, from, at, where);
  record_own(operation, resolve(from, operation.bytes, where), operation.bytes, Access::read);
  record_tile_rows(operation, Access::write);
  add_store(std::move(operation));
}

void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier, Source where) {
  check_bulk(to, from, bytes, where);
  check_same_block(to, mbarrier, "cp.async.bulk", where);
  find_mbarrier(mbarrier, where);
  Operation operation = new_operation(Operation::bulk_load, where);
  operation.shared = to;
  operation.mbarrier = mbarrier;
  operation.bytes = bytes;
  operation.global = static_cast<uint8_t*>(const_cast<void*>(from));
  record_own(operation, from, bytes, Access::read);
  destination(operation, to, bytes);
  issue(std::move(operation));
}

void bulk_store(void* to, uint32_t from, uint32_t bytes, Source where) {
  check_bulk(from, to, bytes, where);
  Operation operation = new_operation(Operation::bulk_store, where);
  operation.shared = from;
  operation.bytes = bytes;
  operation.global = static_cast<uint8_t*>(to);
  record_own(operation, resolve(from, bytes, where), bytes, Access::read);
  record_own(operation, to, bytes, Access::write);
  add_store(std::move(operation));
}

void bulk_commit() {
  ++machine.running->bulk.committed;
}

void bulk_wait(int groups, bool read_only, Source) {
  maybe_reschedule();
  Thread& thread = *machine.running;
  Domain& domain = *thread.block->domain;
  BulkGroups& bulk = thread.bulk;
  const uint32_t complete = bulk.committed - std::min(bulk.committed, static_cast<uint32_t>(groups));
  auto end = bulk.stores.begin();
  for (; end != bulk.stores.end() && end->group < complete; ++end) {
    const std::vector<Operation>& operations = domain.engine.operations;
    const auto found = std::find_if(operations.begin(), operations.end(), [&](const Operation& operation) {
      return operation.slot == end->slot && operation.clock == end->clock;
    });
    if (found != operations.end()) land_operation(domain, found - operations.begin());
    if (machine.races) learn(thread.view, slot_agent(end->slot), end->clock + !read_only);
    end->read = true;
  }
  if (!read_only) bulk.stores.erase(bulk.stores.begin(), end);
}

void st_async(uint32_t to, const void* value, int bytes, uint32_t mbarrier, Source where) {
  require_capability(90, "st.async", where);
  check_same_block(to, mbarrier, "st.async", where);
  if (to % bytes) fault(where, "MISALIGNED st.async of %d bytes at shared +0x%x", bytes, to & kOffsetMask);
  find_mbarrier(mbarrier, where);
  Operation operation = new_operation(Operation::store_async, where);
  operation.shared = to;
  operation.mbarrier = mbarrier;
  operation.bytes = static_cast<uint32_t>(bytes);
  std::memcpy(operation.value, value, bytes);
  destination(operation, to, operation.bytes);
  issue(std::move(operation));
}

}  // namespace simt
