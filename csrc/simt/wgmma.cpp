#include "simt/wgmma.h"

#include <algorithm>
#include <cstring>

#include "simt/element.h"
#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/race.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr int kRows = 64, kDepth = 16, kMostColumns = 256;

// ---- operands in shared memory ----

// A matrix descriptor. Operands are made of chunks of 16 bytes: eight elements along the contiguous dimension, which is
// k, or rows (columns of B) where the operand is transposed.
struct Layout {
  uint32_t start, leading, stride;  // bytes
  uint32_t chunks;                  // across a swizzle atom
  int swizzle_bits;

  Layout(uint64_t descriptor, bool transposed, Source where) {
    start = (descriptor & 0x3fff) << 4;
    leading = (descriptor >> 16 & 0x3fff) << 4;
    stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 49 & 7) fault(where, "wgmma: a descriptor with a base offset is not modelled");
    const auto mode = static_cast<int>(descriptor >> 62);  // 0 none, 1 128B, 2 64B, 3 32B
    swizzle_bits = mode ? 4 - mode : 0;
    chunks = 1u << swizzle_bits;
    if (swizzle_bits) check_start(transposed, where);
  }

  // The pattern of a swizzle repeats after eight rows. A start inside of it needs a base offset; one inside of its
  // first row is a step of k.
  void check_start(bool transposed, Source where) const {
    const uint32_t row = 16 * chunks, within = start % (8 * row);
    if (within < (transposed ? 1 : row)) return;
    fault(where,
          "wgmma: a descriptor starts at shared +0x%x, %u bytes into the pattern of its %u-byte swizzle, and has "
          "no base offset",
          start, within, row);
  }

  uint32_t chunk(bool transposed, int row, int k) const {
    uint32_t address = start;
    if (!transposed) {
      address += row % 8 * chunks * 16 + row / 8 * stride + (swizzle_bits ? k / 8 * 16 : k / 8 * leading);
    } else {
      const uint32_t across = row / 8;
      address += k % 8 * chunks * 16;
      address += swizzle_bits ? across % chunks * 16 + across / chunks * leading + k / 8 * stride
                              : across * stride + k / 8 * leading;
    }
    return swizzled(address, swizzle_bits);
  }
};

// Calls visit(pointer to eight elements, row, k) for each chunk of rows x 16 elements.
template <class Visit>
void for_each_chunk(uint64_t descriptor, bool transposed, int rows, const Block& block, Source where, Visit visit) {
  const Layout layout(descriptor, transposed, where);
  const int row_step = transposed ? 8 : 1, k_step = transposed ? 1 : 8;
  for (int row = 0; row < rows; row += row_step) {
    for (int k = 0; k < kDepth; k += k_step) {
      const uint32_t address = layout.chunk(transposed, row, k);
      if (address + 16 > machine.config.shared_bytes) {
        fault(where, "OUT OF BOUNDS wgmma: its descriptor reaches shared +0x%x of %zu bytes", address,
              machine.config.shared_bytes);
      }
      visit(block.shared + address, row, k);
    }
  }
}

// Element (row, k) of an operand goes to out[row * row_stride + k * k_stride].
template <Element kElement>
void fetch(uint64_t descriptor, bool transposed, int rows, const Block& block, Source where, float* out, int row_stride,
           int k_stride) {
  const int step = transposed ? row_stride : k_stride;
  for_each_chunk(descriptor, transposed, rows, block, where, [&](const uint8_t* chunk, int row, int k) {
    uint16_t element[8];
    std::memcpy(element, chunk, sizeof element);
    float* to = out + row * row_stride + k * k_stride;
    for (int i = 0; i < 8; ++i) to[i * step] = half_value<kElement>(element[i]);
  });
}

// ---- operands and accumulators in registers ----

int fragment_row(int thread) {
  return thread / 32 * 16 + thread % 32 / 4;
}

template <Element kElement>
void fetch_registers(const std::vector<uint32_t>& registers, float* a) {
  for (int thread = 0; thread < 128; ++thread) {
    for (int r = 0; r < 4; ++r) {
      const uint32_t pair = registers[4 * thread + r];
      float* to = a + (fragment_row(thread) + 8 * (r & 1)) * kDepth + 2 * (thread % 4) + 8 * (r >> 1);
      to[0] = half_value<kElement>(pair);
      to[1] = half_value<kElement>(pair >> 16);
    }
  }
}

