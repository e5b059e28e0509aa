#pragma once
// A launch per step, in both directions: a block multiplies the weights of some units of one head, of all four
// gates, with vectors of a few batch tiles, and then advances these units (docs/kernels/recurrent.md).
//
// Everything goes from global memory straight into registers: the warps of a block cut the rows of R among themselves,
// so that none reads what another one has read. Only their sums meet in shared memory.
#include "cuda/device/device.h"
#include "cuda/recurrent/cells.h"
#include "cuda/recurrent/fragments.h"
#include "cuda/recurrent/plan.h"
#include "cuda/recurrent/unit_state.h"

namespace xlstm::cuda::stepwise {

using namespace device;

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kUnits = 16;       // of a block: row r < 8 of a product is unit 2 r, row r + 8 the unit after it
constexpr int kGatesOfWarp = 2;  // so that sums, weights and vectors find registers
constexpr int kSplits = kWarps * kGatesOfWarp / kGates;  // warps with the same gates share the rows of R

// kGateValues: each gate has vectors of its own (d raw), and the products of the gates are added up; else all gates
// share one (h), and each has its product.
template <class Fragments_, bool kGateValues_>
struct StepwiseTraits {
  using F = Fragments_;
  using T = typename F::Element;
  using A = typename F::Sum;
  static constexpr bool kGateValues = kGateValues_;
  static constexpr int kTiles = sizeof(A) == 8 ? 2 : 4;           // batch tiles of a block
  static constexpr int kRows = kBatchTile * kTiles;               // batch rows
  static constexpr int kVector = Vector<T>::kCount;               // of a lane, along a row of R: two products
  static constexpr int kWindow = 4 * kVector;                     // of a warp at once
  static constexpr int kSums = kGateValues ? 1 : kGates;          // of a unit and batch row
  static constexpr int kParts = kGateValues ? kWarps : kSplits;   // that such a sum is added up of
  static constexpr int kValues = kGateValues ? kGatesOfWarp : 1;  // vectors of a warp per batch row
  static constexpr int kPitch = kUnits + 16 / sizeof(A);          // of a batch row of sums: no bank twice
  static constexpr int kItems = kUnits * kRows / kThreads;        // units and batch rows that a thread advances
  static_assert(kWindow == 2 * F::kDepth && kItems * kThreads == kUnits * kRows);
};

template <class P>
struct Shared {
  alignas(16) typename P::A sums[P::kParts][P::kSums][P::kRows][P::kPitch];
};

// ---- blocks ----

struct Grid {
  int groups, unit_tiles;  // groups of batch rows
};

// First batch row, head and first unit of a block. Blocks that read the same weights are neighbours.
struct Block {
  int64_t row, head;
  int unit;
};

template <class P>
XLSTM_DEVICE Block block_of(const Grid& grid) {
  const int index = static_cast<int>(blockIdx.x), rest = index / grid.groups;
  return {int64_t{index % grid.groups} * P::kRows, rest / grid.unit_tiles, rest % grid.unit_tiles * kUnits};
}

// The cell that a thread advances: a unit and a batch row of the block.
template <class P>
struct Item {
  int unit, row;  // in the block
  bool exists;
  int64_t batch, of_row, hidden;

  XLSTM_DEVICE Item(const RecurrentShape& shape, const Block& block, int index)
      : unit((index * kThreads + threadIdx.x) % kUnits),
        row((index * kThreads + threadIdx.x) / kUnits),
        batch(block.row + row),
        of_row(block.head * shape.head_dim + block.unit + unit),
        hidden(shape.hidden()) {
    const bool in_batch = batch < shape.batch || XLSTM_MUTANT("recurrent_stepwise: rows past the batch");
    const bool in_head =
        block.unit + unit < shape.head_dim || XLSTM_MUTANT("recurrent_stepwise: units of the next head");
    exists = in_batch && in_head;
  }

