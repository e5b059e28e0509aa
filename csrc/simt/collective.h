#pragma once
// Instructions that the lanes of a warp execute together: the last lane to come does the work for all of them.
#include <algorithm>
#include <iterator>

#include "simt/fault.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {

// All lanes of the running thread's warp that the launch has.
inline uint32_t full_mask() {
  const uint32_t threads = machine.block_threads - machine.running->rank / kWarp * kWarp;
  return threads >= kWarp ? ~0u : (1u << threads) - 1;
}

template <class Visit>
void for_each_lane(uint32_t mask, Visit visit) {
  for (; mask; mask &= mask - 1) visit(__builtin_ctz(mask));
}

// The rendezvous of this mask, or a free one.
inline Rendezvous& join_rendezvous(int kind, uint32_t mask, const char* name, Source where) {
  const Thread& thread = *machine.running;
  Warp& warp = *thread.warp;
  if (!(mask >> thread.lane & 1)) fault(where, "%s: the mask 0x%x lacks the calling lane", name, mask);
  Rendezvous* chosen = nullptr;
  for (Rendezvous& rendezvous : warp.rendezvous) {
    if (!rendezvous.arrived) {
      if (!chosen) chosen = &rendezvous;
    } else if (rendezvous.mask == mask) {
      chosen = &rendezvous;
      break;
    } else if (rendezvous.mask & mask) {
      fault(where, "overlapping lanes wait with mask 0x%x at %s, this one calls %s with mask 0x%x", rendezvous.mask,
            line_of(rendezvous.where).c_str(), name, mask);
    }
  }
  if (!chosen) fault(where, "%s: more disjoint masks at a time than the executor models", name);
  if (!chosen->arrived) {
    if (mask & ~warp.live) fault(where, "%s: mask 0x%x names lanes that have exited or never were", name, mask);
    chosen->kind = kind;
    chosen->mask = mask;
    chosen->where = where;
  } else if (chosen->kind != kind || chosen->where.line != where.line || chosen->where.file != where.file) {
    fault(where, "DIVERGENT warp: other lanes wait at %s, this one calls %s", line_of(chosen->where).c_str(), name);
  }
  return *chosen;
}

// `work` is called with an array of the lanes' threads, whose `argument` is what each of them passed here.
template <class Work>
void collective(int kind, uint32_t mask, void* argument, const char* name, Source where, Work work) {
  Thread* thread = machine.running;
  Rendezvous& rendezvous = join_rendezvous(kind, mask, name, where);
  thread->argument = argument;
  rendezvous.lanes[thread->lane] = thread;
  rendezvous.arrived |= 1u << thread->lane;
  if (rendezvous.arrived != mask) {
    block(name, where);
    return;
  }
  work(rendezvous.lanes);
  rendezvous.arrived = 0;
  for_each_lane(mask & ~(1u << thread->lane), [&](int lane) { wake(rendezvous.lanes[lane]); });
}

// Kinds of collectives: a number for each combination that lanes must agree on.
enum CollectiveKind {
  kSyncwarp,
  kShuffle = 16,
  kVote = 32,
  kMma = 48,
  kLdmatrix = 64,
  kStmatrix = 96,
  kMovmatrix = 128,
  kElect = 144
};

}  // namespace simt
