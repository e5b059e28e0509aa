#include "simt/barrier.h"

#include "simt/fault.h"
#include "simt/race.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

// The last arrival releases the others and goes on itself.
void complete(Barrier& barrier) {
  ++stats().barriers;
  const SnapshotRef knowledge = barrier.released.take();
  for (Thread* thread : barrier.waiting) {
    acquire_view(*thread, knowledge);
    thread->barrier_count = barrier.predicates;
    wake(thread);
  }
  acquire_view(*machine.running, knowledge);
  machine.running->barrier_count = barrier.predicates;
  barrier.waiting.clear();
  barrier.arrived = barrier.expected = 0;
}

void arrive(Barrier& barrier, int id, uint32_t expected, bool predicate, bool wait, const char* name, Source where) {
  if (!barrier.arrived) {
    barrier.expected = expected;
    barrier.predicates = 0;
  } else if (barrier.expected != expected) {
    fault(where, "%s: barrier %d with a count of %u, but others came with %u", name, id, expected, barrier.expected);
  }
  release_view(barrier.released);
  ++barrier.arrived;
  barrier.predicates += predicate;
  if (barrier.arrived == barrier.expected) {
    complete(barrier);
    if (wait) maybe_reschedule();
  } else if (wait) {
    barrier.waiting.push_back(machine.running);
    block(name, where, &barrier);
  }
}

void arrive(PhaseBarrier& barrier) {
  release_view(barrier.released);
  ++barrier.arrived;
}

void complete_if_full(PhaseBarrier& barrier) {
  if (!barrier.arrived || barrier.arrived != barrier.live) return;
  ++stats().barriers;
  ++barrier.phase;
  barrier.arrived = 0;
  barrier.completed = barrier.released.take();
  for (Thread* thread : barrier.waiting) wake(thread);
  barrier.waiting.clear();
}

void wait_for_phase(PhaseBarrier& barrier, uint64_t ticket, const char* name, Source where) {
  while (barrier.phase < ticket) {
    barrier.waiting.push_back(machine.running);
    block(name, where, &barrier);
  }
  acquire_view(*machine.running, barrier.completed);
  maybe_reschedule();
}

}  // namespace

VoteCount syncthreads(bool predicate, Source where) {
  Thread& thread = *machine.running;
  Block& block = *thread.block;
  const uint32_t threads = machine.block_threads;
  if (block.live < threads) {
    fault(where, "__syncthreads, but %u threads of the block have exited", threads - block.live);
  }
  arrive(block.barriers[0], 0, threads, predicate, true, "__syncthreads", where);
  const int count = thread.barrier_count;
  return {count, count != 0, count == static_cast<int>(threads)};
}

void named_barrier(int id, int threads, bool wait, Source where) {
  const char* name = wait ? "bar.sync" : "bar.arrive";
  if (id < 0 || id >= kNamedBarriers) fault(where, "%s: there is no barrier %d", name, id);
  const int most = static_cast<int>((machine.block_threads + kWarp - 1) / kWarp * kWarp);
  if (threads <= 0 || threads % static_cast<int>(kWarp) || threads > most) {
    fault(where, "%s: a count of %d, expected a multiple of 32 up to %d", name, threads, most);
  }
  arrive(machine.running->block->barriers[id], id, static_cast<uint32_t>(threads), false, wait, name, where);
}

uint32_t cluster_rank() {
  return machine.running->block->rank;
}
uint32_t cluster_size() {
  return machine.cluster_blocks;
}

void cluster_arrive(Source where) {
  require_capability(90, "barrier.cluster", where);
  Thread& thread = *machine.running;
  PhaseBarrier& barrier = thread.block->domain->clusters[thread.block->cluster];
  if (thread.cluster_ticket) fault(where, "barrier.cluster.arrive twice without a wait");
  thread.cluster_ticket = barrier.phase + 1;
  arrive(barrier);
  complete_if_full(barrier);
}

void cluster_wait(Source where) {
  Thread& thread = *machine.running;
  if (!thread.cluster_ticket) fault(where, "barrier.cluster.wait without an arrive");
  wait_for_phase(thread.block->domain->clusters[thread.block->cluster], thread.cluster_ticket, kClusterWait, where);
  thread.cluster_ticket = 0;
}

void grid_sync(Source where) {
  if (!machine.config.cooperative) fault(where, "grid sync in a launch that is not cooperative");
  PhaseBarrier& barrier = machine.running->block->domain->grid;
  const uint64_t ticket = barrier.phase + 1;
  arrive(barrier);
  complete_if_full(barrier);
  wait_for_phase(barrier, ticket, kGridWait, where);
}

void on_exit_barriers(Thread& thread) {
  Domain& domain = *thread.block->domain;
  for (PhaseBarrier* barrier : {&domain.clusters[thread.block->cluster], &domain.grid}) {
    --barrier->live;
    complete_if_full(*barrier);
  }
}

}  // namespace simt