  XLSTM_DEVICE int64_t state() const { return batch * hidden + of_row; }  // in (B, H, D)
};

// On a device it is not checked to be in [0, seqlen].
XLSTM_DEVICE int64_t length_of(const int64_t* lengths, int64_t b, int64_t seqlen) {
  return lengths ? max(int64_t{0}, min(lengths[b], seqlen)) : seqlen;
}

// Index, among all B S tokens, of the t-th token that a head takes.
XLSTM_DEVICE int64_t token_of(const RecurrentShape& shape, const int64_t* lengths, int64_t head, int64_t b, int64_t t) {
  const int64_t S = shape.seqlen;
  return b * S + (shape.is_reversed(head) ? shape.token(head, t, length_of(lengths, b, S)) : t);
}

// ---- states ----

constexpr int kMaxCarried = 3;  // kStates and kGrads of every cell

// A row without tokens passes its state through, to the bit.
template <class A>
XLSTM_DEVICE void pass_through(const RecurrentState<void>& to, const RecurrentState<const void>& from, int64_t at) {
  static_cast<A*>(to.h)[at] = from.h ? static_cast<const A*>(from.h)[at] : A{0};
  store_unit_state(to, at, load_unit_state<A>(from, at));
}

// Values between launches: (kCount of the cell, B, H, D) of A.
template <int kCount, class A>
XLSTM_DEVICE void load_carried(A (&to)[kCount], const A* from, int64_t at, int64_t size) {
#pragma unroll
  for (int x = 0; x < kCount; ++x) to[x] = from[x * size + at];
}

template <int kCount, class A>
XLSTM_DEVICE void store_carried(A* to, const A (&from)[kCount], int64_t at, int64_t size) {
#pragma unroll
  for (int x = 0; x < kCount; ++x) to[x * size + at] = from[x];
}

inline size_t carried_bytes(const RecurrentShape& shape, Cell cell, Type type) {
  const int64_t values = (cell == Cell::lstm ? 1 : kMaxCarried) * shape.batch * shape.hidden();
  return static_cast<size_t>(values) * (type == Type::f64 ? 8 : 4);
}

// ---- products ----

// How a lane reads its part of a window: two rows of R, kVector elements of each.
enum class Loads {
  vectors,  // 16 bytes along a row: k has stride 1
  pairs,    // both rows at a time: rows have stride 1
  elements  // one by one: where an access would be misaligned or cross an edge
};

// The weights of a head as a product reads them, from some unit on: rows are units of the result.
template <class T>
struct Matrix {
  const T* data;
  int64_t gate, row, k;  // strides
  int rows, depth;       // left, up to the edges
};

// The vectors that a lane multiplies: of one batch row of each tile, null past the last row.
template <class P>
struct Vectors {
  const typename P::T* of[P::kTiles];
  int64_t gate;  // stride
  int rows;      // of the block; 0: there is no product
};

// at(b): the vector of batch row b.
template <class P, class At>
XLSTM_DEVICE Vectors<P> vectors_of(const Block& block, int64_t batch, int64_t gate, At at) {
  Vectors<P> v{};
  v.gate = gate;
  v.rows = static_cast<int>(batch - block.row < P::kRows ? batch - block.row : P::kRows);
#pragma unroll
  for (int tile = 0; tile < P::kTiles; ++tile) {
    const int row = tile * kBatchTile + threadIdx.x % 32 / 4;
    v.of[tile] = row < v.rows ? at(block.row + row) : nullptr;
  }
  return v;
}

template <class P>
XLSTM_DEVICE Matrix<typename P::T> matrix_of(const WeightView<const void>& R, const Block& block, int64_t head_dim) {
  using T = typename P::T;
  const bool swapped = P::kGateValues != XLSTM_MUTANT("recurrent_stepwise: rows of R taken for columns");
  const int64_t row = swapped ? R.in : R.out, k = swapped ? R.out : R.in;
  const int64_t head = XLSTM_MUTANT("recurrent_stepwise: R of the first head for all") ? 0 : block.head;
  const int D = static_cast<int>(head_dim);
  return {static_cast<const T*>(R.data) + head * R.head + block.unit * row, R.gate, row, k, D - block.unit, D};
}

// This lane's part of a window of two rows, from `from` on; zeros past the edges, where nothing is read.
template <Loads kLoads, class T>
XLSTM_DEVICE void load_rows(Vector<T> (&rows)[2], const T* from, const Matrix<T>& m, int rows_left, int left) {
  constexpr int kVector = Vector<T>::kCount;
  if constexpr (kLoads == Loads::vectors) {
#pragma unroll
    for (int r = 0; r < 2; ++r) rows[r] = r < rows_left && left > 0 ? load_vector(from + r * m.row) : Vector<T>{};
  } else if constexpr (kLoads == Loads::pairs) {
    struct alignas(2 * sizeof(T)) Pair {
      T x[2];
    };
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const Pair pair = rows_left > 0 && left > 0 ? *reinterpret_cast<const Pair*>(from + e * m.k) : Pair{};
      rows[0].x[e] = pair.x[0], rows[1].x[e] = pair.x[1];
    }
  } else {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
#pragma unroll
      for (int r = 0; r < 2; ++r) rows[r].x[e] = r < rows_left && e < left ? from[r * m.row + e * m.k] : T{};
    }
  }
}

