#pragma once
// Values of 8 hidden units in 8 batch rows, in the shared memory of one warp. It has two views of them:
//   cells    lane l has unit l / 4 of the batch rows 2 (l % 4) and the next one, as the products' sums lie
//   (fragments.h) rows     lane l has 8 units side by side: batch row l % 8, of part l / 8
// A part is one value of each cell: a gate, a saved value, h. Between the views: __syncwarp().
// Between shared and global memory rows go by all warps together (MovedRow): between that and the cells, a barrier.
#include "cuda/recurrent/team.h"

namespace xlstm::cuda {

constexpr int kWarpUnits = 8;

template <class T, int kParts>
struct WarpTile {
  alignas(16) T x[kParts][kBatchTile][kWarpUnits];
};

// Tiles of one group of 8 units. A row of all groups is read and written at once: they lie in different banks.
template <class T, int kParts, int kCount>
struct GroupTiles {
  WarpTile<T, kParts> tile[kCount];
  alignas(16) char apart[16];
};

// ---- cells ----

struct CellLane {
  int unit, row;  // and row + 1
  XLSTM_DEVICE CellLane() : unit(threadIdx.x % 32 / 4), row(threadIdx.x % 4 * 2) {}
};

// Parts kFirst, .. of a tile; 1, 2 or 4 of them.
template <int kFirst = 0, int kCount, class A, class T, int kParts>
XLSTM_DEVICE void read_cells(A (&pairs)[kCount][2], const WarpTile<T, kParts>& from) {
  static_assert(kFirst + kCount <= kParts);
  if constexpr (sizeof(T) == 2) {
    uint32_t packed[kCount];
    const int row = threadIdx.x % (8 * kCount);  // of all parts
    device::ldmatrix_trans(packed, device::shared_address(&from.x[kFirst][0][0] + row * kWarpUnits));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto pair = device::bits_as<device::Pack<T, 2>>(packed[i]);
      pairs[i][0] = device::widen<A>(pair.x[0]), pairs[i][1] = device::widen<A>(pair.x[1]);
    }
  } else {
    const CellLane at;
#pragma unroll
    for (int i = 0; i < kCount * 2; ++i) pairs[i / 2][i % 2] = from.x[kFirst + i / 2][at.row + i % 2][at.unit];
  }
}

// `to`: the first part. Its rows are kPitch elements apart, and kPart elements lie between parts; 1, 2 or 4 of them.
template <int kPitch = kWarpUnits, int kPart = kBatchTile * kPitch, int kCount, class T>
XLSTM_DEVICE void write_cells(T* to, const device::Pack<T, 2> (&pairs)[kCount]) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    uint32_t packed[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) packed[i] = device::bits_as<uint32_t>(pairs[i]);
#if XLSTM_SM90
    device::stmatrix_trans(device::shared_address(to + lane / 8 % kCount * kPart + lane % 8 * kPitch), packed);
#else
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      *reinterpret_cast<uint32_t*>(to + i * kPart + lane / 4 * kPitch + lane % 4 * 2) =
          device::movmatrix_trans(packed[i]);
    }
#endif
  } else {
    const CellLane at;
#pragma unroll
    for (int i = 0; i < kCount * 2; ++i)
      to[i / 2 * kPart + (at.row + i % 2) * kPitch + at.unit] = pairs[i / 2].x[i % 2];
  }
}

// ---- rows ----

// In what rows can be read, the largest first: vectors of 16 bytes, words (smaller ones that can be under way too,
// cp_async.h), or elements.
enum class Pieces { vectors, words, elements };

template <class T>
using Word = device::Pack<T, sizeof(T) == 2 ? 2 : 1>;

// By the address and all strides, in elements.
template <class Piece, class... Strides>
XLSTM_DEVICE bool consist_of(const void* pointer, Strides... strides) {
  return device::aligned_for<Piece>(pointer) && ((strides % Piece::kCount == 0) && ...);
}

template <class T, class... Strides>
XLSTM_DEVICE Pieces pieces_of(const void* pointer, Strides... strides) {
  if (consist_of<device::Vector<T>>(pointer, strides...)) return Pieces::vectors;
  return sizeof(T) > 2 || consist_of<Word<T>>(pointer, strides...) ? Pieces::words : Pieces::elements;
}

// How a kernel reads and writes its rows, in one register.
class RowAccess {
 public:
  RowAccess() = default;
  // vector_results: all that it writes. in_step: rows take the tokens of a step by its number alone.
  XLSTM_DEVICE RowAccess(Pieces inputs, bool vector_results, bool in_step)
      : bits(device::opaque(static_cast<int>(inputs) + (vector_results ? 0 : 4) + (in_step ? 0 : 8))) {}
  // Whole vectors and in step: no branches are needed.
  XLSTM_DEVICE bool is_plain() const { return bits == 0; }
  XLSTM_DEVICE Pieces inputs() const { return static_cast<Pieces>(bits % 4); }
  XLSTM_DEVICE bool vector_results() const { return bits / 4 % 2 == 0; }

