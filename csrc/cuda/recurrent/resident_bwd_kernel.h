#pragma once
// The backward scan with R on the chip (docs/kernels/recurrent.md). A block has the rows of R of its own hidden units:
// per step it computes d raw of these, multiplies R^T d raw, which is a part of dh for every unit of the head, and
// sends each part to the block that owns the unit (inbox.h).
#include "cuda/recurrent/fragments.h"
#include "cuda/recurrent/inbox.h"
#include "cuda/recurrent/scan.h"

namespace xlstm::cuda {
namespace {

using namespace device;

// kDimension: the longest head. A warp has kMTiles tiles of 16 rows of R^T, its weights of kSteps products each in
// registers. Few tiles: kSplits warps share one, each with a part of the d raw, and count as sources of their own.
template <class F_, int kUnits_, int kThreads_, Variant kVariant_>
struct BwdTraits {
  using F = F_;
  using T = typename F::Element;
  using A = typename F::Sum;
  static constexpr Variant kVariant = kVariant_;
  static constexpr int kUnits = kUnits_, kThreads = kThreads_, kWarps = kThreads / 32, kTiles = max_tiles(kVariant);
  static constexpr int kDimension =
      kVariant == Variant::block ? kUnits : static_cast<int>(resident_head_dim(F::kDepth, kUnits));
  static constexpr int kAllMTiles = kDimension / 16;
  static constexpr int kSplits = kAllMTiles < kWarps ? kWarps / kAllMTiles : 1;
  static constexpr int kTileWarps = kWarps / kSplits;
  static constexpr int kMTiles = kAllMTiles / kTileWarps;
  static constexpr int kSplitGates = kGates * kUnits / kSplits;  // d raw of a split
  static constexpr int kSteps = kSplitGates / F::kDepth;
  // Sums of a tile that do not wait for each other; of many warps, some multiply while others wait.
  static constexpr int kChains = kMTiles >= 4 ? 1 : (kWarps > 8 ? 2 : 4) / kMTiles;
  static constexpr int kSources = kDimension / kUnits * kSplits;
  // Cells: a thread has a unit and two batch rows, or shares these with others, who add up other sources.
  static constexpr int kHelpers = kThreads / (kUnits * kBatchTile / 2);
  static constexpr int kAcross = 32 / kHelpers;                 // lanes with different units
  static constexpr int kRows = kHelpers > 1 ? 1 : 2;            // a thread's cells
  static constexpr int kTogether = kThreads > 256 ? 1 : kRows;  // of these: few registers
  static constexpr int kPitch = padded_pitch<T>(kGates * kUnits);
  static_assert(kMTiles * kSteps * sizeof(typename F::Weights) <= (kThreads > 256 ? 256 : 512));
  static_assert(kSplits == 1 || kVariant == Variant::block);
};

template <class C, Variant = C::kVariant>
struct InboxOf {
  using Type = BlockInbox<C>;
};
template <class C>
struct InboxOf<C, Variant::cluster> {
  using Type = ClusterInbox<C>;
};
template <class C>
struct InboxOf<C, Variant::grid> {
  using Type = GridInbox<C>;
};
template <class C>
using Inbox = typename InboxOf<C>::Type;

constexpr int kMaxGrads = 3;

struct BatchRow {
  int64_t offset;  // of its first token among the tokens, times the hidden units of all heads
  int tokens;      // 0 past the batch
};

// Two buffers of d raw: the message of a tile may be there while a warp still multiplies, so that others write the next
// d raw; a barrier follows.
template <class C>
struct BwdShared {
  alignas(16) typename C::T draw[2][kBatchTile][C::kPitch];
  typename C::A grads[C::kTiles][kMaxGrads][C::kRows][C::kThreads];  // carried, each read and written by one thread
  BatchRow rows[C::kTiles][kBatchTile];
  typename Inbox<C>::Shared inbox;
};

template <class C>
union BwdMemory {
  BwdShared<C> scan;
  WeightStage<typename C::F, C::kMTiles, C::kSteps, C::kWarps> weights[C::kWarps];
};

// A thread's cells in every tile: rows `row`, .. of the tile, one unit.
struct Cells {
  Reader reader;
  int row;
  bool exist;       // the unit does, and the thread has cells
  int64_t of_head;  // head * D + unit of the head
};

template <class C>
XLSTM_DEVICE Cells cells_of(const RecurrentShape& shape, const Team& team) {
  const int lane = threadIdx.x % 32, helper = lane / C::kAcross;
  const int index = static_cast<int>(threadIdx.x) / 32 * C::kAcross + lane % C::kAcross;
  const int unit = index % C::kUnits, pair = index / C::kUnits * 2, of_head = team.rank * C::kUnits + unit;
  const bool inside = of_head < shape.head_dim;
  return {{unit, pair, helper, inside}, pair + helper % 2, inside && helper < 2, team.head * shape.head_dim + of_head};
}

template <class C>
class BwdBlock {
  using F = typename C::F;
  using T = typename C::T;
  using A = typename C::A;
  using Draw = T[kBatchTile][C::kPitch];
  static constexpr int kRows = C::kRows;

