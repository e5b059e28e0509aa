// Gradients of R and b (docs/kernels/recurrent.md): a block multiplies the tokens of one split for a tile of dR of one
// gate and head. dx and h come through a ring of stages in shared memory, sums stay in registers as accumulators and go
// to a slab per split. A second kernel adds the splits in their order.
#include <algorithm>

#include "cuda/mlstm_chunkwise/tile.h"
#include "cuda/recurrent/weight_grad.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kStages = 4;  // a power of two
// Blocks that a large device has room for at a time, and of which there are slabs for; tokens that are worth a block,
// and that take as long as its beginning and end.
constexpr int64_t kRoom = 264, kMostBlocks = 1024, kLeastTokens = 256, kEnds = 128;
// Products that an accumulator takes before it is added to the slab: tensor cores cut off the low digits of a sum, and
// each cut may go the same way.
constexpr int kProducts = 256;

// Tokens of a stage: all tiles make stages of about the same size.
template <Product P, int kSide>
constexpr int kTokens = kTileDepth<Element<P>> * kTileRows / kSide;

template <Product P, int kSide>
struct WeightGradShared {
  struct Stage {
    Tile<Element<P>, kTokens<P, kSide>, kSide> dx, h;
  };
  Stage stages[kStages];
  Accumulator<P> ones[Fragments<P>::kDepth];
};

// How the work is cut: by the shape alone, so that results do not depend on the device.
struct Cut {
  int tiles;       // along a side of a matrix
  int splits;      // of the tokens
  int64_t tokens;  // of a split; the last one may have fewer
};

// Of all matrices. Blocks and slabs are numbered by split and, within a split, by tile.
XLSTM_HOST_DEVICE int64_t tiles_of(const RecurrentShape& shape, const Cut& cut) {
  return kGates * shape.num_heads * cut.tiles * cut.tiles;
}

// The part of the result that a block computes.
struct Block {
  int64_t matrix, head;  // matrix: index into (4, H)
  int64_t begin, end;    // tokens, counted through all rows
  int64_t split;
  int first_out, first_in;
};

template <int kSide>
XLSTM_DEVICE Block locate(const RecurrentShape& shape, const Cut& cut, int64_t index) {
  Block block;
  block.first_in = static_cast<int>(index % cut.tiles) * kSide, index /= cut.tiles;
  block.first_out = static_cast<int>(index % cut.tiles) * kSide, index /= cut.tiles;
  // The gates of a head run together: they read the same h.
  const int64_t gate = index % kGates;
  index /= kGates;
  block.head = index % shape.num_heads, block.split = index / shape.num_heads;
  block.matrix = gate * shape.num_heads + block.head;
  const int64_t all = shape.batch * shape.seqlen;
  block.begin = block.split * cut.tokens;
  block.end = XLSTM_MUTANT("recurrent_weight_grad: splits overlap") ? all : min(block.begin + cut.tokens, all);
  return block;
}

// ---- tokens ----

// A piece of a row that begins at `from`: asynchronously where it can be.
template <Product P>
XLSTM_DEVICE void copy_piece(Element<P>* to, const char* from, Type type, int count) {
  using E = Element<P>;
  const uintptr_t address = reinterpret_cast<uintptr_t>(from);
  // Whole pieces or none: past the last row there may be no memory, and compute-sanitizer takes a part for all of it.
  if (type == element_type(P) && address % 16 == 0 && count % kPiece<E> == 0) {
    cp_async<16>(shared_address(to), from, count != 0);
    return;
  }
  if constexpr (sizeof(E) == sizeof(float)) {
    if (type == Type::f16 && address % 8 == 0 && count == kPiece<E>) return load_halves(to, from);
  }
  load_piece(to, from, type, count);
}

// The tokens of a block, one stage after the other.
template <Product P, int kSide>
class Tokens {
 public:
  using Stage = typename WeightGradShared<P, kSide>::Stage;

