#pragma once
// Tiles in shared memory and the products of a warp on them. A kernel is a template on a Product: it takes Element,
// Accumulator and Fragments from here and holds no code that depends on a type.
//
// A block has four warps. A warp owns 16 rows of a 64-row result and multiplies 16 x 16 x kDepth at a time.
#include <type_traits>

#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/product.h"

namespace xlstm::cuda {

constexpr int kTileThreads = 128;
constexpr int kTileRows = 64;  // of a result; a TallTile or WideTile gives as many of its columns

template <class E>
constexpr int kPiece = 16 / static_cast<int>(sizeof(E));  // elements of a 16-byte copy
template <class E>
constexpr int kTileDepth = 8 * kPiece<E>;  // of the contracted dimension: 128 bytes

// 16 bytes after each row keep what a warp reads at a time in different banks.
template <class E, int kRows_, int kColumns_>
struct alignas(16) Tile {
  using Element = E;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kPitch = kColumns + kPiece<E>;
  E x[kRows * kPitch];

  XLSTM_DEVICE E* at(int row, int column) { return &x[row * kPitch + column]; }
  XLSTM_DEVICE const E* at(int row, int column) const { return &x[row * kPitch + column]; }
};

// Of an operand whose rows run along the contracted dimension, and of one whose columns do.
template <class E>
using TallTile = Tile<E, kTileRows, kTileDepth<E>>;
template <class E>
using WideTile = Tile<E, kTileDepth<E>, kTileRows>;

// ---- from global to shared memory ----

// A matrix in global memory. What lies beyond its rows and columns counts as zero and is never read.
struct Matrix {
  enum class Path { copies, halves, elements };  // copies: asynchronous, 16 bytes each; halves: fp16 to float, by four
  const char* data;
  int64_t row_bytes;
  int rows, columns;
  Type type;
  Path path;
};

// The matrix that begins at element `offset`, for tiles of the product's elements; stride: elements from row to row.
template <Product P>
XLSTM_DEVICE Matrix make_matrix(const Any& from, int64_t offset, int64_t stride, int rows, int columns) {
  const int size = bytes_of(from.type);
  const char* data = static_cast<const char*>(from.data) + offset * size;
  const uintptr_t low_bits = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride * size);
  Matrix::Path path = Matrix::Path::elements;
  if (from.type == element_type(P) && low_bits % 16 == 0) path = Matrix::Path::copies;
  if (from.type == Type::f16 && element_type(P) == Type::f32 && low_bits % 8 == 0) path = Matrix::Path::halves;
  return {data, stride * size, rows, columns, from.type, path};
}

// Tokens first .. first + rows - 1 of a head.
template <Product P>
XLSTM_DEVICE Matrix token_matrix(const AnyView& x, int64_t batch, int64_t head, int64_t first, int rows, int columns) {
  return make_matrix<P>({x.data, x.type}, x.offset(batch, head, first), x.time, rows, columns);
}

// A matrix whose values stay in registers: the compiler would compute them again for each tile.
XLSTM_DEVICE Matrix held(Matrix x) {
  x.data = device::opaque(x.data);
  x.row_bytes = device::opaque(x.row_bytes);
  x.path = device::opaque(x.path);
  return x;
}

template <class E>
struct alignas(16) Piece {
  E x[kPiece<E>];
};

template <class E>
XLSTM_DEVICE E element_at(const void* data, Type type, int index) {
  if constexpr (device::kIsBf16<E>) {
    return __float2bfloat16(device::load_any<float>(data, type, index));
  } else {
    return device::load_any<E>(data, type, index);
  }
}

// The first `count` elements of a piece, zeros past them, by ordinary loads.
template <class E>
XLSTM_DEVICE void load_piece(E* to, const char* from, Type type, int count) {
#pragma unroll 1
  for (int j = 0; j < kPiece<E>; ++j) {
    E x{};
    if (j < count) x = element_at<E>(from, type, j);
    to[j] = x;
  }
}

XLSTM_DEVICE void load_halves(float* to, const char* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  const float2 low = __half22float2(reinterpret_cast<const __half2&>(bits.x));
  const float2 high = __half22float2(reinterpret_cast<const __half2&>(bits.y));
  *reinterpret_cast<Piece<float>*>(to) = {{low.x, low.y, high.x, high.y}};
}

