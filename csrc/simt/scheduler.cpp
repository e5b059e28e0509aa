#include "simt/scheduler.h"

#include <algorithm>
#include <numeric>

#include "simt/fault.h"
#include "simt/launch.h"
#include "simt/state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr uint64_t kPollLimit = 2'000'000;

// Asynchronous operations land while threads run in about one of so many choices, and always when none can.
bool time_to_land() {
  if (machine.ready.empty()) return true;
  return machine.landing != Landing::late && (machine.random.next() & 15) == 0;
}

Thread* take_ready() {
  ReadyQueue& ready = machine.ready;
  switch (machine.order) {
    case Order::fifo:
      return ready.pop_front();
    case Order::lifo:
      return ready.pop_back();
    case Order::random:
    case Order::by_seed:
      return ready.pop(machine.random.below(ready.size()));
  }
  __builtin_unreachable();
}

Thread* next_thread() {
  do {
    if (__builtin_expect(machine.operations_in_flight != 0, 0) && time_to_land()) land_any_operation();
  } while (machine.ready.empty() && machine.operations_in_flight);
  return machine.ready.empty() ? nullptr : take_ready();
}

void make_running(Thread* thread) {
  if (!machine.running || machine.running->block != thread->block) blockIdx = thread->block->index;
  threadIdx = thread->index;
  machine.running = thread;
}

void switch_to_next() {
  Thread* previous = machine.running;
  Thread* next = next_thread();
  if (next == previous) return;
  ++stats().switches;
  if (!next) {
    machine.running = nullptr;
    switch_context(&previous->context, machine.main_context);
    return;
  }
  make_running(next);
  switch_context(&previous->context, next->context);
}

}  // namespace

void leave_for_main() {
  void* abandoned;
  machine.running = nullptr;
  switch_context(&abandoned, machine.main_context);
  __builtin_unreachable();
}

void block(const char* what, Source where, const void* object, uint32_t detail) {
  machine.running->wait = {what, where, object, detail};
  switch_to_next();
}

void wake(Thread* thread) {
  machine.polls = 0;
  machine.ready.push_back(thread);
}

void reschedule() {
  if (machine.order == Order::lifo) {
    machine.ready.push_front(machine.running);
  } else {
    machine.ready.push_back(machine.running);
  }
  switch_to_next();
}

void maybe_reschedule() {
  if (machine.shuffled && machine.random.coin()) reschedule();
}

void preempt() {
  static int64_t accesses_until_switch = 1;
  const int period = options().preempt;
  if (period <= 0 || --accesses_until_switch > 0) return;
  accesses_until_switch = 1 + machine.random.below(2 * static_cast<size_t>(period));
  reschedule();
}

void poll(Source where) {
  if (++machine.polls > kPollLimit) {
    fault(where, "LIVELOCK: %llu polls without progress", static_cast<unsigned long long>(kPollLimit));
  }
  reschedule();
}

void yield() {
  poll({});
}
void check_live(Source where) {
  poll(where);
}

void resume_threads() {
  make_running(take_ready());
  switch_context(&machine.main_context, machine.running->context);
  machine.running = nullptr;
}

void thread_entry() {
  try {
    (*machine.body)();
  } catch (const std::exception& error) {
    record_fault(0, "a C++ exception left the kernel: %s", error.what());
  } catch (...) {
    record_fault(0, "a C++ exception left the kernel");
  }
  if (fault_pending()) leave_for_main();
  if (finish_thread(*machine.running)) leave_for_main();
  switch_to_next();
  __builtin_unreachable();
}

void shuffle_ready(size_t from) {
  if (!machine.shuffled) return;
  ReadyQueue& ready = machine.ready;
  const size_t count = ready.size() - from;
  const size_t group_sizes[] = {1, kWarp, machine.block_threads};
  const size_t group = group_sizes[machine.random.below(3)];
  std::vector<uint64_t> key(count / group + 1);
  for (uint64_t& k : key) k = machine.random.next();
  std::vector<Thread*> threads(count);
  for (size_t i = 0; i < count; ++i) threads[i] = ready[from + i];
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return key[a / group] < key[b / group]; });
  for (size_t i = 0; i < count; ++i) ready[from + i] = threads[order[i]];
}

}  // namespace simt