  XLSTM_DEVICE Tokens(const RecurrentWeightGradParams& p_, const Block& block_)
      : p(p_), block(block_), token(block_.begin), batch(token / p_.shape.seqlen) {
    time = static_cast<int>(token - batch * p.shape.seqlen);
    const int64_t D = p.shape.head_dim, stride = kGates * p.shape.hidden();
    dx = make_matrix<P>({p.dx, p.type}, token * stride + block.matrix * D, stride, 0, static_cast<int>(D));
    look_ahead();
  }

  // Zeros past the last token.
  XLSTM_DEVICE void load(Stage& stage) {
    dx.rows = max(static_cast<int>(min(block.end - token, int64_t{kCount})), 0);
    dx.data = opaque(dx.data);  // or nvcc keeps pointers of stages to come as well, and spills
    load_tile<false>(stage.dx, dx, 0, block.first_out);
#pragma unroll
    for (int i = 0; i < kRows; ++i) load_before(stage.h, i);
    advance();
  }

 private:
  using E = Element<P>;
  static constexpr int kCount = kTokens<P, kSide>;
  static constexpr int kAcross = kSide / kPiece<E>, kRowsAtOnce = kTileThreads / kAcross, kRows = kCount / kRowsAtOnce;
  static_assert(kRows * kRowsAtOnce == kCount);

  const RecurrentWeightGradParams& p;
  const Block& block;
  int64_t token, batch;  // of the stage's first row
  int time;
  Matrix dx;
  // Of the rows of this thread, known a stage ahead: bit i, nothing came before the token; bit kRows + i, it was
  // initial_h.
  unsigned starts = 0;

  XLSTM_DEVICE int first_row() const { return threadIdx.x / kAcross; }

  XLSTM_DEVICE void advance() {
    token += kCount, time += kCount;
    dx.data += kCount * dx.row_bytes;
    const int seqlen = static_cast<int>(p.shape.seqlen);
    batch += time / seqlen, time %= seqlen;
    look_ahead();
  }

  XLSTM_DEVICE void look_ahead() {
    starts = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = first_row() + i * kRowsAtOnce;
      if (token + row >= block.end) break;
      const unsigned at = time + row, seqlen = static_cast<unsigned>(p.shape.seqlen);
      const int64_t b = batch + at / seqlen, t = at % seqlen,
                    length = p.lengths ? min(p.lengths[b], p.shape.seqlen) : p.shape.seqlen;
      const bool is_first = t == (p.shape.is_reversed(block.head) ? length - 1 : 0);
      const bool reset = p.reset.at(b, t) && !XLSTM_MUTANT("recurrent_weight_grad: resets ignored");
      starts |= static_cast<unsigned>(reset || t >= length || (is_first && !p.initial_h)) << i;
      starts |= static_cast<unsigned>(is_first) << (kRows + i);
    }
  }

  // h before the token of this thread's i-th row
  template <class T>
  XLSTM_DEVICE void load_before(T& tile, int i) {
    const int row = first_row() + i * kRowsAtOnce;
    const int c = threadIdx.x % kAcross * kPiece<E>, column = block.first_in + c;
    const int columns = min(static_cast<int>(p.shape.head_dim) - column, kPiece<E>);
    E* to = tile.at(row, c);
    if (columns <= 0 || token + row >= block.end || starts >> i & 1) {
      *reinterpret_cast<Piece<E>*>(to) = {};
      return;
    }
    const int64_t hidden = p.shape.hidden(), feature = block.head * p.shape.head_dim + column;
    if ((starts >> (kRows + i) & 1) && !XLSTM_MUTANT("recurrent_weight_grad: first tokens take the row before")) {
      const unsigned at = time + row, seqlen = static_cast<unsigned>(p.shape.seqlen);
      constexpr Type kState = P == Product::f64 ? Type::f64 : Type::f32;
      const int64_t index = (batch + at / seqlen) * hidden + feature;
      copy_piece<P>(to, static_cast<const char*>(p.initial_h) + index * bytes_of(kState), kState, columns);
    } else {
      const int step = XLSTM_MUTANT("recurrent_weight_grad: h of the token itself") ? 0
                       : p.shape.is_reversed(block.head)                            ? 1
                                                                                    : -1;
      const int64_t before = token + row + step;
      const int64_t index = before * hidden + feature;
      copy_piece<P>(to, static_cast<const char*>(p.h) + index * bytes_of(p.type), p.type, columns);
    }
  }
};

