// The walk of states.cu on compute capability 9.0, bfloat16: by wgmma, from tiles that TMA brings.
//
// A block has 128 rows of C and up to 256 columns: two consumer warpgroups with 64 rows each, which keep them as
// accumulators for the whole walk, and a producer. A stage of the ring has 64 tokens: K (backward Q) by 128 features,
// and V (dH) by all columns. K comes to registers transposed, gets its weights there, and is the A of V's products.
#include <algorithm>

#include "cuda/mlstm_chunkwise/hopper_tiles.h"
#include "cuda/mlstm_chunkwise/states_block.h"
#include "cuda/mlstm_chunkwise/states_wgmma.h"
#include "cuda/mlstm_chunkwise/token_maps.h"

namespace xlstm::cuda {
namespace {

using namespace device;

using T = __nv_bfloat16;
constexpr Product kProduct = Product::bf16;

constexpr int kGroups = 2;  // consumer warpgroups
constexpr int kConsumers = kGroups * kTileThreads, kThreads = kConsumers + kTileThreads;
constexpr int kTokens = 64;  // of a span
constexpr int kStages = 4;
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
constexpr int kFirstTeamBarrier = 1, kAllConsumers = 3;

struct Maps {
  CUtensorMap rows, columns;
};

struct WgmmaWalk {
  int tiles, column_tiles, row_pairs;  // of a head
};

// After it the ring.
template <int kColumns>
struct alignas(kSharedAlignment) Shared {
  static constexpr int kSlabs = kGroups + kColumns / kSlabColumns;  // of a stage: rows of each group, then columns

  Weights<float, kTokens> weights[kGroups][2];  // of two spans: one is written while the other is read
  float dots[kGroups][kTeamWarps];
  uint64_t full[kStages], empty[kStages];

