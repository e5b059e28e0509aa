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
  const Moment reads{slot, ++engine.clock[slot]}, writes{slot, ++engine.clock[slot]};
  return {.kind = kind, .issuer = thread, .reads = reads, .writes = writes, .where = where};
}

bool lands_at_once() {
  return machine.landing == Landing::early || (machine.landing == Landing::random && machine.random.below(4) == 0);
}

void issue(Operation&& operation) {
  Domain& domain = *machine.running->block->domain;
  domain.engine.operations.push_back(std::move(operation));
  ++machine.operations_in_flight;
  if (lands_at_once()) land_operation(domain, domain.engine.operations.size() - 1);
}

// What the operation itself accesses, as far as the race detector knows.
void record_own(const Operation& operation, const void* pointer, size_t bytes, Access access) {
  if (!machine.races || !in_arena(pointer)) return;
  const bool async_proxy = operation.kind != Operation::store_async;
  const Moment& moment = access == Access::write ? operation.writes : operation.reads;
  const Actor actor{machine.running->view, slot_agent(moment.slot), moment.clock, async_proxy};
  record(pointer, bytes, access, actor, site_of(operation.where));
}

// Shared memory that will be written: NaN until the operation lands.
uint8_t* destination(const Operation& operation, uint32_t address, uint32_t bytes) {
  uint8_t* to = resolve(address, bytes, operation.where);
  record_own(operation, to, bytes, Access::write);
  std::memset(to, 0xFF, bytes);
  return to;
}

// A bulk copy's complete_tx orders the copy alone, not what its thread did before (PTX ISA, asynchronous operations).
// That of st.async is a release by the thread.
void complete_at_mbarrier(const Operation& operation) {
  Mbarrier& mbarrier = find_mbarrier_quietly(operation.mbarrier, operation.where);
  if (machine.races) {
    const bool by_thread = operation.kind == Operation::store_async;
    Released& released = by_thread ? released_by_running(mbarrier, operation.mbarrier) : mbarrier.released;
    if (by_thread) released.add(operation.view);
    for (const Moment& moment : {operation.reads, operation.writes}) {
      released.add(slot_agent(moment.slot), moment.clock);
    }
  }
  complete_transaction(mbarrier, operation.bytes, operation.where);
}

void land_tile_load(const Operation& operation) {
  uint8_t* shared = addressed_block(operation.shared, operation.where).shared;
  for_each_piece(operation.tile->map, operation.tile->at, operation.shared & kOffsetMask,
                 [&](const uint8_t* from, uint32_t to, uint32_t bytes) {
                   if (from) {
                     std::memcpy(shared + to, from, bytes);
                   } else {
                     std::memset(shared + to, 0, bytes);
                   }
                 });
  complete_at_mbarrier(operation);
}

// The first half of a store, after which its shared memory may be written again.
void read_source(Operation& operation) {
  if (!operation.data.empty()) return;
  const uint8_t* from = resolve(operation.shared, operation.bytes, operation.where);
  operation.data.assign(from, from + operation.bytes);
}

void land_tile_store(const Operation& operation) {
  const uint32_t begin = operation.shared & kOffsetMask;
  for_each_piece(operation.tile->map, operation.tile->at, begin, [&](uint8_t* to, uint32_t from, uint32_t bytes) {
    if (to) std::memcpy(to, &operation.data[from - begin], bytes);
  });
}

// The arrival comes after the thread's copies, not after anything else that it did.
void land_copies_arrive(Operation& operation) {
  for (Copy& copy : operation.copies) land(copy);
  Mbarrier& mbarrier = find_mbarrier_quietly(operation.mbarrier, operation.where);
  if (machine.races) mbarrier.released.add(copies_agent(*operation.issuer), operation.batch);
  count_arrivals(mbarrier, 1, operation.where);
}

void perform(Operation& operation) {
  if (operation.is_store()) read_source(operation);
  switch (operation.kind) {
    case Operation::tile_load:
      return land_tile_load(operation);
    case Operation::tile_store:
      return land_tile_store(operation);
    case Operation::bulk_load:
      std::memcpy(resolve(operation.shared, operation.bytes, operation.where), operation.global, operation.bytes);
      return complete_at_mbarrier(operation);
    case Operation::bulk_store:
      std::memcpy(operation.global, operation.data.data(), operation.bytes);
      return;
    case Operation::store_async:
      std::memcpy(resolve(operation.shared, operation.bytes, operation.where), operation.value, operation.bytes);
      return complete_at_mbarrier(operation);
    case Operation::copies_arrive:
      return land_copies_arrive(operation);
  }
}

void add_store(Operation&& operation) {
  BulkGroups& groups = machine.running->bulk;
  groups.stores.push_back({operation.reads, operation.writes, groups.committed});
  issue(std::move(operation));
}

void check_same_block(uint32_t to, uint32_t mbarrier, const char* what, Source where) {
  if (address_rank(to) != address_rank(mbarrier))
    fault(where, "%s: the mbarrier is in another block than the data", what);
}

void check_own_source(uint32_t from, const char* what, Source where) {
  if (address_rank(from) != machine.running->block->rank) {
    fault(where, "%s: its source is in another block's shared memory", what);
  }
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
  // What lies between such rows, and how they are swizzled, only a device can tell.
  const uint32_t row_bytes = map.box[0] * map.element_bytes, span = 16u << map.swizzle_bits;
  if (map.swizzle_bits && row_bytes != span) {
    fault(where, "TMA: rows of %u bytes in a box with a swizzle of %u are not modelled", row_bytes, span);
  }
}

