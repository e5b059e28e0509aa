#include "simt/clocks.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <vector>

namespace simt {

uint32_t Snapshot::agents = 0;

namespace {

// Every snapshot of the launch, and those not in use. A fault abandons stacks, and references on them, so the next
// launch takes all of them back.
struct Pool {
  std::vector<Snapshot*> all, free;
} pool;

// Threads join, fence and learn in unison: the last results serve all of them.
struct Join {
  SnapshotRef a, b, result;
};
struct Memory {
  Join joins[4];
  uint32_t next_join = 0;
  struct {
    SnapshotRef source, result;
  } fence;
  struct {
    SnapshotRef source, result;
    uint32_t agent, clock;
  } lesson{};
} last;

void raise_to(uint32_t& value, uint32_t floor) {
  value = std::max(value, floor);
}

void raise_all(uint32_t* values, const uint32_t* floors) {
  for (uint32_t i = 0; i < Snapshot::agents; ++i) values[i] = std::max(values[i], floors[i]);
}

void lower_all(uint32_t* values, const uint32_t* ceilings) {
  for (uint32_t i = 0; i < Snapshot::agents; ++i) values[i] = std::min(values[i], ceilings[i]);
}

void set_fence(Snapshot* snapshot, uint32_t agent, uint32_t clock) {
  if (!clock) return;
  if (!snapshot->has_fences) {
    std::memset(snapshot->fenced(), 0, Snapshot::agents * sizeof(uint32_t));
    snapshot->has_fences = true;
  }
  raise_to(snapshot->fenced()[agent], clock);
}

}  // namespace

void begin_clocks(uint32_t agents) {
  last = {};
  if (agents != Snapshot::agents) {
    for (Snapshot* snapshot : pool.all) std::free(snapshot);
    pool.all.clear();
    Snapshot::agents = agents;
  }
  pool.free = pool.all;
}

Snapshot* new_snapshot() {
  if (pool.free.empty()) {
    void* memory = std::malloc(sizeof(Snapshot) + 2 * Snapshot::agents * sizeof(uint32_t));
    if (!memory) throw std::bad_alloc();
    pool.all.push_back(static_cast<Snapshot*>(memory));
    pool.free.push_back(pool.all.back());
  }
  Snapshot* snapshot = pool.free.back();
  pool.free.pop_back();
  snapshot->references = 1;
  snapshot->has_fences = false;
  return snapshot;
}

void recycle(Snapshot* snapshot) {
  pool.free.push_back(snapshot);
}

SnapshotRef zero_snapshot() {
  Snapshot* snapshot = new_snapshot();
  std::memset(snapshot->clock(), 0, Snapshot::agents * sizeof(uint32_t));
  return SnapshotRef(snapshot);
}

SnapshotRef clone(const SnapshotRef& source) {
  Snapshot* snapshot = new_snapshot();
  snapshot->has_fences = source->has_fences;
  std::memcpy(snapshot->clock(), source->clock(), (source->has_fences ? 2 : 1) * Snapshot::agents * sizeof(uint32_t));
  return SnapshotRef(snapshot);
}

void join_into(Snapshot* target, Snapshot* source) {
  raise_all(target->clock(), source->clock());
  if (!source->has_fences) return;
  if (target->has_fences) {
    raise_all(target->fenced(), source->fenced());
  } else {
    std::memcpy(target->fenced(), source->fenced(), Snapshot::agents * sizeof(uint32_t));
    target->has_fences = true;
  }
}

SnapshotRef joined(const SnapshotRef& a, const SnapshotRef& b) {
  if (!b || a.get() == b.get()) return a;
  for (const Join& join : last.joins) {
    if (join.a.get() == a.get() && join.b.get() == b.get()) return join.result;
  }
  SnapshotRef result = clone(a);
  join_into(result.get(), b.get());
  last.joins[last.next_join++ % std::size(last.joins)] = {a, b, result};
  return result;
}

SnapshotRef met(const SnapshotRef& a, const SnapshotRef& b) {
  if (a.get() == b.get()) return a;
  SnapshotRef result = clone(a);
  lower_all(result->clock(), b->clock());
  if (result->has_fences && b->has_fences) {
    lower_all(result->fenced(), b->fenced());
  } else {
    result->has_fences = false;
  }
  return result;
}

void acquire_into(View& view, const SnapshotRef& snapshot) {
  if (snapshot) view.base = joined(view.base, snapshot);
}

void learn(View& view, uint32_t agent, uint32_t clock) {
  if (view.base->clock()[agent] >= clock) return;
  if (last.lesson.source.get() != view.base.get() || last.lesson.agent != agent || last.lesson.clock != clock) {
    SnapshotRef result = clone(view.base);
    result->clock()[agent] = clock;
    last.lesson = {view.base, result, agent, clock};
  }
  view.base = last.lesson.result;
}

void fence_proxy(View& view) {
  if (last.fence.source.get() != view.base.get()) {
    SnapshotRef result = clone(view.base);
    std::memcpy(result->fenced(), result->clock(), Snapshot::agents * sizeof(uint32_t));
    result->has_fences = true;
    last.fence = {view.base, result};
  }
  view.base = last.fence.result;
  view.self.fenced = view.self.clock;
  view.copies.fenced = view.copies.clock;
}

Snapshot* Released::own() {
  if (!sum_) {
    sum_ = zero_snapshot();
  } else if (sum_->references > 1) {
    sum_ = clone(sum_);
  }
  return sum_.get();
}

bool Released::has_added(const SnapshotRef& base) const {
  return std::any_of(std::begin(added_), std::end(added_),
                     [&](const auto& added) { return added.get() == base.get(); });
}

void Released::add(const View& view) {
  if (!sum_ || !has_added(view.base)) {
    if (sum_) {
      join_into(own(), view.base.get());
    } else {
      sum_ = clone(view.base);
    }
    added_[next_added_++ % std::size(added_)] = view.base;
  }
  Snapshot* sum = own();
  raise_to(sum->clock()[view.agent], view.self.clock);
  raise_to(sum->clock()[view.copies_agent], view.copies.clock);
  set_fence(sum, view.agent, view.self.fenced);
  set_fence(sum, view.copies_agent, view.copies.fenced);
}

void Released::add(uint32_t agent, uint32_t clock) {
  raise_to(own()->clock()[agent], clock);
}

void Released::add(const SnapshotRef& snapshot) {
  if (snapshot) join_into(own(), snapshot.get());
}

SnapshotRef Released::take() {
  for (SnapshotRef& added : added_) added = {};
  return std::exchange(sum_, {});
}

}  // namespace simt