// A thread's part of a tile: one piece in each of the rows row, row + kRowsAtOnce, ..
template <class T>
struct Part {
  using E = typename T::Element;
  static constexpr int kAcross = T::kColumns / kPiece<E>, kRowsAtOnce = kTileThreads / kAcross;
  static_assert(T::kRows % kRowsAtOnce == 0);
  int row = threadIdx.x / kAcross, column = threadIdx.x % kAcross * kPiece<E>;
};

// A tile that the matrix has as a whole: one address on each side, and constant strides from there.
template <class T>
XLSTM_DEVICE void copy_whole(T& tile, const Matrix& from, int row, int column) {
  constexpr int kRowsAtOnce = Part<T>::kRowsAtOnce, kSize = sizeof(typename T::Element);
  const Part<T> part;
  const char* data = from.data + (row + part.row) * from.row_bytes + (column + part.column) * kSize;
  const int64_t stride = kRowsAtOnce * from.row_bytes;
  const uint32_t to = device::shared_address(tile.at(part.row, part.column));
#pragma unroll
  for (int r = 0; r < T::kRows; r += kRowsAtOnce, data += stride) {
    device::cp_async<16>(to + r * T::kPitch * kSize, data);
  }
}

// A tile across the matrix's edge. from: by value, or the compiler would read it again after every copy.
template <class T>
XLSTM_DEVICE void copy_edge(T& tile, const Matrix from, int row, int column) {
  using E = typename T::Element;
  const Part<T> part;
  const int columns = device::clamped(from.columns - column - part.column, kPiece<E>);  // of this thread's pieces
  const char* data = from.data + (row + part.row) * from.row_bytes + (column + part.column) * int{sizeof(E)};
#pragma unroll 1
  for (int r = part.row; r < T::kRows; r += Part<T>::kRowsAtOnce, data += Part<T>::kRowsAtOnce * from.row_bytes) {
    const int bytes = row + r < from.rows ? columns * int{sizeof(E)} : 0;
    device::cp_async_part(device::shared_address(tile.at(r, part.column)), bytes ? data : from.data, bytes);
  }
}

// A tile of another type, or of rows that are not aligned, by ordinary loads.
template <class T>
XLSTM_DEVICE void convert(T& tile, const Matrix& from, int row, int column) {
  using E = typename T::Element;
  constexpr int kRowsAtOnce = Part<T>::kRowsAtOnce;
  const Part<T> part;
  const int c = part.column,
            columns = device::clamped(from.columns - column - c, kPiece<E>);  // of this thread's pieces
  const int64_t stride = kRowsAtOnce * from.row_bytes;
  const char* data = from.data + (row + part.row) * from.row_bytes + int64_t{column + c} * bytes_of(from.type);
  const bool halves = sizeof(E) == sizeof(float) && from.path == Matrix::Path::halves && columns == kPiece<E>;
  if constexpr (sizeof(E) == sizeof(float)) {
    if (halves && row + T::kRows <= from.rows) {
#pragma unroll
      for (int r = 0; r < T::kRows; r += kRowsAtOnce, data += stride) load_halves(tile.at(part.row + r, c), data);
      return;
    }
  }
#pragma unroll 1
  for (int r = part.row; r < T::kRows; r += kRowsAtOnce, data += stride) {
    const bool inside = row + r < from.rows;
    if constexpr (sizeof(E) == sizeof(float)) {
      if (halves && inside) {
        load_halves(tile.at(r, c), data);
        continue;
      }
    }
    load_piece(tile.at(r, c), data, from.type, inside ? columns : 0);
  }
}

// A tile that is not copied as a whole.
template <class T>
XLSTM_DEVICE void load_rare_tile(T& tile, const Matrix& from, int row, int column) {
  if (from.path == Matrix::Path::copies) {
    copy_edge(tile, from, row, column);
  } else {
    convert(tile, from, row, column);
  }
}
// The same by a call. from: by value, a reference might be to registers.
template <class T>
XLSTM_DEVICE_CALL void call_load_rare_tile(T& tile, const Matrix from, int row, int column) {
  load_rare_tile(tile, from, row, column);
}