 public:
  // The weights come through memory that is used for the scan later.
  XLSTM_DEVICE BwdBlock(BwdMemory<C>& memory, const RecurrentBackwardParams<void>& params, const RecurrentPlan& plan,
                        void* workspace)
      : s(memory.scan),
        p(params),
        team(team_of(blockIdx.x, p.shape, plan)),
        cells(cells_of<C>(p.shape, team)),
        inbox(s.inbox, p, team, plan, workspace) {
    load_weights(memory);
  }

  XLSTM_DEVICE void run() {
    const int S = static_cast<int>(p.shape.seqlen);
    describe_rows();
    inbox.start();
    __syncthreads();
    for (int tile = 0; tile < team.tiles; ++tile) load_final(tile);
    load_token(0, S - 1);
    int draw = 0;
#pragma unroll 1
    for (int message = 0; message < S; ++message) {
      const int t = S - 1 - message;
#pragma unroll 1
      for (int tile = 0; tile < team.tiles; ++tile) {
        A dh[kRows] = {};
        if (message > 0) receive(dh, tile, message - 1);
        draw = XLSTM_MUTANT("resident_bwd: one buffer of d raw instead of two") ? 0 : 1 - draw;
        step(tile, t, dh, s.draw[draw]);
        sync_threads(XLSTM_MUTANT("resident_bwd: d raw multiplied before it is there"));
        const bool more = tile + 1 < team.tiles;
        load_token(more ? tile + 1 : 0, more ? t : t - 1);
        send(tile, message, s.draw[draw]);
      }
    }
#pragma unroll 1
    for (int tile = 0; tile < team.tiles; ++tile) {
      A dh[kRows] = {};
      if (S > 0 && !XLSTM_MUTANT("resident_bwd: a block leaves before the last message")) receive(dh, tile, S - 1);
      store_initial(tile, dh);
    }
  }

 private:
  // Inputs of a thread for the next token, as they lie in memory.
  struct Token {
    T saved[kSaved], dh;
    int left;       // of the row: 1 at its last token, at most 0 past it and past the batch
    uint8_t reset;  // before the token after it; a byte, as a comparison would wait for it

    XLSTM_DEVICE bool reset_behind() const { return reset != 0 && !XLSTM_MUTANT("resident_bwd: reset ignored"); }
  };

  BwdShared<C>& s;
  const RecurrentBackwardParams<void>& p;
  const Team team;
  const Cells cells;
  Inbox<C> inbox;
  typename F::Weights weights[C::kMTiles][C::kSteps];
  Token tokens[kRows];

  XLSTM_DEVICE int warp() const { return threadIdx.x / 32; }
  XLSTM_DEVICE int split() const { return warp() / C::kTileWarps; }
  // Tiles of R^T are dealt in turn, so that each warp has some where the head is short.
  XLSTM_DEVICE int first_in(int mtile) const { return (mtile * C::kTileWarps + warp() % C::kTileWarps) * 16; }
  XLSTM_DEVICE int64_t hidden() const { return p.shape.hidden(); }
  XLSTM_DEVICE int64_t batch_row(int tile, int row) const { return team.first_row(tile) + row; }
  XLSTM_DEVICE int64_t state_offset(int tile, int row) const { return batch_row(tile, row) * hidden() + cells.of_head; }
  XLSTM_DEVICE bool exists(int tile, int row) const { return cells.exist && batch_row(tile, row) < p.shape.batch; }

