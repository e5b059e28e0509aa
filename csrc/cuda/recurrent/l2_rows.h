#pragma once
// Rows that the blocks of a grid pass to each other through L2, 16 bytes at a time. A word says by its value that it is
// there: before the first step every block fills what it will write with kAbsent, then all meet once. So a trip through
// L2 brings data and flag together, and nothing is ever waited for but data.
#include "cuda/recurrent/team.h"

namespace xlstm::cuda {

constexpr uint32_t kAbsent = 0xfff1fff1;  // a NaN as bf16, f16 and f32; results that are NaN have other bits

XLSTM_DEVICE bool complete(const uint4& words) {
  return (words.x != kAbsent) & (words.y != kAbsent) & (words.z != kAbsent) & (words.w != kAbsent);  // no branches
}

// x and y to the precision of T; one NaN for all.
template <class T, class A>
XLSTM_DEVICE device::Pack<T, 2> narrow_one_nan(A x, A y) {
  if constexpr (sizeof(T) == 2) return device::narrow_two<T>(x, y);  // conversions have one
  constexpr A none = static_cast<A>(NAN);
  return device::narrow_two<T>(x == x ? x : none, y == y ? y : none);
}

template <class T>
XLSTM_DEVICE uint4 load_packet(const T* from) {
  return *reinterpret_cast<const uint4*>(from);
}

// Elements of a row in whole packets.
XLSTM_HOST_DEVICE inline int64_t padded_width(int64_t head_dim, int64_t element_bytes) {
  const int64_t packet = 16 / element_bytes;
  return (head_dim + packet - 1) / packet * packet;
}

// Of memory beside a result (B, S, parts, H, D), where its rows are not whole packets; else 0.
inline size_t l2_rows_bytes(const void* result, const RecurrentShape& shape, Type type, int parts) {
  const int64_t width = padded_width(shape.head_dim, bytes_of(type));
  if (width == shape.head_dim && reinterpret_cast<uintptr_t>(result) % 16 == 0) return 0;
  return static_cast<size_t>(shape.batch * shape.seqlen * parts * shape.num_heads * width * bytes_of(type));
}

// (B, S, kParts, H, width) of T, of one head: a result or memory beside it.
template <class T, int kParts>
class L2Rows {
 public:
  static constexpr int kPacket = 16 / sizeof(T);  // elements
  const int width;

  XLSTM_DEVICE L2Rows(void* memory, const RecurrentShape& shape, int head)
      : width(static_cast<int>(padded_width(shape.head_dim, sizeof(T)))),
        part_step(device::opaque(static_cast<uint32_t>(shape.num_heads * width / kPacket))),
        of_head(device::opaque(static_cast<uint4*>(memory) + int64_t{head} * width / kPacket)) {}

  // The packet of a unit that begins one. token: of all of the batch.
  XLSTM_DEVICE uint4* packet(uint64_t token, int part, int unit) const {
    return of_head + token * token_step() + part * part_step + unit / kPacket;
  }
  XLSTM_DEVICE uint32_t token_step() const { return kParts * part_step; }  // packets

  // All that this block writes, by all of its threads: `units` units from `first` on, of its batch rows and all tokens.
  template <int kThreads, class Rows>
  XLSTM_DEVICE void mark_absent(const Rows& rows, int tiles, int64_t seqlen, int first, int units) const {
    const int packets = (width - first < units ? width - first : units) / kPacket;
    for (int i = 0; i < tiles * kBatchTile * kParts; ++i) {
      const int tile = i / kParts / kBatchTile, row = i / kParts % kBatchTile;
      if (!rows.exists(tile, row)) continue;
      for (int64_t x = threadIdx.x; x < seqlen * packets; x += kThreads) {
        const int t = static_cast<int>(x / packets), unit = first + static_cast<int>(x % packets) * kPacket;
        *packet(rows.index(tile, row, t), i % kParts, unit) = uint4{kAbsent, kAbsent, kAbsent, kAbsent};
      }
    }
  }

 private:
  const uint32_t part_step;  // packets
  uint4* const of_head;
};

// A flag for each packet. A thread has 7 predicates: many flags are the bits of a register.
template <int kCount, bool kBits = (kCount > 8)>
struct Flags {
  bool x[kCount] = {};
  XLSTM_DEVICE bool at(int i) const { return x[i]; }
  XLSTM_DEVICE void set(int i, bool value) { x[i] = value; }
};
template <int kCount>
struct Flags<kCount, true> {
  uint32_t x = 0;
  XLSTM_DEVICE bool at(int i) const { return x >> i & 1; }
  XLSTM_DEVICE void set(int i, bool value) { x |= value ? 1u << i : 0; }  // of new ones
};

// Packets from at(i) where one is missing: asked for until they are there, each no longer than it is missing.
template <int kCount, class At>
XLSTM_DEVICE void await_packets(uint4 (&packets)[kCount], Flags<kCount> missing, At at, device::Patience patience,
                                bool does_not_wait) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) packets[i] = uint4{};
  bool all;
  do {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (missing.at(i)) packets[i] = device::load_relaxed(at(i));
    }
    missing = {};
    all = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool there = complete(packets[i]);
      missing.set(i, !there);
      all &= there;
    }
    if (!all) patience.spend(device::Source::here());
  } while (!all && !does_not_wait);
}

}  // namespace xlstm::cuda