// This lane's part of a window of the vector of a batch row.
template <Loads kLoads, class T>
XLSTM_DEVICE Vector<T> load_values(const T* from, int left) {
  if constexpr (kLoads == Loads::elements) {
    return load_elements(from, left);
  } else {
    return left > 0 ? load_vector(from) : Vector<T>{};
  }
}

template <class T>
XLSTM_DEVICE uint2 half_of(const Vector<T>& v, int half) {
  const uint4 bits = bits_as<uint4>(v);
  return half == 0 ? uint2{bits.x, bits.y} : uint2{bits.z, bits.w};
}

template <class P>
using Sums = typename P::A[kGatesOfWarp][P::kTiles][4];

// Warp w takes two gates, and of the windows of their rows every fourth one.
XLSTM_DEVICE int first_gate() {
  return threadIdx.x / 32 % (kGates / kGatesOfWarp) * kGatesOfWarp;
}
XLSTM_DEVICE int split() {
  return threadIdx.x / 32 / (kGates / kGatesOfWarp);
}

template <Loads kLoads, class P>
XLSTM_DEVICE void accumulate(Sums<P>& sums, const Matrix<typename P::T>& m, const Vectors<P>& v) {
  using F = typename P::F;
  using T = typename P::T;
  constexpr bool kAhead = kLoads != Loads::elements;  // all loads in flight; single elements would fill the registers
  const int lane = threadIdx.x % 32, unit = lane / 4 * 2;
  const T* const weights = m.data + first_gate() * m.gate + unit * m.row;
#pragma unroll 1
  for (int first = split() * P::kWindow; first < m.depth; first += kSplits * P::kWindow) {
    const int k = first + lane % 4 * P::kVector, left = m.depth - k;
    Vector<T> rows[kGatesOfWarp][2], x[P::kTiles][P::kValues];
#pragma unroll
    for (int gate = 0; gate < kGatesOfWarp; ++gate) {
      load_rows<kLoads>(rows[gate], weights + gate * m.gate + k * m.k, m, m.rows - unit, left);
    }
    const auto load_tile = [&](int tile) {
      const T* const from = v.of[tile] + first_gate() * v.gate + k;
#pragma unroll
      for (int gate = 0; gate < P::kValues; ++gate) {
        x[tile][gate] = load_values<kLoads>(from + gate * v.gate, v.of[tile] ? left : 0);
      }
    };
#pragma unroll
    for (int tile = 0; kAhead && tile < P::kTiles; ++tile) load_tile(tile);
#pragma unroll
    for (int tile = 0; tile < P::kTiles; ++tile) {
      if (tile * kBatchTile >= v.rows) continue;
      if (!kAhead) load_tile(tile);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int gate = 0; gate < kGatesOfWarp; ++gate) {
          F::multiply(sums[gate][tile], F::weights_of(half_of(rows[gate][0], half), half_of(rows[gate][1], half)),
                      F::values_of(half_of(x[tile][gate % P::kValues], half)));
        }
      }
    }
  }
}

template <class P>
XLSTM_DEVICE void store_sums(Shared<P>& s, const Sums<P>& sums, int rows) {
  using A = typename P::A;
  struct alignas(2 * sizeof(A)) Pair {
    A x[2];
  };
  const int lane = threadIdx.x % 32, unit = lane / 4 * 2;
#pragma unroll
  for (int tile = 0; tile < P::kTiles; ++tile) {
    if (tile * kBatchTile >= rows) continue;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = tile * kBatchTile + lane % 4 * 2 + j;
      const auto &d = sums[0][tile], &e = sums[1][tile];
      if constexpr (P::kGateValues) {
        *reinterpret_cast<Pair*>(&s.sums[threadIdx.x / 32][0][row][unit]) = {{d[j] + e[j], d[j + 2] + e[j + 2]}};
      } else {
        auto& part = s.sums[split()];
        *reinterpret_cast<Pair*>(&part[first_gate()][row][unit]) = {{d[j], d[j + 2]}};
        *reinterpret_cast<Pair*>(&part[first_gate() + 1][row][unit]) = {{e[j], e[j + 2]}};
      }
    }
  }
}

