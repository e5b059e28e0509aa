#include "simt/cp_async.h"

#include <algorithm>
#include <cstring>

#include "simt/bulk.h"
#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/race.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

bool lands_at_once() {
  return machine.landing == Landing::early || (machine.landing == Landing::random && machine.random.coin());
}

void close_batch(CopyQueue& queue) {
  if (!queue.copies.empty() && queue.copies.back().batch == queue.batch) ++queue.batch;
}

// The copies of all batches up to this one are complete, for the thread itself.
void complete_copies(Thread& thread, uint32_t batch) {
  std::vector<Copy>& copies = thread.copies.copies;
  auto end = copies.begin();
  for (; end != copies.end() && end->batch <= batch; ++end) land(*end);
  copies.erase(copies.begin(), end);
  land_moved_copies(thread);
  thread.view.copies.clock = std::max(thread.view.copies.clock, batch);
}

}  // namespace

void land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  std::memcpy(copy.to, copy.from, copy.source_bytes);
  std::memset(copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

void cp_async(uint32_t address, const void* from, int bytes, int source_bytes, Source where) {
  require_capability(80, "cp.async", where);
  if (bytes != 4 && bytes != 8 && bytes != 16) fault(where, "cp.async of %d bytes", bytes);
  if (source_bytes < 0 || source_bytes > bytes)
    fault(where, "cp.async of %d bytes with %d to read", bytes, source_bytes);
  uint8_t* to = resolve_aligned(address, bytes, where);
  if (reinterpret_cast<uintptr_t>(from) % bytes) fault(where, "MISALIGNED source of cp.async of %d bytes", bytes);
  Thread& thread = *machine.running;
  CopyQueue& queue = thread.copies;
  if (machine.races) {
    const Site site = site_of(where);
    const Actor copies{thread.view, copies_agent(thread), queue.batch, false};
    if (in_arena(from)) record(from, source_bytes, Access::read, actor_of(thread), site);
    record(to, bytes, Access::write, copies, site);
  }
  Copy& copy = queue.copies.emplace_back(to, static_cast<const uint8_t*>(from), static_cast<uint16_t>(bytes),
                                         static_cast<uint16_t>(source_bytes), false, queue.batch);
  if (lands_at_once()) {
    land(copy);
  } else {
    std::memset(to, 0xFF, bytes);
  }
}

void cp_async_commit() {
  CopyQueue& queue = machine.running->copies;
  queue.committed.push_back(queue.batch++);
}

void cp_async_wait(int groups, Source) {
  maybe_reschedule();
  Thread& thread = *machine.running;
  CopyQueue& queue = thread.copies;
  if (groups < 0) {
    close_batch(queue);
    queue.committed.clear();
    complete_copies(thread, queue.batch - 1);
  } else if (queue.committed.size() > static_cast<size_t>(groups)) {
    const auto last = queue.committed.end() - groups - 1;
    const uint32_t batch = *last;
    queue.committed.erase(queue.committed.begin(), last + 1);
    complete_copies(thread, batch);
  }
}

void cp_async_mbarrier_arrive(uint32_t address, bool noinc, Source where) {
  Mbarrier& mbarrier = find_mbarrier(address, where);
  if (!noinc) add_expected_arrival(mbarrier);
  CopyQueue& queue = machine.running->copies;
  close_batch(queue);
  arrive_after_copies(address, std::move(queue.copies), queue.batch - 1, where);
  queue.copies.clear();
}

}  // namespace simt