  // Of R^T: rows `in` of the head, columns the d raw of this split.
  XLSTM_DEVICE void load_weights(BwdMemory<C>& memory) {
    const int D = static_cast<int>(p.shape.head_dim), first = team.rank * C::kUnits, units = D - first;
    const T* from = static_cast<const T*>(p.R.data) + team.head * p.R.head + first * p.R.out;
    cuda::load_weights<F>(weights, memory.weights[warp()], p.R.in != 1, [&](int mtile, int row, int k) {
      const int column = split() * C::kSplitGates + k, gate = column / C::kUnits, out = column % C::kUnits;
      const int in = first_in(mtile) + row;
      return in < D && out < units ? from[gate * p.R.gate + out * p.R.out + in * p.R.in] : T{};
    });
    __syncthreads();
  }

  XLSTM_DEVICE void describe_rows() {
    for (int i = threadIdx.x; i < team.tiles * kBatchTile; i += C::kThreads) {
      const int tile = i / kBatchTile, row = i % kBatchTile;
      const int64_t b = batch_row(tile, row);
      s.rows[tile][row] = {b * p.shape.seqlen * hidden(), tokens_of(p.shape, p.lengths, b)};
    }
  }

  XLSTM_DEVICE void load_final(int tile) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = cells.row + r;
      if (!exists(tile, row)) {
        store_grads<kMaxGrads>({}, tile, r);
        continue;
      }
      const int64_t at = state_offset(tile, row);
      const UnitState<A> final = load_unit_state<A>(p.final_state, at),
                         grad = load_unit_state<A>(p.final_state_grad, at);
      with_cell<CellMath<T>>(p.cell, [&](auto cell) {
        A d[decltype(cell)::kGrads];
        decltype(cell)::load_grad(final, grad, d);
        store_grads(d, tile, r);
      });
    }
  }

  template <int kCount>
  XLSTM_DEVICE void load_grads(A (&d)[kCount], int tile, int r, bool reset) const {
#pragma unroll
    for (int x = 0; x < kCount; ++x) d[x] = reset ? A{0} : s.grads[tile][x][r][threadIdx.x];
  }
  template <int kCount>
  XLSTM_DEVICE void store_grads(const A (&d)[kCount], int tile, int r) {
#pragma unroll
    for (int x = 0; x < kCount; ++x) s.grads[tile][x][r][threadIdx.x] = d[x];
  }

  // Where a row's token number t lies, times the hidden units of all heads.
  XLSTM_DEVICE int64_t token_offset(int tile, int row, int t) const {
    const BatchRow& r = s.rows[tile][row];
    return r.offset + p.shape.token(team.head, t, r.tokens) * hidden();
  }
  XLSTM_DEVICE uint8_t reset(int tile, int row, int t) const {
    const int64_t token = p.shape.token(team.head, t, s.rows[tile][row].tokens);
    const Flags& flags = p.reset;
    return reinterpret_cast<const uint8_t*>(flags.data)[batch_row(tile, row) * flags.batch + token * flags.time];
  }

  XLSTM_DEVICE void load_token(int tile, int t) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = cells.row + r, length = cells.exist ? s.rows[tile][row].tokens : 0;
      Token& x = tokens[r];
      x.left = t < 0 ? 0 : length - t;
      const int64_t token = token_offset(tile, row, t);
      const T* saved = static_cast<const T*>(p.saved) + token * kSaved + cells.of_head;
#pragma unroll
      for (int i = 0; i < kSaved; ++i, saved += hidden()) x.saved[i] = x.left > 0 ? *saved : T{};
      x.dh = x.left > 0 ? static_cast<const T*>(p.dh)[token + cells.of_head] : T{};
      x.reset = x.left > 1 && p.reset.data ? reset(tile, row, t + 1) : uint8_t{0};
    }
  }

  // dh: of this thread's cells, the sums of all sources.
  XLSTM_DEVICE void receive(A (&dh)[kRows], int tile, int message) {
    Reader at = cells.reader;
    at.wanted = at.wanted && batch_row(tile, at.row) < p.shape.batch;
    RowPair<A> sum = inbox.receive(tile, message, at);
    if constexpr (C::kHelpers == 1) {
      dh[0] = sum.x[0];
      dh[1] = sum.x[1];
    } else {
      if constexpr (C::kHelpers == 4) {
        sum.x[0] += __shfl_xor_sync(~0u, sum.x[0], 2 * C::kAcross);
        sum.x[1] += __shfl_xor_sync(~0u, sum.x[1], 2 * C::kAcross);
      }
      const bool second = at.helper % 2;
      const A give = second ? sum.x[0] : sum.x[1], keep = second ? sum.x[1] : sum.x[0];
      dh[0] = keep + __shfl_xor_sync(~0u, give, C::kAcross);
    }
  }

  // d raw of a token: to dx, and rounded to the product's operand. Cells without a token have zeros.
  XLSTM_DEVICE void step(int tile, int t, A (&dh)[kRows], Draw& draw) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Token& x = tokens[r];
      dh[r] = widen<A>(x.dh) + (x.left > 1 && !x.reset_behind() ? dh[r] : A{0});
      if (x.left == 1 && p.final_state_grad.h)
        dh[r] += static_cast<const A*>(p.final_state_grad.h)[state_offset(tile, cells.row + r)];
    }
    if (cells.reader.helper > 1) return;  // helps others only