// The place in a 64 x n accumulator of a thread's register.
int accumulator_index(int thread, int index, int n) {
  const int row = fragment_row(thread) + 8 * (index >> 1 & 1);
  const int column = index / 4 * 8 + 2 * (thread % 4) + (index & 1);
  return row * n + column;
}

// What the registers of an accumulator hold while it is in flight: a signalling NaN, of which any arithmetic makes a
// quiet one.
constexpr uint32_t kInFlight = 0x7fa0dead;

void take_registers(Accumulator& accumulator) {
  for (int thread = 0; thread < 128; ++thread) {
    float* registers = accumulator.registers[thread];
    for (int i = 0; i < accumulator.n / 2; ++i) {
      accumulator.values[accumulator_index(thread, i, accumulator.n)] = registers[i];
      registers[i] = float_from_bits(kInFlight);
    }
  }
}

void give_back_registers(const Accumulator& accumulator, int thread, Source where) {
  for (int i = 0; i < accumulator.n / 2; ++i) {
    float& target = accumulator.registers[thread][i];
    if (bits_of(target) != kInFlight) {
      fault(where,
            "wgmma: register %d of an accumulator was written before this wait, while the product at %s was in "
            "flight",
            i, line_of(accumulator.where).c_str());
    }
    target = accumulator.values[accumulator_index(thread, i, accumulator.n)];
  }
}

void check_fragments(const Fragments& fragments, uint32_t thread, Source where) {
  for (int i = 0; i < 4; ++i) {
    if (*fragments.registers[thread][i] == fragments.values[thread][i]) continue;
    fault(where,
          "wgmma: register %d of A was changed before this wait, or its array left its scope, while the product "
          "at %s was in flight",
          i, line_of(fragments.where).c_str());
  }
}

// ---- execution ----

template <Element kElement>
void multiply(const WgmmaOperation& operation, const Block& block) {
  static float a[kRows * kDepth], b[kDepth * kMostColumns];
  const int n = operation.n;
  if (operation.a.empty()) {
    fetch<kElement>(operation.a_descriptor, operation.a_transposed, kRows, block, operation.where, a, kDepth, 1);
  } else {
    fetch_registers<kElement>(operation.a, a);
  }
  fetch<kElement>(operation.b_descriptor, operation.b_transposed, n, block, operation.where, b, 1, n);
  for (int row = 0; row < kRows; ++row) {
    float* d = &operation.accumulator->values[row * n];
    if (!operation.accumulate) std::fill(d, d + n, 0.0f);
    for (int k = 0; k < kDepth; ++k) {
      const float scale = a[row * kDepth + k];
      const float* columns = b + k * n;
      for (int column = 0; column < n; ++column) d[column] += scale * columns[column];
    }
  }
}

void execute_next(Warpgroup& group, const Block& block) {
  const WgmmaOperation& operation = group.pending.front();
  if (operation.element == Element::bf16) {
    multiply<Element::bf16>(operation, block);
  } else {
    multiply<Element::f16>(operation, block);
  }
  ++stats().wgmma;
  ++group.executed;
  group.pending.pop_front();
}

// ---- issue ----

bool is_in_flight(const Warpgroup& group, const float* registers, uint32_t thread) {
  return std::any_of(group.accumulators.begin(), group.accumulators.end(), [&](const Accumulator& accumulator) {
    return accumulator.registers[thread] == registers && !accumulator.copied[thread];
  });
}

// What each thread of the warpgroup brings.
struct Argument {
  float* d;
  const uint32_t* const* a;
  uint64_t a_descriptor, b_descriptor;
  bool accumulate;
};

const Argument& argument_of(const Thread* thread) {
  return *static_cast<Argument*>(thread->argument);
}

Accumulator* accumulator_for(Warpgroup& group, const WgmmaOperation& operation) {
  for (Accumulator& accumulator : group.accumulators) {
    if (accumulator.registers[0] != argument_of(group.threads[0]).d) continue;
    if (accumulator.copied.any()) {
      fault(operation.where, "wgmma: only a part of the warpgroup has waited for this accumulator");
    }
    if (accumulator.n != operation.n) fault(operation.where, "wgmma: an accumulator in flight has another N");
    return &accumulator;
  }
  Accumulator& accumulator = group.accumulators.emplace_back();
  accumulator.n = operation.n;
  accumulator.values.resize(static_cast<size_t>(kRows) * operation.n);
  for (int i = 0; i < 128; ++i) accumulator.registers[i] = argument_of(group.threads[i]).d;
  take_registers(accumulator);
  return &accumulator;
}

