#pragma once
// The arena that kernels address: windows of shared memory, one per resident block, then global memory.
#include <cstddef>
#include <cstdint>
#include <string>

#include "simt/executor.h"

namespace simt {

struct Block;

// A window holds the shared memory of a block at its end, so that inaccessible pages follow.
constexpr size_t kWindowBytes = size_t{256} << 10, kWindowStride = 2 * kWindowBytes;
constexpr size_t kWindows = 1024;
constexpr size_t kSharedBytes = kWindows * kWindowStride;
constexpr size_t kGlobalBytes = size_t{8} << 30;
constexpr size_t kArenaBytes = kSharedBytes + kGlobalBytes;

extern uint8_t* arena;  // null before the first launch or allocation
void map_arena();

inline size_t arena_offset(const void* pointer) {
  return static_cast<const uint8_t*>(pointer) - arena;
}
inline bool in_arena(const void* pointer) {
  return arena_offset(pointer) < kArenaBytes;
}
inline bool in_global_memory(const void* pointer) {
  return arena_offset(pointer) - kSharedBytes < kGlobalBytes;
}

// ---- shared memory of blocks ----
uint8_t* shared_window(uint32_t window);  // start of the block's memory, poisoned
void check_shared_slack(const Block&);    // a fault where a block wrote past the end of its memory

// Addresses in the shared window of a cluster: (rank + 1) << 24 | offset, for the running thread.
constexpr uint32_t kOffsetMask = 0xffffff;
inline uint32_t address_rank(uint32_t address) {
  return (address >> 24) - 1;
}
inline uint32_t make_address(uint32_t rank, uint32_t offset) {
  return (rank + 1) << 24 | offset;
}
Block& addressed_block(uint32_t address, Source);
uint8_t* resolve(uint32_t address, size_t bytes, Source);
uint8_t* resolve_aligned(uint32_t address, size_t bytes, Source);  // to `bytes`, a power of two

// ---- global memory ----
struct Allocation {
  uint8_t* begin;
  size_t bytes;
};
const Allocation* find_allocation(const void* pointer);  // whose pages, or guard page after them, hold it; or null
std::string check_global_slack();                        // a message where bytes beside an allocation were written

}  // namespace simt
