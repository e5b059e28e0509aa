#pragma once
// The tensor map of TMA, as this library's cuTensorMapEncodeTiled writes it into a CUtensorMap.
#include <cstdint>

#include "simt/executor.h"

namespace simt {

constexpr int kMaxDims = 5;

struct TensorMap {
  uint32_t magic;
  uint8_t dims, element_bytes;
  uint8_t swizzle_bits;  // 0 none, 1 32B, 2 64B, 3 128B
  uint8_t* base;
  uint32_t box[kMaxDims];
  uint64_t size[kMaxDims], stride[kMaxDims];  // elements; bytes, stride[0] of one element
};

TensorMap decode(const CUtensorMap*, int dims, Source);
uint32_t tile_bytes(const TensorMap&);

// 16-byte chunks of shared memory change places within 128-byte rows.
inline uint32_t swizzled(uint32_t address, int bits) {
  return address ^ ((address >> 7 & ((1u << bits) - 1)) << 4);
}

// Calls visit(global row or null, shared address, bytes) for each contiguous piece of a tile: pieces of the row inside
// the tensor, and pieces outside it with a null row. No piece crosses a 16-byte chunk where the tile is swizzled.
template <class Visit>
void for_each_piece(const TensorMap& map, const int* at, uint32_t shared, Visit visit) {
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  uint32_t rows = 1;
  for (int d = 1; d < map.dims; ++d) rows *= map.box[d];
  const int64_t begin = at[0] < 0 ? -int64_t{at[0]} : 0;  // elements of the row inside the tensor
  const int64_t end = static_cast<int64_t>(map.size[0]) - at[0];
  for (uint32_t row = 0; row < rows; ++row) {
    int64_t offset = int64_t{at[0]} * map.element_bytes;
    bool inside = true;
    for (uint32_t d = 1, rest = row; d < map.dims; rest /= map.box[d], ++d) {
      const int64_t coordinate = int64_t{at[d]} + rest % map.box[d];
      inside = inside && coordinate >= 0 && coordinate < static_cast<int64_t>(map.size[d]);
      offset += coordinate * static_cast<int64_t>(map.stride[d]);
    }
    const uint32_t first = inside && begin < map.box[0] ? begin * map.element_bytes : row_bytes;
    const uint32_t last = inside && end > 0 ? (end < map.box[0] ? end * map.element_bytes : row_bytes) : 0;
    for (uint32_t byte = 0; byte < row_bytes;) {
      const bool in = byte >= first && byte < last;
      uint32_t stop = in ? last : byte < first && first < last ? first : row_bytes;
      if (map.swizzle_bits && stop > (byte / 16 + 1) * 16) stop = (byte / 16 + 1) * 16;
      const uint32_t to = swizzled(shared + row * row_bytes + byte, map.swizzle_bits);
      visit(in ? map.base + offset + byte : nullptr, to, stop - byte);
      byte = stop;
    }
  }
}

}  // namespace simt