// The unit reads on behalf of all four warps: what it needs to know is what all of their threads know.
void record_reads(const Warpgroup& group, const WgmmaOperation& operation) {
  const Thread& thread = *machine.running;
  View view;
  view.agent = view.copies_agent = ~0u;
  view.base = thread.view.base;
  for (const Thread* other : group.threads) view.base = met(view.base, other->view.base);
  const Actor unit{view, wgmma_agent(thread), group.issued, true};
  const Site site = site_of(operation.where);
  const auto read = [&](const uint8_t* chunk, int, int) { record(chunk, 16, Access::read, unit, site); };
  const Block& block = *thread.block;
  if (operation.a.empty()) {
    for_each_chunk(operation.a_descriptor, operation.a_transposed, kRows, block, operation.where, read);
  }
  for_each_chunk(operation.b_descriptor, operation.b_transposed, operation.n, block, operation.where, read);
}

void take_fragments(Warpgroup& group, WgmmaOperation& operation) {
  Fragments& fragments = group.fragments.emplace_back(Fragments{group.issued, operation.where, {}, {}});
  for (uint32_t thread = 0; thread < kWarpgroup; ++thread) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t* from = argument_of(group.threads[thread]).a[i];
      fragments.registers[thread][i] = from;
      fragments.values[thread][i] = *from;
      operation.a.push_back(*from);
    }
  }
}

void issue(Warpgroup& group, WgmmaOperation operation) {
  for (const Thread* thread : group.threads) {
    const Argument& other = argument_of(thread);
    if (other.a_descriptor != operation.a_descriptor || other.b_descriptor != operation.b_descriptor ||
        other.accumulate != operation.accumulate) {
      fault(operation.where, "wgmma: descriptors or scale differ between threads of the warpgroup");
    }
  }
  operation.accumulator = accumulator_for(group, operation);
  operation.accumulator->last_operation = ++group.issued;
  operation.accumulator->where = operation.where;
  if (argument_of(machine.running).a) take_fragments(group, operation);
  if (machine.races) record_reads(group, operation);
  group.pending.push_back(std::move(operation));
  const bool at_once =
      machine.landing == Landing::early || (machine.landing == Landing::random && machine.random.coin());
  while (at_once && !group.pending.empty()) execute_next(group, *machine.running->block);
}

// The thread has waited for these operations: what they wrote is in its registers, and what they read was still there.
void return_registers(Warpgroup& group, uint32_t member, uint32_t complete, Source where) {
  for (Accumulator& accumulator : group.accumulators) {
    if (accumulator.last_operation > complete || accumulator.copied[member]) continue;
    give_back_registers(accumulator, static_cast<int>(member), where);
    accumulator.copied.set(member);
    group.fences[member].given_back.push_back(accumulator.registers[member]);
  }
  group.accumulators.remove_if([](const Accumulator& accumulator) { return accumulator.copied.all(); });
  for (Fragments& fragments : group.fragments) {
    if (fragments.operation <= group.waited[member] || fragments.operation > complete) continue;
    check_fragments(fragments, member, where);
    ++fragments.waited;
  }
  while (!group.fragments.empty() && group.fragments.front().waited == kWarpgroup) group.fragments.pop_front();
  group.waited[member] = complete;
}

// ---- wgmma.fence ----

// Whether the thread's registers are as they were at its last fence. A product that does not accumulate may find
// anything in d.
void check_fence(const Fence& fence, int n, const Argument& argument, bool in_flight, Source where) {
  const auto& [d, a, a_descriptor, b_descriptor, accumulate] = argument;
  const auto& given_back = fence.given_back;
  if (!in_flight && (!fence.executed || std::find(given_back.begin(), given_back.end(), d) != given_back.end())) {
    fault(where, "wgmma.mma_async without a wgmma.fence after other accesses of its registers");
  }
  if (!in_flight && accumulate && !fence.unchanged(d, n / 2 * sizeof *d)) {
    fault(where, "wgmma.mma_async: its accumulator was changed after the last wgmma.fence");
  }
  for (int i = 0; a && i < 4; ++i) {
    if (!fence.unchanged(a[i], sizeof *a[i])) {
      fault(where, "wgmma.mma_async: register %d of A was changed after the last wgmma.fence", i);
    }
  }
}

}  // namespace