  XLSTM_DEVICE Ring ring() const {
    return Ring(shared_address(this + 1), shared_address(full), shared_address(empty), kStages, kSlabs * kSlabBytes);
  }
  XLSTM_DEVICE uint4& piece(const Ring& ring, int slab, int row, int piece) {
    const uint32_t at = ring.memory() - shared_address(this + 1) + slab * kSlabBytes + row * kSlabRow + piece * 16;
    return *reinterpret_cast<uint4*>(reinterpret_cast<unsigned char*>(this + 1) + at);
  }
};

template <int kColumns>
constexpr size_t kSharedBytes = sizeof(Shared<kColumns>) + kStages * Shared<kColumns>::kSlabs * kSlabBytes;

// What lanes agree on, and the compiler knows.
XLSTM_DEVICE TokenSpan<float> uniform(TokenSpan<float> span) {
  span.chunk = device::uniform(span.chunk);
  span.count = device::uniform(span.count);
  span.opens = device::uniform(span.opens);
  return span;
}

// One thread.
template <int kColumns>
XLSTM_DEVICE void produce(const Maps& maps, const MlstmStatesParams<float>& p, const Block& block, int groups,
                          Ring ring) {
  Walk<float> walk(p, block, kTokens);
#pragma unroll 1
  for (TokenSpan<float> span = walk.next(); span.chunk >= 0; span = walk.next()) {
    if (!XLSTM_MUTANT("mlstm_states_wgmma: a stage is filled while it is read")) ring.await_empty();
    mbarrier_arrive_expect_tx(ring.full(), (groups + kColumns / kSlabColumns) * kSlabBytes);
    const int token = static_cast<int>(block.tokens.begin) + span.first, head = static_cast<int>(block.head),
              batch = static_cast<int>(block.tokens.row);
    uint32_t to = ring.memory();
    for (int g = 0; g < kGroups; ++g, to += kSlabBytes) {
      const int corner[4] = {block.first_row + g * kSlabColumns, token, head, batch};
      if (g < groups) tma_load(to, &maps.rows, corner, ring.full());
    }
#pragma unroll 1
    for (int j = 0; j < kColumns / kSlabColumns; ++j, to += kSlabBytes) {
      const int corner[4] = {block.first_column + j * kSlabColumns, token, head, batch};
      tma_load(to, &maps.columns, corner, ring.full());
    }
    ring.advance();
  }
}

// TMA knows no spans: what it brought of other tokens becomes zero.
template <int kColumns>
XLSTM_DEVICE void clear_rest(Shared<kColumns>& s, const Ring& ring, int count, int groups) {
  constexpr int kPieces = kSlabRow / 16;
#pragma unroll 1
  for (int i = threadIdx.x; i < (kTokens - count) * kPieces; i += groups * kTileThreads) {
    for (int slab = 0; slab < Shared<kColumns>::kSlabs; ++slab) {
      if (slab < groups || slab >= kGroups) s.piece(ring, slab, count + i / kPieces, i % kPieces) = {0, 0, 0, 0};
    }
  }
  fence_proxy_async();
  barrier_sync(kAllConsumers, groups * kTileThreads);
}

template <int kColumns>
XLSTM_DEVICE void multiply_span(State<kProduct, kColumns>& state, const Weights<float, kTokens>& weights, Ring& ring,
                                int group, bool with_n) {
  using F = Fragments<kProduct>;
  float (&sums)[kColumns / 2] = reinterpret_cast<float (&)[kColumns / 2]>(state.C);
  const uint32_t rows = ring.memory() + group * kSlabBytes, columns = ring.memory() + kGroups * kSlabBytes;
  F::A a[kSlabSteps];
#pragma unroll
  for (int step = 0; step < kSlabSteps; ++step) {
    const int k = step * F::kDepth;
    ldmatrix_trans(a[step].x, transposed_fragment_row(rows, k, thread_of_team() / 32 * 16));
    if (with_n) F::dot(state.n, a[step], weights.n + k);
    F::weigh(a[step], weights.C + k);
    wgmma_operands(a[step].x);
  }
  wgmma_operands(sums);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSlabSteps; ++step) wgmma_rs<T, kColumns, true>(sums, a[step].x, mn_major(columns, step));
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_operands(sums);
}

template <int kColumns, bool kAlone>
XLSTM_DEVICE void consume(const MlstmStatesParams<float>& p, const Block& block, Shared<kColumns>& s, int group,
                          int groups) {
  const Team<float> team = {s.dots[group], kFirstTeamBarrier + group};
  Ring ring = s.ring();
  State<kProduct, kColumns> state;
  load_start(state, p, block, kAlone);
  if (!kAlone) pass_segments(state, p, block);

  const float scale = scale_of(p);
  Walk<float> walk(p, block, kTokens);
  TokenSpan<float> span = uniform(walk.next()), next = uniform(walk.next());
  auto& weights = s.weights[group];
  store_weights<kProduct>(weights[0], load_gates(p, block, span), scale);
  TokenGates<float> gates = load_gates(p, block, next);
  int parity = 0;
#pragma unroll 1
  while (span.chunk >= 0) {
    team.sync(XLSTM_MUTANT("mlstm_states_wgmma: no barrier before weights are read"));
    const TokenSpan<float> after = uniform(walk.next());
    const int other = XLSTM_MUTANT("mlstm_states_wgmma: weights overwritten while they are read") ? parity : parity ^ 1;
    store_weights<kProduct>(weights[other], gates, scale);
    gates = load_gates(p, block, after);
    if (span.opens) {
      if (!kAlone) store_chunk(state, team, p, block, span);
      scale_state(state, span.g_bar);
    }
    if (!XLSTM_MUTANT("mlstm_states_wgmma: a stage is read before it is filled")) ring.await_full();
    if (span.count < kTokens && !XLSTM_MUTANT("mlstm_states_wgmma: tokens past the span are kept")) {
      clear_rest(s, ring, span.count, groups);
    }
    multiply_span(state, weights[parity], ring, group, has_n(block));
    fence_proxy_async();  // TMA writes where ordinary loads have read
    ring.release();
    ring.advance();
    span = next, next = after, parity ^= 1;
  }
  store_end(state, team, p, block, kAlone);
}

// kAlone: as in states.cu.
template <int kColumns, bool kAlone>
__global__ void __launch_bounds__(kThreads, 1)
    states_wgmma(const __grid_constant__ Maps maps, const MlstmStatesParams<float> p, const WgmmaWalk walk) {
#if XLSTM_SM90A
  XLSTM_SHARED(Shared<kColumns>, s);
  const int role = device::uniform(threadIdx.x / kTileThreads), blocks = walk.row_pairs * walk.column_tiles;
  const int state = static_cast<int>(blockIdx.x) / blocks, at = static_cast<int>(blockIdx.x) % blocks;
  const int row_tile = at / walk.column_tiles * kGroups, column_tile = at % walk.column_tiles;
  const int groups = min(kGroups, walk.tiles / walk.column_tiles - row_tile);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(shared_address(&s.full[stage]), 1);
      mbarrier_init(shared_address(&s.empty[stage]), groups * kTeamWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int group = role < kGroups ? role : 0;
  const Block block =
      locate<kColumns>(p, state, (row_tile + group) * walk.column_tiles + column_tile, walk.tiles, walk.column_tiles);
  if (role == kGroups) {
    set_max_registers_dec<kProducerRegisters>();
    if (threadIdx.x == kConsumers) produce<kColumns>(maps, p, block, groups, s.ring());
  } else if (role < groups) {
    set_max_registers_inc<kConsumerRegisters>();
    consume<kColumns, kAlone>(p, block, s, group, groups);
  }
#endif
}

// ---- launch ----

// Columns of a block's tile.
int columns_of(const MlstmShape& shape) {
  return shape.head_dim_v <= 128 ? 128 : 256;
}

template <int kColumns>
cudaError_t launch_columns(const MlstmStatesParams<float>& p, bool alone, cudaStream_t stream) {
  const int64_t row_tiles = tiles_across(p.shape.head_dim_qk, kTileRows);
  const auto across = static_cast<int>(tiles_across(p.shape.head_dim_v, kColumns));
  const WgmmaWalk tiling = {static_cast<int>(row_tiles) * across, across,
                            static_cast<int>(tiles_across(row_tiles, kGroups))};
  const int64_t blocks = p.shape.num_sequences * p.shape.num_heads * int64_t{tiling.row_pairs} * tiling.column_tiles;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  Maps maps;
  const bool good = map_tokens(maps.rows, p.rows, p.shape, p.shape.head_dim_qk, kTokens) &&
                    map_tokens(maps.columns, p.columns, p.shape, p.shape.head_dim_v, kTokens);
  if (!good) return cudaErrorInvalidValue;
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(alone ? p.segments - 1 : p.segments));
  l.block = dim3(kThreads);
  l.shared_bytes = kSharedBytes<kColumns>;
  l.name = "mlstm states wgmma";
  l.stream = stream;
  return launch(l, alone ? states_wgmma<kColumns, true> : states_wgmma<kColumns, false>, maps, p, tiling);
}

}  // namespace

StatesCost states_wgmma_cost(const MlstmShape& shape) {
  const int columns = columns_of(shape);
  const int64_t across = tiles_across(shape.head_dim_v, columns), rows = tiles_across(shape.head_dim_qk, kTileRows);
  return {rows * across, tiles_across(rows, kGroups) * across, 1,
          columns == 128 ? kSharedBytes<128> : kSharedBytes<256>};
}

cudaError_t states_wgmma(const MlstmStatesParams<float>& p, bool alone, cudaStream_t stream) {
  return columns_of(p.shape) == 128 ? launch_columns<128>(p, alone, stream) : launch_columns<256>(p, alone, stream);
}

}  // namespace xlstm::cuda
