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
    mbarrier.released_remotely.add(mbarrier.completed_remotely);
    mbarrier.completed_remotely = mbarrier.released_remotely.take();
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

bool test_phase(uint32_t address, uint32_t parity, Scope scope, Source where) {
  require_own(address, "test", where);
  const Mbarrier& mbarrier = find_mbarrier(address, where);
  if (mbarrier.phase == (parity & 1)) return false;
  machine.polls = 0;
  acquire_view(*machine.running, mbarrier.completed);
  if (scope == Scope::cluster) acquire_view(*machine.running, mbarrier.completed_remotely);
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

Mbarrier& find_shown_mbarrier(uint32_t address, const char* what, Source where) {
  Mbarrier& mbarrier = find_mbarrier(address, where);
  if (!mbarrier.shown) {
    fault(where, "%s: the mbarrier at shared +0x%x has had no fence.mbarrier_init since its init", what,
          address & kOffsetMask);
  }
  return mbarrier;
}

Released& released_by_running(Mbarrier& mbarrier, uint32_t address) {
  return address_rank(address) == machine.running->block->rank ? mbarrier.released : mbarrier.released_remotely;
}

void show_mbarriers(Thread& thread) {
  for (Mbarrier* mbarrier : thread.initialised) mbarrier->shown = true;
  thread.initialised.clear();
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
  if (recorded(object)) fault(where, "mbarrier.init of a live mbarrier: mbarrier.inval comes first");
  std::deque<Mbarrier>& all = machine.running->block->domain->mbarriers;
  all.push_back({object, 0, count, count, 0, {}, {}, {}, {}, {}});
  const uint64_t word = kMagic | (all.size() - 1);
  std::memcpy(object, &word, sizeof word);
  machine.running->initialised.push_back(&all.back());
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
  const bool own = address_rank(address) == machine.running->block->rank;
  Mbarrier& mbarrier =
      own ? find_mbarrier(address, where) : find_shown_mbarrier(address, "mbarrier.arrive from another block", where);
  release_view(released_by_running(mbarrier, address));
  if (expect_bytes) add_transaction_bytes(mbarrier, expect_bytes, where);
  count_arrivals(mbarrier, count, where);
}

void mbarrier_expect_tx(uint32_t address, uint32_t bytes, Source where) {
  Mbarrier& mbarrier = find_mbarrier(address, where);
  add_transaction_bytes(mbarrier, bytes, where);
  settle(mbarrier);
}

bool mbarrier_test(uint32_t address, uint32_t parity, Scope scope, Source where) {
  if (test_phase(address, parity, scope, where)) return true;
  poll(where);
  return false;
}

void mbarrier_wait(uint32_t address, uint32_t parity, Scope scope, Source where) {
  while (!test_phase(address, parity, scope, where)) {
    Mbarrier& mbarrier = find_mbarrier(address, where);
    mbarrier.waiting.push_back(machine.running);
    block(kMbarrierWait, where, &mbarrier, parity & 1);
  }
}

void fence_mbarrier_init() {
  show_mbarriers(*machine.running);
}

}  // namespace simt