// Copies the tile at (row, column) of `from`. It is there after cp_async_commit, cp_async_wait and a barrier.
// kCalls: a kernel loads tiles in several places, and has registers left for a call.
template <bool kCalls = true, class T>
XLSTM_DEVICE void load_tile(T& tile, const Matrix& from, int row, int column) {
  const bool whole = row + T::kRows <= from.rows && column + T::kColumns <= from.columns;
  if (whole && from.path == Matrix::Path::copies) {
    copy_whole(tile, from, row, column);
  } else if constexpr (kCalls) {
    call_load_rare_tile(tile, from, row, column);
  } else {
    load_rare_tile(tile, from, row, column);
  }
}

// ---- fragments: what a lane holds of the operands of one step ----
//
// Lane l, g = l / 4, t = l % 4. Accumulators d[4] (16 x 8): rows g, g, g + 8, g + 8, columns c, c + 1, c, c + 1, c =
// 2t.
//
// Where kDepth is 8, mma gives lane t the slots t and t + 4 of the contracted index. Which of its values these are is
// free, as long as both operands agree. Natural: t and t + 4, for operands stored with this index along their rows.
// Paired: 2t and 2t + 1, the order of accumulators, and without bank conflicts where the index runs down the columns.
//   natural   load_a, load_b
//   paired    load_a_paired, load_a_trans, to_a; load_b_trans
// Where kDepth is 16 the two are the same.

template <Product P>
struct Fragments;

XLSTM_DEVICE int lane_group() {
  return threadIdx.x % 32 / 4;
}
XLSTM_DEVICE int lane_pair() {
  return threadIdx.x % 4;
}

// Where (row, column) of a tile is in shared memory for a lane at (lane_row, lane_column) of a fragment. The lane comes
// first: what it adds is the same for all fragments, and constants are left to them.
template <class T>
XLSTM_DEVICE uint32_t address_of(const T& tile, int lane_row, int lane_column, int row, int column) {
  constexpr int kSize = sizeof(typename T::Element);
  return device::shared_address(tile.at(lane_row, lane_column)) + (row * T::kPitch + column) * kSize;
}

// The rows that this lane gives to ldmatrix, of four matrices of 8 x 16 bytes: the second one below the first, or right
// of it.
template <class T>
XLSTM_DEVICE uint32_t below_first(const T& tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  return address_of(tile, lane % 16, lane / 16 * kPiece<typename T::Element>, row, column);
}
template <class T>
XLSTM_DEVICE uint32_t right_first(const T& tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  return address_of(tile, lane % 8 + lane / 16 * 8, lane / 8 % 2 * kPiece<typename T::Element>, row, column);
}

template <>
struct Fragments<Product::bf16> {
  using Element = __nv_bfloat16;
  using Accumulator = float;
  static constexpr int kDepth = 16;

  struct A {
    uint32_t x[4];
  };
  struct B {
    uint32_t x[2][2];  // 8 columns each
  };