#pragma unroll
    for (int r = 0; r < kRows; r += C::kTogether) {
      with_cell<CellMath<T>>(p.cell, [&](auto cell) { step_rows(cell, r, tile, t, dh, draw); });
    }
  }

  template <class Cell>
  XLSTM_DEVICE void step_rows(const Cell& cell, int first, int tile, int t, const A (&dh)[kRows], Draw& draw) {
    A d[C::kTogether][Cell::kGrads], d_raw[C::kTogether][kGates];
#pragma unroll
    for (int r = 0; r < C::kTogether; ++r) load_grads(d[r], tile, first + r, tokens[first + r].reset_behind());
#pragma unroll
    for (int r = 0; r < C::kTogether; ++r) {
      A saved[kSaved];
#pragma unroll
      for (int i = 0; i < kSaved; ++i) saved[i] = widen<A>(tokens[first + r].saved[i]);
      cell.backward(saved, dh[first + r], d[r], d_raw[r]);
    }
#pragma unroll
    for (int r = 0; r < C::kTogether; ++r) {
      const int row = cells.row + first + r;
      const bool counts = tokens[first + r].left > 0;
      if (counts) store_grads(d[r], tile, first + r);
      const bool stored = exists(tile, row) || (cells.exist && XLSTM_MUTANT("resident_bwd: rows past the batch"));
      T* dx = static_cast<T*>(p.dx) + token_offset(tile, row, t) * kGates + cells.of_head;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate, dx += hidden()) {
        const T rounded = counts ? narrow<T>(d_raw[r][gate]) : T{};
        if (stored) *dx = rounded;
        draw[row][gate * C::kUnits + cells.reader.unit] = rounded;
      }
    }
  }

  XLSTM_DEVICE void multiply(A (&sums)[C::kMTiles][C::kChains][4], const Draw& draw) const {
    const int first = split() * C::kSplitGates;
    if constexpr (kFewRows<F> > 0) {
      if (p.shape.batch <= kFewRows<F>) {
        accumulate(sums, [&](A(&d)[4], const typename F::Weights& w, int step) {
          F::multiply_few(d, w, &draw[0][first + step * F::kDepth], C::kPitch);
        });
#pragma unroll
        for (int i = 0; i < C::kMTiles * C::kChains; ++i) F::finish_few(sums[i / C::kChains][i % C::kChains]);
        return;
      }
    }
    const T* from = &draw[threadIdx.x % 32 / 4][first];
    accumulate(sums,
               [&](A(&d)[4], const typename F::Weights& w, int step) { F::multiply(d, w, from + step * F::kDepth); });
  }

  template <class Product>
  XLSTM_DEVICE void accumulate(A (&sums)[C::kMTiles][C::kChains][4], Product product) const {
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < C::kMTiles; ++i) product(sums[i][step % C::kChains], weights[i][step], step);
    }
  }

  // This warp's part of dh for all units of the head.
  XLSTM_DEVICE void send(int tile, int message, const Draw& draw) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
    const int D = static_cast<int>(p.shape.head_dim);
    const int64_t left = p.shape.batch - team.first_row(tile);
    const int rows = left < kBatchTile ? static_cast<int>(left) : kBatchTile;
    inbox.expect(tile, message, rows);
    A sums[C::kMTiles][C::kChains][4] = {};
    multiply(sums, draw);
    const int source = team.rank * C::kSplits + split();
