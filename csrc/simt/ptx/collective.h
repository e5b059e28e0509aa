#pragma once
// What lanes, threads and blocks do together (PTX ISA 9.7.9.6, 9.7.13), by the executor's collectives.
#include "simt/ptx/memory.h"

namespace ptx {

inline u32 lane_id() {
  return simt::machine.running->lane;
}
inline u32 warp_id() {
  return simt::machine.running->rank / simt::kWarp;
}

inline void block_barrier(u32 number, At where) {
  if (number == 0) return static_cast<void>(simt::syncthreads(false, where));
  const u32 threads = (simt::machine.block_threads + simt::kWarp - 1) / simt::kWarp * simt::kWarp;
  simt::named_barrier(static_cast<int>(number), static_cast<int>(threads), true, where);
}

// ---- shfl: the source lane by the mode; beyond the segment that `c` describes a lane keeps its own value ----
struct Shuffled {
  u32 value;
  bool valid;
};
struct Segment {
  int lane, least, most;  // the first and the last lane that can be read
  explicit Segment(u32 c) : lane(static_cast<int>(lane_id())) {
    const int mask = c >> 8 & 31, clamp = c & 31;
    least = lane & mask;
    most = least | (clamp & ~mask);
  }
};
inline Shuffled shuffled(u32 value, const Segment& segment, int from, bool valid, u32 members, At where) {
  const int source = valid ? from : segment.lane;
  const int whole_warp = simt::kWarp;
  return {static_cast<u32>(simt::shuffle(simt::Shuffle::index, members, value, source, whole_warp, where)), valid};
}
inline Shuffled shfl_up(u32 value, u32 b, u32 c, u32 members, At where) {
  const Segment s(c);  // upwards, `most` is the lowest lane that may be read
  const int from = s.lane - static_cast<int>(b & 31);
  return shuffled(value, s, from, from >= s.most, members, where);
}
inline Shuffled shfl_down(u32 value, u32 b, u32 c, u32 members, At where) {
  const Segment s(c);
  const int from = s.lane + static_cast<int>(b & 31);
  return shuffled(value, s, from, from <= s.most, members, where);
}
inline Shuffled shfl_bfly(u32 value, u32 b, u32 c, u32 members, At where) {
  const Segment s(c);
  const int from = s.lane ^ static_cast<int>(b & 31);
  return shuffled(value, s, from, from <= s.most, members, where);
}
inline Shuffled shfl_idx(u32 value, u32 b, u32 c, u32 members, At where) {
  const Segment s(c);
  const int from = s.least | (static_cast<int>(b & 31) & ~(c >> 8 & 31));
  return shuffled(value, s, from, from <= s.most, members, where);
}

// ---- matrices of shared memory: each lane names a row of 16 bytes, of which eight lanes make a matrix ----
constexpr size_t kMatrixRow = 16;
inline void load_matrices(int matrices, bool transposed, u32* registers, u32 address, At where) {
  if (counting()) [[unlikely]]
    count_access(Traffic::load_matrix, pointer(address), kMatrixRow, where);
  simt::ldmatrix(matrices, transposed, registers, address, where);
}
inline void store_matrices(int matrices, bool transposed, const u32* registers, u32 address, At where) {
  if (counting()) [[unlikely]]
    count_access(Traffic::store_matrix, pointer(address), kMatrixRow, where);
  simt::stmatrix(matrices, transposed, registers, address, where);
}

// ---- wgmma: an accumulator that nothing is written to yet. wgmma.fence takes note of it, and of what comes after ----
template <int N>
inline void unset(f32 (&registers)[N]) {
  std::memset(registers, 0xFF, sizeof registers);
}

// What the driver gives a cooperative launch (%envreg1 and 2): a zeroed workspace of its own, in which
// cooperative_groups lets the blocks of a grid meet.
u64 grid_workspace();

}  // namespace ptx