  // A[m][k] stored [m][k]
  template <class T>
  static XLSTM_DEVICE void load_a(A& a, const T& tile, int m, int k) {
    device::ldmatrix(a.x, below_first(tile, m, k));
  }
  template <class T>
  static XLSTM_DEVICE void load_a_paired(A& a, const T& tile, int m, int k) {
    load_a(a, tile, m, k);
  }
  // Stored [k][m]
  template <class T>
  static XLSTM_DEVICE void load_a_trans(A& a, const T& tile, int m, int k) {
    device::ldmatrix_trans(a.x, right_first(tile, k, m));
  }
  // The same, each value of the contracted index times its weight
  template <class T>
  static XLSTM_DEVICE void load_a_trans(A& a, const T& tile, int m, int k, const float* weights) {
    load_a_trans(a, tile, m, k);
    weigh(a, weights + k);
  }
  // Times kDepth weights along the contracted index
  static XLSTM_DEVICE void weigh(A& a, const float* weights) {
    const float* w = weights + 2 * lane_pair();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = i / 2 * 8;
      a.x[i] = pack(low(a.x[i]) * w[at], high(a.x[i]) * w[at + 1]);
    }
  }
  // B[k][n] stored [n][k]
  template <class T>
  static XLSTM_DEVICE void load_b(B& b, const T& tile, int n, int k) {
    uint32_t x[4];
    device::ldmatrix(x, right_first(tile, n, k));
    b = {{{x[0], x[1]}, {x[2], x[3]}}};
  }
  // Stored [k][n]
  template <class T>
  static XLSTM_DEVICE void load_b_trans(B& b, const T& tile, int n, int k) {
    uint32_t x[4];
    device::ldmatrix_trans(x, below_first(tile, k, n));
    b = {{{x[0], x[1]}, {x[2], x[3]}}};
  }
  // Columns kDepth step .. of accumulators
  template <int kBlocks>
  static XLSTM_DEVICE void to_a(A& a, const float (&d)[kBlocks][4], int step) {
    const float (&left)[4] = d[2 * step], (&right)[4] = d[2 * step + 1];
    a = {{pack(left[0], left[1]), pack(left[2], left[3]), pack(right[0], right[1]), pack(right[2], right[3])}};
  }
  static XLSTM_DEVICE void multiply(float (&d0)[4], float (&d1)[4], const A& a, const B& b) {
    device::mma_m16n8k16<Element>(d0, a.x, b.x[0]);
    device::mma_m16n8k16<Element>(d1, a.x, b.x[1]);
  }
  // This lane's part of A times a vector, for rows g and g + 8. A is paired; vector: its values k .. k + kDepth - 1
  static XLSTM_DEVICE void dot(float (&sums)[2], const A& a, const float* vector) {
    const float* v = vector + 2 * lane_pair();
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // one after the other: two FMA
      sums[i % 2] += low(a.x[i]) * v[i / 2 * 8];
      sums[i % 2] += high(a.x[i]) * v[i / 2 * 8 + 1];
    }
  }

  // Of two neighbours.
  static XLSTM_DEVICE float low(uint32_t two) { return __uint_as_float(two << 16); }
  static XLSTM_DEVICE float high(uint32_t two) { return __uint_as_float(two & 0xffff0000); }

 private:
  static XLSTM_DEVICE uint32_t pack(float x, float y) { return device::bits_as<uint32_t>(__floats2bfloat162_rn(x, y)); }
};

// What mma takes for one element where kDepth is 8, and the product of 16 x 8 x 8.
template <Product P>
struct Operand;

template <>
struct Operand<Product::tf32> {
  uint32_t bits;

  static XLSTM_DEVICE Operand of(float x) { return {device::round_tf32(x)}; }
  XLSTM_DEVICE float value() const { return __uint_as_float(bits); }

  static XLSTM_DEVICE void multiply(float (&d)[4], const Operand (&a)[4], const Operand (&b)[2]) {
    device::mma_m16n8k8_tf32(d, {a[0].bits, a[1].bits, a[2].bits, a[3].bits}, {b[0].bits, b[1].bits});
  }
};

template <>
struct Operand<Product::tf32x3> {
  uint32_t big, small;  // small: mma ignores the digits that make it more than a tf32

  static XLSTM_DEVICE Operand of(float x) {
    const uint32_t big = __float_as_uint(x) & 0xffffe000;
    return {big, __float_as_uint(x - __uint_as_float(big))};
  }
  XLSTM_DEVICE float value() const { return __uint_as_float(big) + __uint_as_float(small); }

  static XLSTM_DEVICE void multiply(float (&d)[4], const Operand (&a)[4], const Operand (&b)[2]) {
    device::mma_m16n8k8_tf32(d, {a[0].small, a[1].small, a[2].small, a[3].small}, {b[0].big, b[1].big});
    device::mma_m16n8k8_tf32(d, {a[0].big, a[1].big, a[2].big, a[3].big}, {b[0].small, b[1].small});
    device::mma_m16n8k8_tf32(d, {a[0].big, a[1].big, a[2].big, a[3].big}, {b[0].big, b[1].big});
  }
};

template <>
struct Operand<Product::f64> {
  double x;

  static XLSTM_DEVICE Operand of(double x) { return {x}; }
  XLSTM_DEVICE double value() const { return x; }

  static XLSTM_DEVICE void multiply(double (&d)[4], const Operand (&a)[4], const Operand (&b)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      device::mma_m8n8k4_f64(d[0], d[1], a[2 * half].x, b[half].x);
      device::mma_m8n8k4_f64(d[2], d[3], a[2 * half + 1].x, b[half].x);
    }
  }
};

template <Product P>
struct Fragments {
  using Accumulator = std::conditional_t<P == Product::f64, double, float>;
  using Element = Accumulator;
  static constexpr int kDepth = 8;

