// States between the chunks of the mLSTM (docs/kernels/mlstm.md): a block per tile of C (64 rows) of a head walks the
// chunks of its sequence, forward with K and V or backward with Q and dH. The tile stays in registers as accumulators;
// tokens come through a ring of stages in shared memory, their weights one span ahead of the products.
//
// Where there are few blocks a sequence is cut into segments. A first launch walks each of them but the last by itself,
// from an empty state. What a segment makes of a state is linear: the state decays and the segment's own is added. So
// the second launch, which walks as ever, finds the state where its segment begins without walking there.
#include "cuda/mlstm_chunkwise/states_block.h"
#include "cuda/mlstm_chunkwise/states_wgmma.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kStages = 3;
constexpr int kResidentBlocks = 2;  // that a multiprocessor has registers for

template <Product P>
constexpr int kTokens = kTileDepth<Element<P>>;  // of a span

template <Product P, int kColumns>
struct StatesShared {
  struct Stage {
    WideTile<Element<P>> rows, columns[kColumns / kTileRows];
  };
  Stage stages[kStages];
  Weights<Accumulator<P>, kTokens<P>> weights[2];  // of two spans: one is written while the other is read
  Accumulator<P> dots[kTeamWarps];
};

// ---- tokens and their weights ----

// All tokens of the sequence, by their features along the rows of C and along its columns.
template <Product P>
struct Tokens {
  Matrix rows, columns;

  template <class A>
  XLSTM_DEVICE Tokens(const MlstmStatesParams<A>& p, const Block& block)
      : rows(of_head(p.rows, block, p.shape.head_dim_qk)), columns(of_head(p.columns, block, p.shape.head_dim_v)) {}

  template <int kColumns, class A>
  XLSTM_DEVICE void load(typename StatesShared<P, kColumns>::Stage& stage, const Block& block,
                         const TokenSpan<A>& span) const {
    load_tile(stage.rows, cut(rows, span), span.first, block.first_row);
#pragma unroll
    for (int j = 0; j < kColumns / kTileRows; ++j) {
      load_tile(stage.columns[j], cut(columns, span), span.first, block.first_column + j * kTileRows);
    }
  }

 private:
  static XLSTM_DEVICE Matrix of_head(const AnyView& x, const Block& block, int64_t features) {
    return held(
        token_matrix<P>(x, block.tokens.row, block.head, block.tokens.begin, block.length, static_cast<int>(features)));
  }
  // Without the tokens that come after the span.
  template <class A>
  static XLSTM_DEVICE Matrix cut(Matrix x, const TokenSpan<A>& span) {
    x.rows = span.first + span.count;
    return x;
  }
};

// ---- the kernel ----

template <Product P, int kColumns>
XLSTM_DEVICE void multiply_span(State<P, kColumns>& state, const StatesShared<P, kColumns>& s, int stage, int parity,
                                int count, bool with_n) {
  using F = Fragments<P>;
  const auto& tiles = s.stages[stage];
  const int row = threadIdx.x / 32 * 16;  // of the tile: stored across, as tokens run down
#pragma unroll 1                          // more at a time would not fit the registers
  for (int k = 0; k < count; k += F::kDepth) {
    typename F::A a;
    if (with_n) {
      F::load_a_trans(a, tiles.rows, row, k);
      F::dot(state.n, a, s.weights[parity].n + k);
    }
    F::load_a_trans(a, tiles.rows, row, k, s.weights[parity].C);
#pragma unroll
    for (int j = 0; j < kColumns / kTileRows; ++j) multiply<P, true>(state.C[j], a, tiles.columns[j], k);
  }
}

// kAlone: walks segments by themselves, for their own states. Else every chunk's state is stored. A template, because
// ptxas takes a branch around the store, which has shuffles, for divergent: 9 % more instructions in the loop.
template <Product P, int kColumns, bool kAlone>
__global__ void __launch_bounds__(kTileThreads, kResidentBlocks)
    states(MlstmStatesParams<Accumulator<P>> p, int tiles, int column_tiles) {
  using A = Accumulator<P>;
  using Shared = StatesShared<P, kColumns>;
  XLSTM_SHARED(Shared, s);
  const Block block = locate<kColumns>(p, static_cast<int>(blockIdx.x / tiles), static_cast<int>(blockIdx.x % tiles),
                                       tiles, column_tiles);
  const Team<A> team = {s.dots, 0};
  State<P, kColumns> state;
  load_start(state, p, block, kAlone);
  if (!kAlone) pass_segments(state, p, block);

  const Tokens<P> tokens(p, block);
  const A scale = scale_of(p);
  Walk<A> walk(p, block, kTokens<P>);
  TokenSpan<A> span = walk.next(), next = walk.next();
  tokens.template load<kColumns>(s.stages[0], block, span);
  cp_async_commit();
  tokens.template load<kColumns>(s.stages[1], block, next);
  cp_async_commit();
  store_weights<P>(s.weights[0], load_gates(p, block, span), scale);
  TokenGates<A> gates = load_gates(p, block, next);
  int stage = 0, parity = 0;
  while (span.chunk >= 0) {
    cp_async_wait<kStages - 2>(XLSTM_MUTANT("mlstm_states: one copy too many in flight"));
    sync_threads(XLSTM_MUTANT("mlstm_states: no barrier between steps"));
    const TokenSpan<A> after = walk.next();
    const int free = XLSTM_MUTANT("mlstm_states: stage overwritten while it is read") ? stage : (stage + 2) % kStages;
    tokens.template load<kColumns>(s.stages[free], block, after);
    cp_async_commit();
    const int other = XLSTM_MUTANT("mlstm_states: weights overwritten while they are read") ? parity : parity ^ 1;
    store_weights<P>(s.weights[other], gates, scale);
    gates = load_gates(p, block, after);
    if (span.opens) {
      if (!kAlone) store_chunk(state, team, p, block, span);
      scale_state(state, span.g_bar);
    }
    multiply_span(state, s, stage, parity, span.count, has_n(block));
    span = next, next = after;
    stage = (stage + 1) % kStages, parity ^= 1;
  }
  cp_async_wait_all();
  store_end(state, team, p, block, kAlone);
}