 private:
  int bits = 0;
};

struct RowLane {
  int part, row;
  XLSTM_DEVICE RowLane() : part(threadIdx.x % 32 / 8), row(threadIdx.x % 8) {}
};

// What a thread moves, of those of kGroups warps: 16 bytes or more of a batch row of a part. Neighbours have
// neighbouring groups and so whole lines of global memory: a line for each row of 8 units alone would cost as much time
// as the line of all.
template <int kGroups>
struct MovedRow {
  int part, row, group;
  XLSTM_DEVICE MovedRow()
      : part(threadIdx.x / (kGroups * kBatchTile)),
        row(threadIdx.x / kGroups % kBatchTile),
        group(threadIdx.x % kGroups) {}
  // f(row) for the rows of a tile that it moves, whether they exist or not.
  template <class F>
  XLSTM_DEVICE void each_row(int, F f) const {
    f(row);
  }
};

// The same where one warp moves all of them: a lane has a part of a group, and one row after the other.
template <int kGroups>
struct MovedRows {
  int part, group;
  XLSTM_DEVICE MovedRows() : part(threadIdx.x % 32 / kGroups), group(threadIdx.x % kGroups) {}
  // f(row) for the first `count` rows.
  template <class F>
  XLSTM_DEVICE void each_row(int count, F f) const {
#pragma unroll 1
    for (int row = 0; row < count; ++row) f(row);
  }
};

template <class T>
struct RowVectors {
  static constexpr int kVector = device::Vector<T>::kCount, kCount = kWarpUnits / kVector;
  device::Vector<T> x[kCount];

  XLSTM_DEVICE explicit RowVectors(const T (&from)[kWarpUnits]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] = device::load_shared_now(reinterpret_cast<const device::Vector<T>*>(from) + i);
    }
  }
  // The first `units` of the row.
  XLSTM_DEVICE void store(T* to, int units) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i * kVector < units) device::store_whole(reinterpret_cast<device::Vector<T>*>(to) + i, x[i]);
    }
  }
};

// A row from memory, which consists of such pieces; zeros past `units` of it. It is under way.
template <class Piece, class T>
XLSTM_DEVICE void fetch_row(T (&to)[kWarpUnits], const T* from, int units) {
#pragma unroll
  for (int u = 0; u < kWarpUnits; u += Piece::kCount) {
    device::cp_async<sizeof(Piece)>(device::shared_address(&to[u]), from + u, u < units);
  }
}

// The same for any address. It waits for memory: elements of several rows are loaded before any of them is written.
template <class T>
struct RowElements {
  T x[kWarpUnits];

  XLSTM_DEVICE RowElements(const T* from, int units) {
#pragma unroll
    for (int u = 0; u < kWarpUnits; ++u) x[u] = u < units ? from[u] : T{};
  }
  XLSTM_DEVICE void write(T (&to)[kWarpUnits]) const {
#pragma unroll
    for (int u = 0; u < kWarpUnits; ++u) to[u] = x[u];
  }
};

// The same for the first `count` batch rows, whole vectors of 16 bits, `stride` elements apart in memory and kPitch in
// shared memory; zeros past them.
template <int kPitch, class T>
XLSTM_DEVICE void fetch_rows(T* to, const T* from, int64_t stride, int count) {
  const uint32_t at = device::shared_address(to);
#pragma unroll
  for (int row = 0; row < kBatchTile; ++row, from += stride) {
    device::cp_async<16>(at + row * kPitch * static_cast<uint32_t>(sizeof(T)), from, row < count);
  }
}

// The other way. Half of the rows are read before they are stored.
template <int kPitch, class T>
XLSTM_DEVICE void store_rows(T* to, const T* from, uint64_t stride, int count) {
  using Vector = device::Vector<T>;
  static_assert(Vector::kCount == kWarpUnits);
  constexpr int kAtOnce = kBatchTile / 2;
#pragma unroll
  for (int first = 0; first < kBatchTile; first += kAtOnce) {
    if (first >= count) break;
    Vector x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      x[i] = device::load_shared_now(reinterpret_cast<const Vector*>(from + (first + i) * kPitch));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, to += stride) {
      if (first + i < count) device::store_whole(reinterpret_cast<Vector*>(to), x[i]);
    }
  }
}

template <class T>
XLSTM_DEVICE void store_row(T* to, const T (&from)[kWarpUnits], int units) {
#pragma unroll
  for (int u = 0; u < kWarpUnits; ++u) {
    if (u < units) to[u] = from[u];
  }
}

}  // namespace xlstm::cuda