// ---- sums ----

// Of a warp: rows 16 warp .. of each 64 of the tile, so that a B serves all of them. db: this lane's part of rows g and
// g + 8.
template <Product P, int kSide>
struct Sums {
  static constexpr int kGroups = kSide / kTileRows, kBlocks = kSide / 8;
  Accumulator<P> dR[kGroups][kBlocks][4] = {}, db[kGroups][2] = {};
};

// The sums of a block as its threads hold them: 16 bytes per thread side by side.
template <class A, int kSide>
struct Slab {
  static constexpr int kGroups = kSide / kTileRows, kBlocks = kSide / 8, kParts = 4 / Vector<A>::kCount;
  Vector<A> dR[kGroups][kBlocks][kParts][kTileThreads];
  A db[kGroups][2][kTileThreads];
};

template <Product P, int kSide>
XLSTM_DEVICE void multiply_stage(Sums<P, kSide>& sums, const WeightGradShared<P, kSide>& s, int stage, bool with_db) {
  using F = Fragments<P>;
  constexpr int kGroups = Sums<P, kSide>::kGroups;
  const auto& tiles = s.stages[stage];
#pragma unroll
  for (int k = 0; k < kTokens<P, kSide>; k += F::kDepth) {
    typename F::A a[kGroups];
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      F::load_a_trans(a[i], tiles.dx, i * kTileRows + threadIdx.x / 32 * 16, k);
      if (with_db) F::dot(sums.db[i], a[i], s.ones);
    }
#pragma unroll
    for (int j = 0; j < kSide / 8; j += 2) {
      typename F::B b;
      F::load_b_trans(b, tiles.h, 8 * j, k);
#pragma unroll
      for (int i = 0; i < kGroups; ++i) F::multiply(sums.dR[i][j], sums.dR[i][j + 1], a[i], b);
    }
  }
}