Operation new_tile_operation(Operation::Kind kind, int dims, const CUtensorMap* descriptor, uint32_t shared,
                             const int* at, Source where) {
  Operation operation = new_operation(kind, where);
  operation.tile = std::make_unique<Tile>(Tile{decode(descriptor, dims, where), {}});
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
  --domain.engine.in_flight[operation.writes.slot];
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

void finish_operations(Domain& domain) {
  std::vector<Operation>& operations = domain.engine.operations;
  for (; !operations.empty(); land_operation(domain, operations.size() - 1)) {
    if (!operations.back().is_store()) {
      fault(operations.back().where, "a cluster exits with asynchronous copies in flight");
    }
  }
}

void arrive_after_copies(uint32_t mbarrier, std::vector<Copy> copies, uint32_t batch, Source where) {
  Operation operation = new_operation(Operation::copies_arrive, where);
  operation.mbarrier = mbarrier;
  operation.copies = std::move(copies);
  operation.batch = batch;
  issue(std::move(operation));
}

void land_moved_copies(Thread& thread) {
  Domain& domain = *thread.block->domain;
  std::vector<Operation>& operations = domain.engine.operations;
  for (size_t i = operations.size(); i-- > 0;) {
    if (operations[i].kind == Operation::copies_arrive && operations[i].issuer == &thread) land_operation(domain, i);
  }
}

// To each block at a time of its own. The reads are one: with any of the copies they are complete.
void tma_load(int dims, const CUtensorMap* descriptor, uint32_t to, uint32_t mbarrier, const int* at,
              uint16_t multicast, Source where) {
  require_capability(90, "TMA", where);
  if (!multicast) check_same_block(to, mbarrier, "TMA", where);
  const uint32_t blocks = multicast ? multicast : 1u << address_rank(to);
  if (blocks >> machine.cluster_blocks) fault(where, "TMA multicast to a block outside the cluster");
  Moment reads{};
  for (uint32_t rank = 0; blocks >> rank; ++rank) {
    if (!(blocks >> rank & 1)) continue;
    Operation operation =
        new_tile_operation(Operation::tile_load, dims, descriptor, make_address(rank, to & kOffsetMask), at, where);
    operation.mbarrier = make_address(rank, mbarrier & kOffsetMask);
    find_shown_mbarrier(operation.mbarrier, "TMA", where);
    if (reads.clock) operation.reads = reads;
    if (!reads.clock) record_tile_rows(operation, Access::read);
    reads = operation.reads;
    destination(operation, operation.shared, operation.bytes);
    issue(std::move(operation));
  }
}

void tma_store(int dims, const CUtensorMap* descriptor, uint32_t from, const int* at, Source where) {
  require_capability(90, "TMA", where);
  check_own_source(from, "TMA store", where);
  for (int d = 0; d < dims; ++d) {
    if (at[d] < 0) fault(where, "TMA store at coordinate %d of dimension %d: below zero is not modelled", at[d], d);
  }
  Operation operation = new_tile_operation(Operation::tile_store, dims, descriptor, from, at, where);
  record_own(operation, resolve(from, operation.bytes, where), operation.bytes, Access::read);
  record_tile_rows(operation, Access::write);
  add_store(std::move(operation));
}

void tma_prefetch(int dims, const CUtensorMap* descriptor, const int*, Source where) {
  require_capability(90, "TMA", where);
  decode(descriptor, dims, where);
}

void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier, Source where) {
  check_bulk(to, from, bytes, where);
  check_same_block(to, mbarrier, "cp.async.bulk", where);
  find_shown_mbarrier(mbarrier, "cp.async.bulk", where);
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
  check_own_source(from, "cp.async.bulk", where);
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
    std::vector<Operation>& operations = domain.engine.operations;
    const auto found = std::find_if(operations.begin(), operations.end(), [&](const Operation& operation) {
      return operation.reads.slot == end->reads.slot && operation.reads.clock == end->reads.clock;
    });
    if (found != operations.end() && read_only) read_source(*found);
    if (found != operations.end() && !read_only) land_operation(domain, found - operations.begin());
    const Moment& done = read_only ? end->reads : end->writes;
    if (machine.races) learn(thread.view, slot_agent(done.slot), done.clock);
    end->read = true;
  }
  if (!read_only) bulk.stores.erase(bulk.stores.begin(), end);
}

void st_async(uint32_t to, const void* value, int bytes, uint32_t mbarrier, Source where) {
  require_capability(90, "st.async", where);
  check_same_block(to, mbarrier, "st.async", where);
  if (to % bytes) fault(where, "MISALIGNED st.async of %d bytes at shared +0x%x", bytes, to & kOffsetMask);
  find_shown_mbarrier(mbarrier, "st.async", where);
  Operation operation = new_operation(Operation::store_async, where);
  operation.shared = to;
  operation.mbarrier = mbarrier;
  operation.bytes = static_cast<uint32_t>(bytes);
  std::memcpy(operation.value, value, bytes);
  destination(operation, to, operation.bytes);
  if (machine.races) {
    operation.view = machine.running->view;
    tick(*machine.running);
  }
  issue(std::move(operation));
}

}  // namespace simt
