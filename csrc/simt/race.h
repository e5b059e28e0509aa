#pragma once
// The race detector: every access of shared and global memory is compared with the last write and the last reads of the
// same two bytes. It reports accesses that no synchronisation orders, generic-proxy writes that the async proxy reads
// without a fence, and reads of memory that nobody has written.
#include <cstddef>
#include <cstdint>
#include <string>

#include "simt/memory.h"
#include "simt/site.h"
#include "simt/state.h"

namespace simt {

// The party of an access: its identity, the time of its own clock, and the clock of what happened before.
struct Actor {
  const View& view;
  uint32_t agent, clock;
  bool async_proxy;
};

inline bool reads(Access access) {
  return access != Access::write && access != Access::atomic_store;
}
inline bool writes(Access access) {
  return access != Access::read && access != Access::atomic_load;
}
inline bool is_atomic(Access access) {
  return access > Access::write;
}

inline Actor actor_of(const Thread& thread) {
  return {thread.view, thread.agent, thread.view.self.clock, false};
}

// Out of bounds accesses are faults. Only while machine.races; memory outside the arena has no owner.
void record(const void*, size_t bytes, Access, const Actor&, Site);
// One access by the running thread.
inline void record(const void* pointer, size_t bytes, Access access, Source where) {
  if (machine.races && in_arena(pointer)) record(pointer, bytes, access, actor_of(*machine.running), site_of(where));
}

void tick(Thread&);            // after a release: later accesses are not covered by it
void release_view(Released&);  // the running thread's; ticks
void acquire_view(Thread&, const SnapshotRef&);

// ---- for launches and allocations ----
void map_shadow();
void forget_shadow(const void* global_memory, size_t bytes);
void mark_unwritten(const void* global_memory, size_t bytes);
void begin_races(uint32_t domains);
uint32_t serial_of(uint32_t domain_number);
std::string race_reports();  // of the launch, one a line; for the main context

}  // namespace simt