// Afterwards the sums are zero.
template <Product P, int kSide, class A>
XLSTM_DEVICE void store_sums(Sums<P, kSide>& sums, Slab<A, kSide>& slab, bool add) {
  using S = Slab<A, kSide>;
  constexpr int kCount = Vector<A>::kCount;
#pragma unroll
  for (int i = 0; i < S::kGroups; ++i) {
#pragma unroll
    for (int j = 0; j < S::kBlocks; ++j) {
#pragma unroll
      for (int part = 0; part < S::kParts; ++part) {
        Vector<A>& to = slab.dR[i][j][part][threadIdx.x];
        Vector<A> v = add ? load_vector(to.x) : Vector<A>{};
#pragma unroll
        for (int c = 0; c < kCount; ++c) {
          A& sum = sums.dR[i][j][part * kCount + c];
          v.x[c] += sum;
          sum = 0;
        }
        to = v;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      A& to = slab.db[i][half][threadIdx.x];
      to = (add ? to : A{0}) + sums.db[i][half];
      sums.db[i][half] = 0;
    }
  }
}

// ---- kernels ----

template <Product P, int kSide>
__global__ void __launch_bounds__(kTileThreads, 2)
    weight_grad(RecurrentWeightGradParams p, Cut cut, Slab<Accumulator<P>, kSide>* slabs) {
  using Shared = WeightGradShared<P, kSide>;
  XLSTM_SHARED(Shared, s);
  constexpr int kStagesPerStore = kProducts * Fragments<P>::kDepth / kTokens<P, kSide>;
  const Block block = locate<kSide>(p.shape, cut, blockIdx.x);
  if (threadIdx.x < Fragments<P>::kDepth) s.ones[threadIdx.x] = 1;
  Tokens<P, kSide> tokens(p, block);
  Sums<P, kSide> sums;
  const int steps = static_cast<int>((block.end - block.begin + kTokens<P, kSide> - 1) / kTokens<P, kSide>);
  int products = 0;
  bool add = false;
  // The first turns load only, so that the code of loads is there once.
  for (int step = 1 - kStages; step < steps; ++step) {
    cp_async_wait<kStages - 2>(XLSTM_MUTANT("recurrent_weight_grad: one copy too many in flight"));
    sync_threads(XLSTM_MUTANT("recurrent_weight_grad: no barrier between stages"));
    const unsigned stage = static_cast<unsigned>(step) % kStages;
    const unsigned free = XLSTM_MUTANT("recurrent_weight_grad: stage overwritten while it is read")
                              ? stage
                              : (stage + kStages - 1) % kStages;
    tokens.load(s.stages[free]);
    cp_async_commit();
    if (step < 0) continue;
    multiply_stage(sums, s, static_cast<int>(stage), block.first_in == 0);
    if (++products < kStagesPerStore && step + 1 < steps) continue;
    store_sums(sums, slabs[blockIdx.x], add);
    products = 0;
    add = !XLSTM_MUTANT("recurrent_weight_grad: sums stored earlier are lost");
  }
  cp_async_wait_all();
}

// 8 columns of 64 rows of dR (T) over all splits, with the first of them db (A).
template <class A, int kSide>
__global__ void __launch_bounds__(kTileThreads)
    add_splits(RecurrentWeightGradParams p, Cut cut, const Slab<A, kSide>* slabs) {
  using S = Slab<A, kSide>;
  int64_t index = blockIdx.x;
  const int j = static_cast<int>(index % S::kBlocks), i = static_cast<int>(index / S::kBlocks % S::kGroups);
  index /= S::kBlocks * S::kGroups;
  const int64_t tiles = tiles_of(p.shape, cut);
  const Block block = locate<kSide>(p.shape, cut, index);
  const bool with_db = block.first_in == 0 && j == 0;
  A d[4] = {}, db[2] = {};
#pragma unroll 4
  for (int split = XLSTM_MUTANT("recurrent_weight_grad: a split left out"); split < cut.splits; ++split) {
    const S& slab = slabs[split * tiles + index];
#pragma unroll
    for (int part = 0; part < S::kParts; ++part) {
      const Vector<A> v = load_vector(slab.dR[i][j][part][threadIdx.x].x);
#pragma unroll
      for (int c = 0; c < Vector<A>::kCount; ++c) d[part * Vector<A>::kCount + c] += v.x[c];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) db[half] += with_db ? slab.db[i][half][threadIdx.x] : A{0};
  }
  const int D = static_cast<int>(p.shape.head_dim);
  const int column = block.first_in + 8 * j + 2 * lane_pair();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = block.first_out + i * kTileRows + threadIdx.x / 32 * 16 + lane_group() + 8 * half;
    const int64_t out = block.matrix * D + row;
    const A sum = sum_of_row(db[half]);
    if (row >= D) continue;
    if (column < D) store_two(p.dR, p.type, out * D + column, d[2 * half], d[2 * half + 1], column + 1 < D);
    if (with_db && lane_pair() == 0) static_cast<A*>(p.db)[out] = sum;
  }
}

// ---- launch ----

int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

// Side of a block's tile.
int side_of(const RecurrentWeightGradParams& p) {
  return p.type == Type::f64 || p.shape.head_dim <= kTileRows ? kTileRows : 2 * kTileRows;
}

// Of the tokens, for so many tiles. A few blocks more than there is room for would take as long as twice the room.
int64_t best_splits(int64_t tiles, int64_t tokens) {
  const int64_t most = std::max<int64_t>(std::min(ceil_div(tokens, kLeastTokens), kMostBlocks / tiles), 1);
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t time = ceil_div(tiles * splits, kRoom) * (ceil_div(tokens, splits) + kEnds);
    if (time < least) best = splits, least = time;
  }
  return best;
}