// ---- launch ----

// Columns of a block's tile.
int columns_of(Product product, const MlstmShape& shape) {
  return product == Product::f64 || shape.head_dim_v <= kTileRows ? kTileRows : 2 * kTileRows;
}

size_t shared_bytes_of(Product product, const MlstmShape& shape) {
  const auto of = [&]<Product P>() {
    constexpr size_t kNarrow = sizeof(StatesShared<P, kTileRows>), kWide = sizeof(StatesShared<P, 2 * kTileRows>);
    return columns_of(P, shape) == kTileRows ? kNarrow : kWide;
  };
  switch (product) {
    case Product::bf16:
      return of.operator()<Product::bf16>();
    case Product::tf32:
      return of.operator()<Product::tf32>();
    case Product::tf32x3:
      return of.operator()<Product::tf32x3>();
    case Product::f64:
      return of.operator()<Product::f64>();
  }
  XLSTM_UNREACHABLE;
}

template <Product P, int kColumns>
cudaError_t launch_states(const MlstmStatesParams<Accumulator<P>>& p, bool alone, cudaStream_t stream) {
  const int64_t tiles = states_cost(P, TensorCores::mma, p.shape).tiles;
  const int64_t blocks = p.shape.num_sequences * p.shape.num_heads * tiles;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  Launch l;
  l.block = dim3(kTileThreads);
  l.shared_bytes = sizeof(StatesShared<P, kColumns>);
  l.name = "mlstm states";
  l.stream = stream;
  const int across = static_cast<int>(tiles_across(p.shape.head_dim_v, kColumns));
  l.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(alone ? p.segments - 1 : p.segments));
  return launch(l, alone ? states<P, kColumns, true> : states<P, kColumns, false>, p, static_cast<int>(tiles), across);
}

template <Product P>
cudaError_t choose_columns(const MlstmStatesParams<float>& p, bool alone, cudaStream_t stream) {
  return columns_of(P, p.shape) == kTileRows ? launch_states<P, kTileRows>(p, alone, stream)
                                             : launch_states<P, 2 * kTileRows>(p, alone, stream);
}

cudaError_t choose_product(const MlstmStatesParams<float>& p, bool alone, cudaStream_t stream) {
  switch (p.product) {
    case Product::bf16:
      return choose_columns<Product::bf16>(p, alone, stream);
    case Product::tf32:
      return choose_columns<Product::tf32>(p, alone, stream);
    case Product::tf32x3:
      return choose_columns<Product::tf32x3>(p, alone, stream);
    case Product::f64:
      break;
  }
  return cudaErrorInvalidValue;
}
cudaError_t choose_product(const MlstmStatesParams<double>& p, bool alone, cudaStream_t stream) {
  return p.product == Product::f64 ? launch_states<Product::f64, kTileRows>(p, alone, stream) : cudaErrorInvalidValue;
}

// ---- which kernel ----

cudaError_t walk_by_wgmma(const MlstmStatesParams<double>&, bool, cudaStream_t) {
  return cudaErrorInvalidValue;
}
cudaError_t walk_by_wgmma(const MlstmStatesParams<float>& p, bool alone, cudaStream_t stream) {
  return p.product == Product::bf16 ? states_wgmma(p, alone, stream) : cudaErrorInvalidValue;
}

// alone: segments by themselves.
template <class A>
cudaError_t walk(const MlstmStatesParams<A>& p, bool alone, cudaStream_t stream) {
  if (p.shape.seqlen > INT32_MAX) return cudaErrorInvalidValue;
  return p.by == TensorCores::wgmma ? walk_by_wgmma(p, alone, stream) : choose_product(p, alone, stream);
}

}  // namespace

StatesCost states_cost(Product product, TensorCores by, const MlstmShape& shape) {
  if (by == TensorCores::wgmma) return states_wgmma_cost(shape);
  const int64_t tiles =
      tiles_across(shape.head_dim_qk, kTileRows) * tiles_across(shape.head_dim_v, columns_of(product, shape));
  return {tiles, tiles, kResidentBlocks, shared_bytes_of(product, shape)};
}

template <class A>
cudaError_t mlstm_segment_states(const MlstmStatesParams<A>& p, cudaStream_t stream) {
  return p.segments > 1 ? walk(p, true, stream) : cudaSuccess;
}

template <class A>
cudaError_t mlstm_states(const MlstmStatesParams<A>& p, cudaStream_t stream) {
  const cudaError_t error = mlstm_segment_states(p, stream);
  return error == cudaSuccess ? walk(p, false, stream) : error;
}

template cudaError_t mlstm_segment_states(const MlstmStatesParams<float>&, cudaStream_t);
template cudaError_t mlstm_states<float>(const MlstmStatesParams<float>&, cudaStream_t);
template cudaError_t mlstm_states<double>(const MlstmStatesParams<double>&, cudaStream_t);

}  // namespace xlstm::cuda
