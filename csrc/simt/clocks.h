#pragma once
// Vector clocks of the race detector. An agent is whoever can access memory on its own: a thread, the cp.async copies
// of a thread, a slot of the bulk-copy engine, a warpgroup's wgmma unit. A Snapshot is an immutable, shared vector
// clock, so that the threads which leave a barrier together hold one snapshot and not a copy each.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace simt {

// clock[a]: accesses of agent a up to this clock happened before. fenced[a]: and a proxy fence stood in between.
struct Snapshot {
  uint32_t references;
  bool has_fences;  // otherwise fenced is all zero

  uint32_t* clock() { return reinterpret_cast<uint32_t*>(this + 1); }
  uint32_t* fenced() { return clock() + agents; }

  static uint32_t agents;  // of the running launch
};

void begin_clocks(uint32_t agents);  // no snapshot of an earlier launch may be in use any more
Snapshot* new_snapshot();            // uninitialised contents
void recycle(Snapshot*);

class SnapshotRef {
 public:
  SnapshotRef() = default;
  explicit SnapshotRef(Snapshot* adopted) : snapshot_(adopted) {}
  SnapshotRef(const SnapshotRef& other) : snapshot_(other.snapshot_) {
    if (snapshot_) ++snapshot_->references;
  }
  SnapshotRef(SnapshotRef&& other) noexcept : snapshot_(std::exchange(other.snapshot_, nullptr)) {}
  SnapshotRef& operator=(SnapshotRef other) noexcept {
    std::swap(snapshot_, other.snapshot_);
    return *this;
  }
  ~SnapshotRef() {
    if (snapshot_ && --snapshot_->references == 0) recycle(snapshot_);
  }

  Snapshot* get() const { return snapshot_; }
  Snapshot* operator->() const { return snapshot_; }
  explicit operator bool() const { return snapshot_ != nullptr; }

 private:
  Snapshot* snapshot_ = nullptr;
};

SnapshotRef zero_snapshot();
SnapshotRef clone(const SnapshotRef&);
void join_into(Snapshot* target, Snapshot* source);
SnapshotRef joined(const SnapshotRef&, const SnapshotRef&);
SnapshotRef met(const SnapshotRef&, const SnapshotRef&);  // what both know

// The vector clock of one thread: a snapshot, with newer entries for the thread itself and for its own copies.
struct View {
  struct Own {
    uint32_t clock = 0, fenced = 0;
  };
  SnapshotRef base;
  uint32_t agent = 0, copies_agent = 0;
  Own self, copies;

  uint32_t seen(uint32_t of) const {
    if (of == agent) return self.clock;
    if (of == copies_agent) return std::max(copies.clock, base->clock()[of]);  // an mbarrier may know of more
    return base->clock()[of];
  }
  uint32_t seen_fenced(uint32_t of) const {
    if (of == agent) return self.fenced;
    const uint32_t fence = base->has_fences ? base->fenced()[of] : 0;
    return of == copies_agent ? std::max(copies.fenced, fence) : fence;
  }
};

void acquire_into(View&, const SnapshotRef&);
void learn(View&, uint32_t agent, uint32_t clock);  // one agent's accesses up to this clock are complete
void fence_proxy(View&);

// The clocks that were released to a synchronisation object and that nobody has acquired yet.
class Released {
 public:
  void add(const View&);
  void add(uint32_t agent, uint32_t clock);
  void add(const SnapshotRef&);
  SnapshotRef take();  // empties it
  const SnapshotRef& peek() const { return sum_; }

 private:
  bool has_added(const SnapshotRef&) const;
  Snapshot* own();  // writable
  SnapshotRef sum_;
  SnapshotRef added_[4];  // bases of views added last, usually the next one's as well
  uint32_t next_added_ = 0;
};

}  // namespace simt