// The products of the block into shared memory: parts that sums_of adds up.
template <class P>
XLSTM_DEVICE void multiply(Shared<P>& s, const Matrix<typename P::T>& m, const Vectors<P>& v, Loads loads) {
  if (v.rows == 0) return;
  Sums<P> sums = {};
  switch (loads) {
    case Loads::vectors:
      accumulate<Loads::vectors, P>(sums, m, v);
      break;
    case Loads::pairs:
      accumulate<Loads::pairs, P>(sums, m, v);
      break;
    case Loads::elements:
      accumulate<Loads::elements, P>(sums, m, v);
  }
  store_sums<P>(s, sums, v.rows);
  sync_threads(XLSTM_MUTANT("recurrent_stepwise: sums read before all warps wrote them"));
}

// Of one unit and batch row, part after part.
template <class P>
XLSTM_DEVICE void sums_of(typename P::A (&to)[P::kSums], const Shared<P>& s, const Item<P>& item) {
  constexpr int kParts = P::kParts;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part > 0 && XLSTM_MUTANT("recurrent_stepwise: sums of the first warps only")) break;
#pragma unroll
    for (int sum = 0; sum < P::kSums; ++sum) to[sum] += s.sums[part][sum][item.row][item.unit];
  }
}

// ---- launches ----

// Whether 16 bytes of T may be read at this offset from a pointer, and at all multiples of these strides.
template <class T>
bool in_vectors(const void* data, std::initializer_list<int64_t> strides, int count = Vector<T>::kCount) {
  bool whole = reinterpret_cast<uintptr_t>(data) % (count * sizeof(T)) == 0;
  for (int64_t stride : strides) whole = whole && stride % count == 0;
  return whole;
}

// values_whole: the vectors may be read in 16 bytes.
template <class P>
Loads loads_of(const WeightView<const void>& R, int64_t head_dim, bool values_whole) {
  using T = typename P::T;
  const int64_t row = P::kGateValues ? R.in : R.out, k = P::kGateValues ? R.out : R.in;
  const bool edges = head_dim % P::kVector == 0 || XLSTM_MUTANT("recurrent_stepwise: whole vectors at the edge");
  if (!values_whole || !edges) return Loads::elements;
  if (k == 1 && in_vectors<T>(R.data, {R.gate, R.head, row})) return Loads::vectors;
  if (row == 1 && in_vectors<T>(R.data, {R.gate, R.head, k}, 2)) return Loads::pairs;
  return Loads::elements;
}

// Blocks, shared memory and stream of a step; `grid` as the kernel takes it. False: more blocks than a grid has.
template <class P>
bool configure(Launch& l, Grid& grid, const RecurrentShape& shape, cudaStream_t stream) {
  const int64_t groups = (shape.batch + P::kRows - 1) / P::kRows;
  const int64_t unit_tiles = (shape.head_dim + kUnits - 1) / kUnits;
  if (groups * unit_tiles * shape.num_heads > kMaxGridX) return false;
  grid = {static_cast<int>(groups), static_cast<int>(unit_tiles)};
  l.grid = dim3(static_cast<unsigned>(groups * unit_tiles * shape.num_heads));
  l.block = dim3(kThreads);
  l.shared_bytes = sizeof(Shared<P>);
  l.stream = stream;
  return true;
}

// f(Fragments) for the type of the data and of its products.
template <class Call>
cudaError_t with_fragments(Type type, bool allow_tf32, Call f) {
  switch (type) {
    case Type::bf16:
      return f(Fragments<__nv_bfloat16>{});
    case Type::f16:
      return f(Fragments<__half>{});
    case Type::f32:
      return allow_tf32 ? f(Fragments<float>{}) : f(Fragments<float, Passes::three>{});
    case Type::f64:
      return f(Fragments<double>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace xlstm::cuda::stepwise