  struct A {
    Operand<P> x[4];
  };
  struct B {
    Operand<P> x[2][2];  // 8 columns each
  };

  // A[m][k] stored [m][k]
  template <class T>
  static XLSTM_DEVICE void load_a(A& a, const T& tile, int m, int k) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      uint32_t x[4];
      device::ldmatrix(x, below_first(tile, m, k));
      a = from(__uint_as_float(x[0]), __uint_as_float(x[1]), __uint_as_float(x[2]), __uint_as_float(x[3]));
    } else {
      const Element *upper = tile.at(m + lane_group(), k + lane_pair()), *lower = upper + 8 * T::kPitch;
      a = from(upper[0], lower[0], upper[4], lower[4]);
    }
  }
  template <class T>
  static XLSTM_DEVICE void load_a_paired(A& a, const T& tile, int m, int k) {
    const Two upper = two(tile.at(m + lane_group(), k + 2 * lane_pair()));
    const Two lower = two(tile.at(m + lane_group() + 8, k + 2 * lane_pair()));
    a = from(upper.x, lower.x, upper.y, lower.y);
  }
  // Stored [k][m]
  template <class T>
  static XLSTM_DEVICE void load_a_trans(A& a, const T& tile, int m, int k) {
    const Element *even = tile.at(k + 2 * lane_pair(), m + lane_group()), *odd = even + T::kPitch;
    a = from(even[0], even[8], odd[0], odd[8]);
  }
  // The same, each value of the contracted index times its weight
  template <class T>
  static XLSTM_DEVICE void load_a_trans(A& a, const T& tile, int m, int k, const Accumulator* weights) {
    const Element *even = tile.at(k + 2 * lane_pair(), m + lane_group()), *odd = even + T::kPitch;
    const Accumulator* w = weights + k + 2 * lane_pair();
    a = from(even[0] * w[0], even[8] * w[0], odd[0] * w[1], odd[8] * w[1]);
  }
  // B[k][n] stored [n][k]
  template <class T>
  static XLSTM_DEVICE void load_b(B& b, const T& tile, int n, int k) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      uint32_t x[4];
      device::ldmatrix(x, right_first(tile, n, k));
#pragma unroll
      for (int i = 0; i < 4; ++i) b.x[i / 2][i % 2] = Operand<P>::of(__uint_as_float(x[i]));
    } else {
      const Element* x = tile.at(n + lane_group(), k + lane_pair());
#pragma unroll
      for (int i = 0; i < 4; ++i) b.x[i / 2][i % 2] = Operand<P>::of(x[i / 2 * 8 * T::kPitch + i % 2 * 4]);
    }
  }
  // Stored [k][n]
  template <class T>
  static XLSTM_DEVICE void load_b_trans(B& b, const T& tile, int n, int k) {
    const bool natural = XLSTM_MUTANT("tile: transposed B in the order of A");
    const Element* x = tile.at(k + (natural ? 1 : 2) * lane_pair(), n + lane_group());
    const int odd = (natural ? 4 : 1) * T::kPitch;
#pragma unroll
    for (int i = 0; i < 4; ++i) b.x[i / 2][i % 2] = Operand<P>::of(x[i / 2 * 8 + i % 2 * odd]);
  }
  // Columns kDepth step .. of accumulators
  template <int kBlocks>
  static XLSTM_DEVICE void to_a(A& a, const Accumulator (&d)[kBlocks][4], int step) {
    a = from(d[step][0], d[step][2], d[step][1], d[step][3]);
  }
  static XLSTM_DEVICE void multiply(Accumulator (&d0)[4], Accumulator (&d1)[4], const A& a, const B& b) {
    Operand<P>::multiply(d0, a.x, b.x[0]);
    Operand<P>::multiply(d1, a.x, b.x[1]);
  }
  // This lane's part of A times a vector, for rows g and g + 8. A is paired; vector: its values k .. k + kDepth - 1
  static XLSTM_DEVICE void dot(Accumulator (&sums)[2], const A& a, const Accumulator* vector) {
    const Accumulator* v = vector + 2 * lane_pair();
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i % 2] += a.x[i].value() * v[i / 2];
  }

 private:
  struct alignas(2 * sizeof(Element)) Two {
    Element x, y;
  };
  static XLSTM_DEVICE Two two(const Element* from) { return *reinterpret_cast<const Two*>(from); }
  static XLSTM_DEVICE A from(Element x0, Element x1, Element x2, Element x3) {
    return {{Operand<P>::of(x0), Operand<P>::of(x1), Operand<P>::of(x2), Operand<P>::of(x3)}};
  }
};

