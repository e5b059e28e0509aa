#include "simt/mbarrier.h"

#include <cstring>

#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/race.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr uint64_t kMagic = uint64_t{0x6d626172} << 32;  // above the record's index
constexpr uint32_t kMaxCount = (1u << 20) - 1;

Mbarrier* recorded(const uint8_t* address) {
  uint64_t word;
  std::memcpy(&word, address, sizeof word);
  std::deque<Mbarrier>& all = machine.running->block->domain->mbarriers;
  const uint64_t index = word ^ kMagic;
  if (index >= all.size() || all[index].address != address) return nullptr;
  return &all[index];
}

void require_own(uint32_t address, const char* what, Source where) {
  if (address_rank(address) != machine.running->block->rank) {
    fault(where, "%s of an mbarrier in another block's shared memory", what);
  }
}

void settle(Mbarrier& mbarrier) {
  if (mbarrier.pending || mbarrier.transaction_bytes) return;
  mbarrier.phase ^= 1;
  mbarrier.pending = mbarrier.expected;
  if (machine.races) {
    mbarrier.released.add(mbarrier.completed);
    mbarrier.completed = mbarrier.released.take();
  }
  for (Thread* thread : mbarrier.waiting) wake(thread);
  mbarrier.waiting.clear();
}

void add_transaction_bytes(Mbarrier& mbarrier, int64_t bytes, Source where) {
  mbarrier.transaction_bytes += bytes;
  if (mbarrier.transaction_bytes > kMaxCount || mbarrier.transaction_bytes < -int64_t{kMaxCount}) {
    fault(where, "mbarrier: %lld bytes outstanding is out of range",
          static_cast<long long>(mbarrier.transaction_bytes));
  }
}

bool test_phase(uint32_t address, uint32_t parity, Source where) {
  require_own(address, "test", where);
  const Mbarrier& mbarrier = find_mbarrier(address, where);
  if (mbarrier.phase == (parity & 1)) return false;
  machine.polls = 0;
  acquire_view(*machine.running, mbarrier.completed);
  return true;
}

}  // namespace

Mbarrier& find_mbarrier(uint32_t address, Source where) {
  record(resolve_aligned(address, 8, where), 8, Access::read, where);
  return find_mbarrier_quietly(address, where);
}

Mbarrier& find_mbarrier_quietly(uint32_t address, Source where) {
  Mbarrier* mbarrier = recorded(resolve_aligned(address, 8, where));
  if (!mbarrier) fault(where, "shared +0x%x is no mbarrier: not initialised, or overwritten", address & kOffsetMask);
  return *mbarrier;
}

void count_arrivals(Mbarrier& mbarrier, uint32_t arrivals, Source where) {
  if (mbarrier.pending < arrivals) {
    fault(where, "mbarrier: more arrivals in a phase than its count of %u", mbarrier.expected);
  }
  mbarrier.pending -= arrivals;
  settle(mbarrier);
}

void add_expected_arrival(Mbarrier& mbarrier) {
  ++mbarrier.pending;
}

void complete_transaction(Mbarrier& mbarrier, uint32_t bytes, Source where) {
  add_transaction_bytes(mbarrier, -int64_t{bytes}, where);
  settle(mbarrier);
}

void mbarrier_init(uint32_t address, uint32_t count, Source where) {
  require_capability(80, "mbarrier", where);
  require_own(address, "init", where);
  if (count == 0 || count > kMaxCount) fault(where, "mbarrier.init with a count of %u", count);
  uint8_t* object = resolve_aligned(address, 8, where);
  record(object, 8, Access::write, where);
  std::deque<Mbarrier>& all = machine.running->block->domain->mbarriers;
  Mbarrier* mbarrier = recorded(object);
  if (!mbarrier) {
    mbarrier = &all.emplace_back();
    const uint64_t word = kMagic | (all.size() - 1);
    std::memcpy(object, &word, sizeof word);
  }
  *mbarrier = {object, 0, count, count, 0, {}, {}, {}};
}

void mbarrier_invalidate(uint32_t address, Source where) {
  require_own(address, "inval", where);
  Mbarrier& mbarrier = find_mbarrier(address, where);
  if (!mbarrier.waiting.empty()) fault(where, "mbarrier.inval while %zu threads wait", mbarrier.waiting.size());
  record(mbarrier.address, 8, Access::write, where);
  std::memset(mbarrier.address, 0xFF, 8);
  mbarrier.address = nullptr;
}

void mbarrier_arrive(uint32_t address, uint32_t count, uint32_t expect_bytes, Source where) {
  maybe_reschedule();
  Mbarrier& mbarrier = find_mbarrier(address, where);
  release_view(mbarrier.released);
  if (expect_bytes) add_transaction_bytes(mbarrier, expect_bytes, where);
  count_arrivals(mbarrier, count, where);
}

void mbarrier_expect_tx(uint32_t address, uint32_t bytes, Source where) {
  Mbarrier& mbarrier = find_mbarrier(address, where);
  add_transaction_bytes(mbarrier, bytes, where);
  settle(mbarrier);
}

bool mbarrier_test(uint32_t address, uint32_t parity, Source where) {
  if (test_phase(address, parity, where)) return true;
  poll(where);
  return false;
}

void mbarrier_wait(uint32_t address, uint32_t parity, Source where) {
  while (!test_phase(address, parity, where)) {
    Mbarrier& mbarrier = find_mbarrier(address, where);
    mbarrier.waiting.push_back(machine.running);
    block(kMbarrierWait, where, &mbarrier, parity & 1);
  }
}

void fence_mbarrier_init() {}

}  // namespace simt
