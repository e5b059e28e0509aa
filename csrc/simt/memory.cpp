#include "simt/memory.h"

#include <sys/mman.h>

#include <cstring>
#include <stdexcept>
#include <vector>

#include "simt/fault.h"
#include "simt/fiber.h"
#include "simt/race.h"
#include "simt/state.h"

namespace simt {

uint8_t* arena = nullptr;

namespace {

constexpr uint8_t kPoison = 0xFF;   // NaN as any floating-point type
constexpr size_t kAlignment = 256;  // as cudaMalloc
constexpr size_t kSharedAlignment = 1024;
constexpr size_t kKeptResident = size_t{64} << 20;  // global memory and its shadow above this go back to the system

std::vector<Allocation> allocations;  // bytes 0: released
size_t live_allocations = 0;
size_t global_end = kPage;  // the first page is a guard
uint32_t* page_owner;       // index of the allocation of each page, plus one
bool window_open[kWindows];

size_t round_up(size_t value, size_t to) {
  return (value + to - 1) / to * to;
}

uint8_t* global_memory() {
  return arena + kSharedBytes;
}

uint8_t* reserve(size_t bytes, int protection) {
  void* memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("simt: cannot reserve address space");
  return static_cast<uint8_t*>(memory);
}

void protect(uint8_t* memory, size_t bytes, int protection) {
  if (mprotect(memory, bytes, protection)) throw std::runtime_error("simt: cannot change the protection of memory");
}

struct Pages {
  uint8_t* begin;
  size_t bytes;
};

Pages pages_of(const Allocation& allocation) {
  const size_t lead = reinterpret_cast<uintptr_t>(allocation.begin) % kPage;
  return {allocation.begin - lead, round_up(lead + allocation.bytes, kPage)};
}

void give_back_memory() {
  if (global_end > kKeptResident) {
    madvise(global_memory(), global_end, MADV_DONTNEED);
    forget_shadow(global_memory(), global_end);
  }
  allocations.clear();
  global_end = kPage;
}

void release(Allocation& allocation) {
  const Pages pages = pages_of(allocation);
  protect(pages.begin, pages.bytes, PROT_NONE);
  allocation.bytes = 0;
  if (--live_allocations == 0) give_back_memory();
}

const uint8_t* first_unpoisoned(const uint8_t* begin, const uint8_t* end) {
  for (; begin != end; ++begin) {
    if (*begin != kPoison) return begin;
  }
  return nullptr;
}

}  // namespace

void map_arena() {
  if (arena) return;
  page_owner = reinterpret_cast<uint32_t*>(reserve(kGlobalBytes / kPage * sizeof *page_owner, PROT_READ | PROT_WRITE));
  map_shadow();
  arena = reserve(kArenaBytes, PROT_NONE);
}

// ---- global memory ----

void* allocate(size_t bytes) {
  const auto lock = hold();
  map_arena();
  // The end of the last page is as close to the end of the allocation as its alignment allows.
  const size_t used = round_up(bytes ? bytes : 1, kAlignment), pages = round_up(used, kPage);
  if (pages + kPage > kGlobalBytes - global_end) throw std::runtime_error("simt: out of global memory");
  uint8_t* first_page = global_memory() + global_end;
  protect(first_page, pages, PROT_READ | PROT_WRITE);
  std::memset(first_page, kPoison, pages);
  allocations.push_back({first_page + pages - used, bytes ? bytes : 1});
  ++live_allocations;
  for (size_t page = 0; page <= pages / kPage; ++page) {  // and the guard that follows, for reports
    page_owner[global_end / kPage + page] = static_cast<uint32_t>(allocations.size());
  }
  global_end += pages + kPage;
  mark_unwritten(allocations.back().begin, used);
  return allocations.back().begin;
}

const Allocation* find_allocation(const void* pointer) {
  const size_t offset = arena_offset(pointer) - kSharedBytes;
  if (offset >= global_end) return nullptr;
  const uint32_t owner = page_owner[offset / kPage];
  if (owner == 0 || owner > allocations.size()) return nullptr;
  const Allocation& allocation = allocations[owner - 1];
  return allocation.bytes ? &allocation : nullptr;
}

void release(void* pointer) {
  const auto lock = hold();
  const Allocation* found = arena && in_global_memory(pointer) ? find_allocation(pointer) : nullptr;
  if (found && found->begin == pointer) return release(allocations[found - allocations.data()]);
  throw std::runtime_error("simt: release of a pointer that allocate did not return");
}

void release_all() {
  const auto lock = hold();
  for (size_t i = 0; i < allocations.size(); ++i) {
    if (allocations[i].bytes) release(allocations[i]);
  }
}

std::string check_global_slack() {
  std::string message;
  for (const Allocation& allocation : allocations) {
    if (!allocation.bytes) continue;
    const Pages pages = pages_of(allocation);
    uint8_t *begin = allocation.begin, *end = begin + allocation.bytes, *pages_end = pages.begin + pages.bytes;
    const size_t lead = std::min<size_t>(begin - pages.begin, kAlignment);
    const uint8_t* changed = first_unpoisoned(end, pages_end);
    if (!changed) changed = first_unpoisoned(begin - lead, begin);
    if (!changed) continue;
    message = "OUT OF BOUNDS write of global memory: byte " + std::to_string(changed - begin) +
              " of an allocation of " + std::to_string(allocation.bytes) + " bytes";
    std::memset(begin - lead, kPoison, lead);
    std::memset(end, kPoison, pages_end - end);
  }
  return message;
}

// ---- shared memory ----

uint8_t* shared_window(uint32_t window) {
  uint8_t* start = arena + window * kWindowStride;
  if (!window_open[window]) {
    protect(start, kWindowBytes, PROT_READ | PROT_WRITE);
    window_open[window] = true;
  }
  const size_t bytes = round_up(machine.config.shared_bytes, kSharedAlignment);
  uint8_t* shared = start + kWindowBytes - bytes;
  std::memset(shared, kPoison, bytes);
  return shared;
}

void check_shared_slack(const Block& block) {
  const uint8_t* end = block.shared + machine.config.shared_bytes;
  const uint8_t* changed =
      first_unpoisoned(end, block.shared + round_up(machine.config.shared_bytes, kSharedAlignment));
  if (changed) {
    fault({}, "OUT OF BOUNDS write of shared memory: byte %zu of %zu, in %s", changed - block.shared,
          machine.config.shared_bytes, block_name(block.index).c_str());
  }
}

void* shared_memory() {
  return machine.running->block->shared;
}
uint32_t shared_bytes() {
  return static_cast<uint32_t>(machine.config.shared_bytes);
}

uint32_t shared_address(const void* pointer, Source where) {
  const Block& mine = *machine.running->block;
  const Domain& domain = *mine.domain;
  const size_t window = arena_offset(pointer) / kWindowStride - domain.first_window;
  const size_t rank = window - size_t{mine.cluster} * machine.cluster_blocks;
  if (rank >= machine.cluster_blocks) fault(where, "a pointer to shared memory was expected");
  const Block& owner = domain.blocks[window];
  const ptrdiff_t offset = static_cast<const uint8_t*>(pointer) - owner.shared;
  if (offset < 0 || offset > static_cast<ptrdiff_t>(machine.config.shared_bytes)) {
    fault(where, "OUT OF BOUNDS pointer to shared memory: byte %td of %zu", offset, machine.config.shared_bytes);
  }
  return make_address(static_cast<uint32_t>(rank), static_cast<uint32_t>(offset));
}

Block& addressed_block(uint32_t address, Source where) {
  Block& mine = *machine.running->block;
  const uint32_t rank = address_rank(address);
  if (rank >= machine.cluster_blocks) fault(where, "0x%x is not an address of shared memory in this cluster", address);
  Block& block = mine.domain->blocks[mine.cluster * machine.cluster_blocks + rank];
  if (!block.live && &block != &mine) {
    fault(where, "access to the shared memory of %s, which has exited", block_name(block.index).c_str());
  }
  return block;
}

uint8_t* resolve(uint32_t address, size_t bytes, Source where) {
  const Block& block = addressed_block(address, where);
  const size_t offset = address & kOffsetMask;
  if (offset + bytes > machine.config.shared_bytes) {
    fault(where, "OUT OF BOUNDS access of shared memory: %zu bytes at %zu of %zu", bytes, offset,
          machine.config.shared_bytes);
  }
  return block.shared + offset;
}

uint8_t* resolve_aligned(uint32_t address, size_t bytes, Source where) {
  if (address & (bytes - 1)) {
    fault(where, "MISALIGNED access of %zu bytes at shared +0x%x", bytes, address & kOffsetMask);
  }
  return resolve(address, bytes, where);
}

void* generic_pointer(uint32_t address, Source where) {
  return resolve(address, 0, where);
}

}  // namespace simt