Cut cut_of(const RecurrentWeightGradParams& p) {
  const int64_t tiles = ceil_div(p.shape.head_dim, side_of(p)), tokens = p.shape.batch * p.shape.seqlen;
  if (tokens == 0) return {static_cast<int>(tiles), 0, 0};
  const int64_t blocks = tiles_of(p.shape, {static_cast<int>(tiles), 1, 0});
  const int64_t splits = p.splits > 0 ? std::min<int64_t>(p.splits, tokens) : best_splits(blocks, tokens);
  constexpr int64_t kWhole = 64;  // a stage, whatever the product
  const int64_t each = ceil_div(ceil_div(tokens, splits), kWhole) * kWhole;
  return {static_cast<int>(tiles), static_cast<int>(ceil_div(tokens, each)), each};
}

cudaError_t launch_blocks(int64_t blocks, Launch l, cudaStream_t stream, auto kernel, const auto&... arguments) {
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  l.grid = dim3(static_cast<unsigned>(blocks));
  l.block = dim3(kTileThreads);
  l.stream = stream;
  return launch(l, kernel, arguments...);
}

template <Product P, int kSide>
cudaError_t launch_kernels(const RecurrentWeightGradParams& p, void* workspace, cudaStream_t stream) {
  using A = Accumulator<P>;
  const Cut cut = cut_of(p);
  const int64_t tiles = tiles_of(p.shape, cut);
  Slab<A, kSide>* slabs = static_cast<Slab<A, kSide>*>(workspace);
  Launch l;
  if (cut.splits > 0) {
    l.shared_bytes = sizeof(WeightGradShared<P, kSide>);
    l.name = "recurrent_weight_grad";
    const cudaError_t error = launch_blocks(tiles * cut.splits, l, stream, weight_grad<P, kSide>, p, cut, slabs);
    if (error != cudaSuccess) return error;
  }
  l.shared_bytes = 0;
  l.name = "recurrent_weight_grad splits";
  const int64_t blocks = tiles * Slab<A, kSide>::kGroups * Slab<A, kSide>::kBlocks;
  return launch_blocks(blocks, l, stream, add_splits<A, kSide>, p, cut, slabs);
}

template <Product P>
cudaError_t choose_side(const RecurrentWeightGradParams& p, void* workspace, cudaStream_t stream) {
  return side_of(p) == kTileRows ? launch_kernels<P, kTileRows>(p, workspace, stream)
                                 : launch_kernels<P, 2 * kTileRows>(p, workspace, stream);
}

}  // namespace

size_t recurrent_weight_grad_workspace(const RecurrentWeightGradParams& p) {
  const size_t size = p.type == Type::f64       ? sizeof(Slab<double, kTileRows>)
                      : side_of(p) == kTileRows ? sizeof(Slab<float, kTileRows>)
                                                : sizeof(Slab<float, 2 * kTileRows>);
  const Cut cut = cut_of(p);
  return static_cast<size_t>(tiles_of(p.shape, cut) * cut.splits) * size;
}

cudaError_t recurrent_weight_grad(const RecurrentWeightGradParams& p, void* workspace, cudaStream_t stream) {
  if (p.shape.hidden() == 0) return cudaSuccess;
  if (p.shape.seqlen > INT32_MAX / 2 || p.shape.head_dim > INT32_MAX / 2) return cudaErrorInvalidValue;
  switch (product_of(p.type, p.allow_tf32)) {
    case Product::bf16:
      return choose_side<Product::bf16>(p, workspace, stream);
    case Product::tf32:
      return choose_side<Product::tf32>(p, workspace, stream);
    case Product::tf32x3:
      return choose_side<Product::tf32x3>(p, workspace, stream);
    case Product::f64:
      return launch_kernels<Product::f64, kTileRows>(p, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace xlstm::cuda