template <Product P>
using Element = typename Fragments<P>::Element;
template <Product P>
using Accumulator = typename Fragments<P>::Accumulator;

// d (16 x 8 kBlocks of a warp) += A B for one step, B from row (or, transposed, column) k of a tile on.
template <Product P, bool kTransposed, int kBlocks, class T>
XLSTM_DEVICE void multiply(Accumulator<P> (&d)[kBlocks][4], const typename Fragments<P>::A& a, const T& tile, int k) {
  using F = Fragments<P>;
  static_assert(kBlocks % 2 == 0);
#pragma unroll
  for (int j = 0; j < kBlocks; j += 2) {
    typename F::B b;
    if constexpr (kTransposed) {
      F::load_b_trans(b, tile, 8 * j, k);
    } else {
      F::load_b(b, tile, 8 * j, k);
    }
    F::multiply(d[j], d[j + 1], a, b);
  }
}

// ---- accumulators ----

// Over the four lanes that hold a row.
template <class A>
XLSTM_DEVICE A sum_of_row(A x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// This lane's part of 16 columns of a row: two neighbours in each of two blocks of 8, as in accumulators. Of 16 bits
// each, a lane reads and writes four neighbours instead, so that the lanes of a row cover a whole sector at once.
template <class T>
class RowPart {
  static constexpr int kAccesses = sizeof(T) == 2 ? 1 : 2, kWidth = 4 / kAccesses;

 public:
  using Access = device::Pack<T, kWidth>;
  device::Pack<T, 2> pairs[2];

  // From a row's first column on. By all lanes, all columns exist, and rows are aligned for accesses.
  XLSTM_DEVICE void load(const T* row) {
#pragma unroll
    for (int n = 0; n < kAccesses; ++n) {
      const Access access = device::load_whole(reinterpret_cast<const Access*>(row + column(n)));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x(kWidth * n + i) = access.x[i];
    }
    exchange();
  }
  XLSTM_DEVICE void store(T* row) {
    exchange();
#pragma unroll
    for (int n = 0; n < kAccesses; ++n) {
      Access access;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) access.x[i] = x(kWidth * n + i);
      device::store_whole(reinterpret_cast<Access*>(row + column(n)), access);
    }
  }

  // The same where `left` columns exist, at any address; zeros past them.
  XLSTM_DEVICE void load(const T* row, int left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x(i) = own_column(i) < left ? row[own_column(i)] : T{};
  }
  XLSTM_DEVICE void store(T* row, int left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (own_column(i) < left) row[own_column(i)] = x(i);
    }
  }

 private:
  // The columns of pairs, and the first one of an access.
  static XLSTM_DEVICE int own_column(int i) { return i / 2 * 8 + 2 * lane_pair() + i % 2; }
  static XLSTM_DEVICE int column(int access) {
    return kAccesses == 1 ? 8 * (lane_pair() % 2) + 4 * (lane_pair() / 2) : own_column(2 * access);
  }
  XLSTM_DEVICE void exchange() {
    if constexpr (kAccesses == 1) device::swap_with_neighbour(pairs[0], pairs[1]);
  }
  XLSTM_DEVICE T& x(int i) { return pairs[i / 2].x[i % 2]; }
};

// Two neighbours, or the first of them, in one access where they are aligned.
template <class A>
XLSTM_DEVICE void store_two(void* data, Type type, int64_t index, A x, A y, bool both) {
  device::with_type(type, [&]<class T>() {
    T* to = static_cast<T*>(data) + index;
    const device::Pack<T, 2> two = device::narrow_two<T>(x, y);
    if (both && device::aligned_for<device::Pack<T, 2>>(to)) {
      device::store_whole(reinterpret_cast<device::Pack<T, 2>*>(to), two);
    } else {
      to[0] = two.x[0];
      if (both) to[1] = two.x[1];
    }
  });
}

}  // namespace xlstm::cuda