#pragma unroll
    for (int i = 0; i < C::kMTiles; ++i) {
      if (first_in(i) >= D || c >= rows) continue;
#pragma unroll
      for (int chain = 1; chain < C::kChains; ++chain) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][0][j] += sums[i][chain][j];
      }
      const A(&sum)[4] = sums[i][0];
      const int unit = first_in(i) % C::kUnits + g, of_unit = first_in(i) / C::kUnits;
      const int owner =
          XLSTM_MUTANT("resident_bwd: sums sent to another block") ? (of_unit + 1) % team.blocks : of_unit;
      inbox.send(owner, tile, message, source, unit, c, sum[0], sum[1]);
      inbox.send(owner, tile, message, source, unit + 8, c, sum[2], sum[3]);
    }
  }

  XLSTM_DEVICE void store_initial(int tile, const A (&dh)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = cells.row + r;
      if (!exists(tile, row)) continue;
      const int64_t at = state_offset(tile, row);
      const A* last = static_cast<const A*>(p.final_state_grad.h);
      A* dh0 = static_cast<A*>(p.initial_state_grad.h) + at;
      UnitState<A> state = load_unit_state<A>(p.final_state_grad, at);
      if (s.rows[tile][row].tokens == 0) {  // the final state is the initial one
        *dh0 = last ? last[at] : A{0};
      } else {
        const bool empty = p.reset.data && reset(tile, row, 0);
        *dh0 = empty ? A{0} : dh[r];
        with_cell<CellMath<T>>(p.cell, [&](auto cell) {
          A d[decltype(cell)::kGrads];
          load_grads(d, tile, r, empty);
          state = decltype(cell)::store_grad(load_unit_state<A>(p.initial_state, at), d);
        });
      }
      store_unit_state<A>(p.initial_state_grad, at, state);
    }
  }
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    resident_bwd_kernel(const __grid_constant__ RecurrentBackwardParams<void> p, RecurrentPlan plan, void* workspace) {
  if constexpr (C::kVariant != Variant::cluster || XLSTM_SM90) {
    XLSTM_SHARED(BwdMemory<C>, s);
    BwdBlock<C>(s, p, plan, workspace).run();
  }
}

template <class F, int kUnits, int kThreads, Variant kVariant>
cudaError_t launch_bwd(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan, void* memory,
                       cudaStream_t stream) {
  using C = BwdTraits<F, kUnits, kThreads, kVariant>;
  device::Launch l;
  l.block = dim3(C::kThreads);
  l.shared_bytes = sizeof(BwdMemory<C>);
  l.name = "resident_bwd";
  l.stream = stream;
  return launch_teams(p.shape, plan, l, resident_bwd_kernel<C>, p, plan, memory);
}

template <class F>
cudaError_t launch_resident_bwd(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan, void* memory,
                                cudaStream_t stream) {
  constexpr bool kHalf = sizeof(typename F::Element) == 2, kTeams = sizeof(typename F::Element) < 8;
  const bool cluster = plan.variant == Variant::cluster;
  if (plan.variant == Variant::block) {
    if constexpr (kHalf) {
      if (plan.units == kWideUnits) return launch_bwd<F, kWideUnits, 512, Variant::block>(p, plan, memory, stream);
    }
    return launch_bwd<F, kResidentUnits, 256, Variant::block>(p, plan, memory, stream);
  }
  if constexpr (kTeams) {
    if (plan.units == 64) {
      return cluster ? launch_bwd<F, 64, 256, Variant::cluster>(p, plan, memory, stream)
                     : launch_bwd<F, 64, 256, Variant::grid>(p, plan, memory, stream);
    }
    if (plan.units == 32) {
      return cluster ? launch_bwd<F, 32, 256, Variant::cluster>(p, plan, memory, stream)
                     : launch_bwd<F, 32, 256, Variant::grid>(p, plan, memory, stream);
    }
    if (plan.units == 16 && !cluster) return launch_bwd<F, 16, 256, Variant::grid>(p, plan, memory, stream);
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace
}  // namespace xlstm::cuda