bool Fence::unchanged(const void* registers, size_t bytes) const {
  const size_t offset = static_cast<const uint8_t*>(registers) - begin;
  return offset >= stack.size() || bytes > stack.size() - offset || !std::memcmp(&stack[offset], registers, bytes);
}

void wgmma(Element element, int n, float* d, const uint32_t* const* a, uint64_t a_descriptor, uint64_t b_descriptor,
           bool a_transposed, bool b_transposed, bool accumulate, Source where) {
  if (element == Element::tf32) fault(where, "wgmma of tf32 is not modelled");
  if (n % 8 || n < 8 || n > kMostColumns) fault(where, "wgmma: N is %d", n);
  Thread& thread = *machine.running;
  Warpgroup& group = warpgroup_of(thread, "wgmma.mma_async", where);
  const uint32_t member = thread.rank % kWarpgroup;
  Argument argument{d, a, a_descriptor, b_descriptor, accumulate};
  check_fence(group.fences[member], n, argument, is_in_flight(group, d, member), where);
  if (group.arrived && (group.where.line != where.line || group.where.file != where.file)) {
    fault(where, "DIVERGENT warpgroup: other threads wait at %s, this one calls wgmma", line_of(group.where).c_str());
  }
  thread.argument = &argument;
  group.where = where;
  group.threads[member] = &thread;
  if (++group.arrived < kWarpgroup) {
    block("wgmma.mma_async", where);
    return;
  }
  group.arrived = 0;
  issue(group, {element, n, a_descriptor, b_descriptor, a_transposed, b_transposed, accumulate, where, {}, nullptr});
  for (Thread* other : group.threads) {
    if (other != &thread) wake(other);
  }
}

// The registers of a thread are arrays on its stack, whatever they are called: a copy of it has them all.
void wgmma_fence(Source where) {
  const Thread& thread = *machine.running;
  const uint32_t member = thread.rank % kWarpgroup;
  Warpgroup& group = warpgroup_of(thread, "wgmma.fence", where);
  group.aligned.pass(member, "wgmma.fence", 0, where);
  Fence& fence = group.fences[member];
  fence.executed = true;
  fence.given_back.clear();
  fence.begin = static_cast<const uint8_t*>(__builtin_frame_address(0));
  fence.stack.assign(fence.begin, stack_end(thread.stack));
}

void wgmma_commit(Source where) {
  Thread& thread = *machine.running;
  Warpgroup& group = warpgroup_of(thread, "wgmma.commit_group", where);
  group.aligned.pass(thread.rank % kWarpgroup, "wgmma.commit_group", 0, where);
  thread.wgmma_groups.push_back(group.issued);
}

void wgmma_wait(int groups, Source where) {
  constexpr int kMostGroups = 7;
  if (groups < 0 || groups > kMostGroups) fault(where, "wgmma.wait_group: %d groups, expected 0 to 7", groups);
  maybe_reschedule();
  Thread& thread = *machine.running;
  const uint32_t member = thread.rank % kWarpgroup;
  Warpgroup& group = warpgroup_of(thread, "wgmma.wait_group", where);
  group.aligned.pass(member, "wgmma.wait_group", groups, where);
  std::vector<uint32_t>& committed = thread.wgmma_groups;
  if (committed.size() <= static_cast<size_t>(groups)) return;
  const auto last = committed.end() - groups - 1;
  const uint32_t complete = *last;
  committed.erase(committed.begin(), last + 1);
  while (group.executed < complete) execute_next(group, *thread.block);
  if (machine.races) learn(thread.view, wgmma_agent(thread), complete);
  return_registers(group, member, complete, where);
}

void finish_wgmma(const Thread& thread) {
  const std::vector<Warpgroup>& groups = thread.block->warpgroups;
  if (groups.empty()) return;
  const Warpgroup& group = groups[thread.rank / kWarpgroup];
  const uint32_t member = thread.rank % kWarpgroup;
  if (!thread.wgmma_groups.empty() || group.waited[member] != group.issued) {
    fault({}, "a thread exits with wgmma operations that it has not waited for");
  }
}

}  // namespace simt
