#pragma once
// Forward scan of the recurrent cells with R in registers (docs/kernels/recurrent.md). A step of a batch tile:
//   h of the step before (exchange.h) -> products with R -> raw gates -> the cell -> h of the step
// A block has 8, 16 .. units of one head with all four gates; a warp multiplies 8 of these units, or a part of their
// rows. Its two fragment tiles are gates 0 and 1, gates 2 and 3 of the 8 units.
#include "cuda/recurrent/exchange.h"

namespace xlstm::cuda {

template <class S>
struct ForwardShared {
  using A = typename S::A;
  static constexpr int kPitch = S::kUnits + (sizeof(A) == 8 ? 2 : 4);  // lanes of a fragment write to different banks
  static constexpr int kPartials = S::kDirect ? 0 : S::kSplits;

  typename ExchangeOf<S>::Shared exchange;
  A state[S::kTiles][3][S::kCells * S::kThreads];                           // of a cell; read by its thread alone
  A partial[2][kPartials > 0 ? kPartials : 1][kGates][kBatchTile][kPitch];  // step by step one of two
  A bias[kGates][S::kUnits];
  int tokens[S::kTiles][kBatchTile];  // of the batch rows; 0 past the batch
};

// Weights pass through before anything else is in use.
template <class S>
union ForwardMemory {
  WeightStage<typename S::F, 2, S::kSteps, S::kThreads / 32> weights[S::kThreads / 32];
  ForwardShared<S> scan;
};

constexpr int kAtOnce = 4;  // steps along a row of R that are multiplied together

// The products of a warp: steps along the rows of 8 units, dealt to the warps that share them, kAtOnce at a time.
template <class S>
struct Part {
  int group, split, first, count;
  XLSTM_DEVICE explicit Part(const RecurrentShape& shape) {
    const int warp = threadIdx.x / 32, steps = (static_cast<int>(shape.head_dim) + S::F::kDepth - 1) / S::F::kDepth;
    static_assert(S::kSteps % kAtOnce == 0);
    const int each = (steps + S::kSplits * kAtOnce - 1) / (S::kSplits * kAtOnce) * kAtOnce;
    group = warp % S::kGroups;
    split = S::kDirect ? 0 : warp / S::kGroups;
    first = split * each;
    count = steps - first < each ? steps - first : each;
  }
};

template <class S>
XLSTM_DEVICE void load_weights(typename S::F::Weights (&weights)[2][S::kSteps], ForwardMemory<S>& memory,
                               const RecurrentForwardParams<void>& p, const Team& team) {
  using T = typename S::T;
  const Part<S> part(p.shape);
  const int unit = team.rank * S::kUnits + part.group * 8, first = part.first * S::F::kDepth;
  const int units = static_cast<int>(p.shape.head_dim) - unit, inputs = static_cast<int>(p.shape.head_dim) - first;
  const T* from = static_cast<const T*>(p.R.data) + team.head * p.R.head + unit * p.R.out + first * p.R.in;
  load_weights<typename S::F>(weights, memory.weights[threadIdx.x / 32], p.R.in == 1, [&](int tile, int row, int k) {
    const int gate = tile * 2 + row / 8, out = row % 8;
    const bool exists = out < units && k < inputs && k < part.count * S::F::kDepth;
    return exists ? from[gate * p.R.gate + out * p.R.out + k * p.R.in] : T{};
  });
}

// The cells of a thread: one unit in kCells batch rows.
template <class S>
struct ThreadCells {
  int unit;  // of the block
  XLSTM_DEVICE ThreadCells()
      : unit(S::kDirect ? threadIdx.x / 32 * 8 + threadIdx.x % 32 / 4 : threadIdx.x % S::kUnits) {}
  XLSTM_DEVICE int row(int cell) const {
    return S::kDirect ? threadIdx.x % 4 * 2 + cell : threadIdx.x / S::kUnits + cell * S::kRowsAtOnce;
  }
  XLSTM_DEVICE bool has_cells() const { return S::kDirect || threadIdx.x / S::kUnits < kBatchTile; }  // per warp
};

constexpr int kStepsAhead = 4;  // of x on its way to L2

// Inputs of a thread for the next step, read a step ahead and kept as they lie in memory: a conversion would wait.
template <class S>
struct Ahead {
  typename S::T x[S::kCells][kGates];
  uint8_t reset[S::kCells];
};

template <class S>
class ForwardScan {
  using F = typename S::F;
  using T = typename S::T;
  using A = typename S::A;

 public:
  using Weights = typename F::Weights[2][S::kSteps];

  XLSTM_DEVICE ForwardScan(const RecurrentForwardParams<void>& params, const Team& of, ForwardShared<S>& shared,
                           void* padded_h, int64_t width)
      : p(params),
        team(of),
        s(shared),
        rows{shared.tokens, params.shape.is_reversed(of.head)},
        exchange(shared.exchange, params, of, rows, padded_h, width) {}

  XLSTM_DEVICE void run(const Weights& weights) {
    load_rows();
    load_bias();
    __syncthreads();
    if (p.shape.seqlen > 0) {
      int64_t x[S::kCells];
      find_x(x, 0, 0);
      load_x(x, 0, 0);
    }
    load_state();
    exchange.start();
#pragma unroll 1
    for (int t = 0; t < p.shape.seqlen; ++t) {
#pragma unroll 1
      for (int tile = 0; tile < team.tiles; ++tile) step(weights, t, tile);
    }
  }

 private:
  const RecurrentForwardParams<void>& p;
  const Team& team;
  ForwardShared<S>& s;
  const Rows<S> rows;
  ExchangeOf<S> exchange;
  const Part<S> part{p.shape};
  const ThreadCells<S> cells;
  const int unit = team.rank * S::kUnits + cells.unit;  // of the head
  Ahead<S> ahead;
  int turn = 0;

  XLSTM_DEVICE bool unit_exists() const { return unit < p.shape.head_dim; }
  XLSTM_DEVICE int64_t batch_row(int tile, int cell) const { return team.first_row(tile) + cells.row(cell); }
  XLSTM_DEVICE bool in_batch(int64_t b) const {
    return b < p.shape.batch || XLSTM_MUTANT("resident_fwd: rows past the batch");
  }
  XLSTM_DEVICE int64_t of_hidden() const { return team.head * p.shape.head_dim + unit; }

  // ---- before the first step ----

  XLSTM_DEVICE void load_rows() {
    if (threadIdx.x >= S::kTiles * kBatchTile) return;
    const int tile = threadIdx.x / kBatchTile, row = threadIdx.x % kBatchTile;
    s.tokens[tile][row] = tile < team.tiles ? tokens_of(p.shape, p.lengths, team.first_row(tile) + row) : 0;
  }

  XLSTM_DEVICE void load_bias() {
    for (int x = threadIdx.x; x < kGates * S::kUnits; x += S::kThreads) {
      const int gate = x / S::kUnits, of_block = x % S::kUnits, of_head = team.rank * S::kUnits + of_block;
      const bool exists = p.b.data && of_head < p.shape.head_dim;
      const int64_t at = gate * p.shape.hidden() + team.head * p.shape.head_dim + of_head;
      s.bias[gate][of_block] = exists ? device::load_any<A>(p.b.data, p.b.type, at) : A{0};
    }
  }

  // Cells that do not exist are advanced too: from the empty state.
  XLSTM_DEVICE void load_state() {
    if (!cells.has_cells()) return;
    for (int tile = 0; tile < team.tiles; ++tile) {
#pragma unroll
      for (int cell = 0; cell < S::kCells; ++cell) {
        const int64_t b = batch_row(tile, cell), at = b * p.shape.hidden() + of_hidden();
        const bool exists = unit_exists() && b < p.shape.batch;
        const UnitState<A> initial = exists ? load_unit_state<A>(p.initial_state, at) : UnitState<A>{};
        with_cell<A>(p.cell, [&](auto functor) {
          A state[decltype(functor)::kStates];
          functor.load_state(initial, state);
          put_state(state, tile, cell);
        });
        if (exists && s.tokens[tile][cells.row(cell)] == 0) pass_through(initial, at);
      }
    }
  }

  // A row without tokens hands its state through, to the bit.
  XLSTM_DEVICE void pass_through(const UnitState<A>& initial, int64_t at) {
    store_unit_state(p.final_state, at, initial);
    static_cast<A*>(p.final_state.h)[at] = p.initial_state.h ? static_cast<const A*>(p.initial_state.h)[at] : A{0};
  }

  template <int kStates>
  XLSTM_DEVICE void put_state(const A (&state)[kStates], int tile, int cell) {
#pragma unroll
    for (int x = 0; x < kStates; ++x) s.state[tile][x][cell * S::kThreads + threadIdx.x] = state[x];
  }

  // ---- products ----

  // R h for the 8 units of this warp.
  XLSTM_DEVICE void multiply(A (&sums)[2][4], const Weights& weights, const HiddenRows<S>& h) const {
    const int first = part.first * F::kDepth;
    if constexpr (kFewRows<F> > 0) {
      if (p.shape.batch <= kFewRows<F>) {
        const T* from = &h.row[0][first];
        accumulate(sums, weights, [&](A(&d)[4], const typename F::Weights& w, int k) {
          F::multiply_few(d, w, from + k * F::kDepth, S::kPitch);
        });
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) F::finish_few(sums[tile]);
        return;
      }
    }
    const T* from = &h.row[threadIdx.x % 32 / 4][first];
    accumulate(sums, weights,
               [&](A(&d)[4], const typename F::Weights& w, int k) { F::multiply(d, w, from + k * F::kDepth); });
  }

  // Four chains of sums. Four steps at a time, so that their loads overlap; past the last step, zeros.
  template <class Product>
  XLSTM_DEVICE void accumulate(A (&sums)[2][4], const Weights& weights, Product product) const {
    A odd[2][4] = {};
#pragma unroll
    for (int first = 0; first < S::kSteps; first += kAtOnce) {
      if (first >= part.count) break;
#pragma unroll
      for (int k = first; k < first + kAtOnce; ++k) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) product(k % 2 ? odd[tile] : sums[tile], weights[tile][k], k);
      }
    }
#pragma unroll
    for (int x = 0; x < 8; ++x) sums[x / 4][x % 4] += odd[x / 4][x % 4];
  }

  // Sums of the cells of this thread.
  XLSTM_DEVICE void raw_of_cells(A (&raw)[S::kCells][kGates], const A (&sums)[2][4]) {
    if constexpr (S::kDirect) {
#pragma unroll
      for (int x = 0; x < S::kCells * kGates; ++x) {
        const int cell = x / kGates, gate = x % kGates;
        raw[cell][gate] = sums[gate / 2][gate % 2 * 2 + cell];
      }
    } else {
      add_splits(raw, sums);
    }
  }

  XLSTM_DEVICE void add_splits(A (&raw)[S::kCells][kGates], const A (&sums)[2][4]) {
    auto& partial = s.partial[XLSTM_MUTANT("resident_fwd: one buffer of partial sums") ? 0 : turn];
    turn ^= 1;
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2, column = threadIdx.x / 32 % S::kGroups * 8 + g;
#pragma unroll
    for (int x = 0; x < 8; ++x) partial[part.split][x / 2][c + x % 2][column] = sums[x / 4][x % 4];
    device::sync_threads(XLSTM_MUTANT("resident_fwd: sums read before all warps wrote them"));
    if (!cells.has_cells()) return;
#pragma unroll
    for (int x = 0; x < S::kCells * kGates; ++x) {
      const int cell = x / kGates, gate = x % kGates;
      A sum = 0;
#pragma unroll
      for (int split = 0; split < S::kSplits; ++split) sum += partial[split][gate][cells.row(cell)][cells.unit];
      raw[cell][gate] = sum;
    }
  }

  // ---- a step ----

  // Where x of the cells of a step is; -1: there is none.
  XLSTM_DEVICE void find_x(int64_t (&x)[S::kCells], int t, int tile) const {
    const int64_t of_head = team.head * p.x.head + unit;
#pragma unroll
    for (int cell = 0; cell < S::kCells; ++cell) {
      const int64_t b = batch_row(tile, cell);
      const bool exists = cells.has_cells() && unit_exists() && in_batch(b);
      x[cell] = exists ? of_head + b * p.x.batch + rows.token(tile, cells.row(cell), t) * p.x.time : -1;
    }
  }

  XLSTM_DEVICE void load_x(const int64_t (&x)[S::kCells], int t, int tile) {
    const T* data = static_cast<const T*>(p.x.data);
#pragma unroll
    for (int cell = 0; cell < S::kCells; ++cell) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        ahead.x[cell][gate] = x[cell] >= 0 ? data[x[cell] + gate * p.x.gate] : T{};
      }
      ahead.reset[cell] = load_reset(tile, cell, t);
    }
  }

  // x of a later step comes to L2: a step is shorter than the way to memory. A lane takes a row and a gate.
  XLSTM_DEVICE void prefetch_x(int t, int tile) const {
    const int row = threadIdx.x % 32 / kGates, gate = threadIdx.x % kGates;
    const int64_t b = team.first_row(tile) + row;
    const int first = team.rank * S::kUnits + part.group * 8;
    if (part.split > 0 || t >= p.shape.seqlen || b >= p.shape.batch || first >= p.shape.head_dim) return;
    device::prefetch_l2(static_cast<const T*>(p.x.data) + b * p.x.batch + rows.token(tile, row, t) * p.x.time +
                        gate * p.x.gate + team.head * p.x.head + first);
  }

  XLSTM_DEVICE uint8_t load_reset(int tile, int cell, int t) const {
    const uint8_t* flags = reinterpret_cast<const uint8_t*>(p.reset.data);
    const int64_t b = batch_row(tile, cell);
    if (!flags || b >= p.shape.batch) return 0;
    return flags[b * p.reset.batch + rows.token(tile, cells.row(cell), t) * p.reset.time];
  }

  XLSTM_DEVICE void step(const Weights& weights, int t, int tile) {
    const bool last_tile = tile + 1 == team.tiles, more = !last_tile || t + 1 < p.shape.seqlen;
    const int next_t = last_tile ? t + 1 : t, next_tile = last_tile ? 0 : tile + 1;
    // with 128 registers: addresses where they are used, one cell after the other, and the loads after them
    constexpr bool kRoomy = S::kThreads <= 256;
    constexpr int kTogether = kRoomy ? S::kCells : 1;
    int64_t next_x[S::kCells] = {};
    if (kRoomy && more) {
      find_x(next_x, next_t, next_tile);
#pragma unroll
      for (int cell = 0; cell < S::kCells; ++cell) next_x[cell] = device::opaque(next_x[cell]);
    }
    prefetch_x(t + kStepsAhead, tile);
    const HiddenRows<S>& h = exchange.wait(t, tile);
    A sums[2][4] = {}, raw[S::kCells][kGates];
    multiply(sums, weights, h);
    raw_of_cells(raw, sums);
    if (!cells.has_cells()) return;
    uint8_t reset[S::kCells];
#pragma unroll
    for (int cell = 0; cell < S::kCells; ++cell) {
      // sums of a batch row depend on h of that row alone
      const bool reset_h = ahead.reset[cell] && !XLSTM_MUTANT("resident_fwd: h is not reset");
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        if (reset_h) raw[cell][gate] = 0;
        raw[cell][gate] += device::widen<A>(ahead.x[cell][gate]) + s.bias[gate][cells.unit];
      }
      reset[cell] = ahead.reset[cell];
    }
    if (kRoomy && more) load_x(next_x, next_t, next_tile);
    with_cell<A>(p.cell, [&](auto functor) {
#pragma unroll
      for (int first = 0; first < S::kCells; first += kTogether) {
        advance<decltype(functor), kTogether>(raw, reset, t, tile, first);
      }
    });
    if (!kRoomy && more) {
      find_x(next_x, next_t, next_tile);
      load_x(next_x, next_t, next_tile);
    }
  }

  template <class Cell, int kCount>
  XLSTM_DEVICE void advance(const A (&raw)[S::kCells][kGates], const uint8_t (&reset)[S::kCells], int t, int tile,
                            int first) {
    A state[kCount][Cell::kStates], saved[kCount][kSaved], empty[Cell::kStates];
    T h[kCount];
    Cell::load_state(UnitState<A>{}, empty);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int x = 0; x < Cell::kStates; ++x) {
        const A before = s.state[tile][x][(first + i) * S::kThreads + threadIdx.x];
        state[i][x] = reset[first + i] && !XLSTM_MUTANT("resident_fwd: the state is not reset") ? empty[x] : before;
      }
      h[i] = narrow_one_nan<T>(Cell::forward(raw[first + i], state[i], saved[i]));
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = cells.row(first + i);
      if (t >= s.tokens[tile][row] || !unit_exists()) h[i] = T{};
      exchange.give(t, tile, row, unit, h[i]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) store<Cell>(h[i], state[i], saved[i], t, tile, first + i);
  }

  // Behind the end of a row: zeros, and the state stays.
  template <class Cell>
  XLSTM_DEVICE void store(T h, const A (&state)[Cell::kStates], const A (&saved)[kSaved], int t, int tile, int cell) {
    const int64_t b = batch_row(tile, cell), hidden = p.shape.hidden();
    const int64_t token = b * p.shape.seqlen + rows.token(tile, cells.row(cell), t);
    if (!unit_exists() || !in_batch(b)) return;
    if (!exchange.stores_h) static_cast<T*>(p.h)[token * hidden + of_hidden()] = h;
    const int tokens = s.tokens[tile][cells.row(cell)];
    if (p.saved) {
      T* to = static_cast<T*>(p.saved) + token * kSaved * hidden + of_hidden();
#pragma unroll
      for (int x = 0; x < kSaved; ++x) to[x * hidden] = t < tokens ? device::narrow<T>(saved[x]) : T{};
    }
    if (t >= tokens) return;
    put_state(state, tile, cell);
    if (t + 1 < tokens) return;
    const int64_t at = b * hidden + of_hidden();
    store_unit_state(p.final_state, at, Cell::store_state(state));
    static_cast<A*>(p.final_state.h)[at] = device::widen<A>(h);
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    resident_fwd_kernel(RecurrentForwardParams<void> p, RecurrentPlan plan, void* padded_h, int64_t width) {
  if constexpr (S::kVariant != Variant::cluster || XLSTM_SM90) {
    XLSTM_SHARED(ForwardMemory<S>, s);
    const Team team = team_of(blockIdx.x, p.shape, plan);
    typename ForwardScan<S>::Weights weights;
    load_weights<S>(weights, s, p, team);
    __syncthreads();
    ForwardScan<S>(p, team, s.scan, padded_h, width).run(weights);
  }
}

template <class S>
cudaError_t launch_resident_fwd(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                                int64_t width, cudaStream_t stream) {
  device::Launch l;
  l.block = dim3(S::kThreads);
  l.shared_bytes = sizeof(ForwardMemory<S>);
  l.name = "resident_fwd";
  l.stream = stream;
  return launch_teams(p.shape, plan, l, resident_fwd_kernel<S>, p, plan, padded_h, width);
}

// The plans of one kind of products (plan.cpp says which there are).
template <class F>
cudaError_t launch_fwd(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h, int64_t width,
                       cudaStream_t stream) {
  constexpr bool kHalf = sizeof(typename F::Element) == 2, kTeams = sizeof(typename F::Element) < 8;
  const auto run = [&](auto shape) { return launch_resident_fwd<decltype(shape)>(p, plan, padded_h, width, stream); };
  if (plan.variant == Variant::block) {
    if constexpr (kHalf) {
      if (plan.units == kWideUnits) return run(ForwardTraits<F, kWideUnits, Variant::block>{});
    }
    return run(ForwardTraits<F, kResidentUnits, Variant::block>{});
  }
  if constexpr (kTeams) {
    const bool cluster = plan.variant == Variant::cluster;
    if (plan.units == 64) {
      return cluster ? run(ForwardTraits<F, 64, Variant::cluster>{}) : run(ForwardTraits<F, 64, Variant::grid>{});
    }
    if (plan.units == 32) {
      return cluster ? run(ForwardTraits<F, 32, Variant::cluster>{}) : run(ForwardTraits<F, 32, Variant::grid>{});
    }
    if (plan.units == 16 && !cluster) return run(ForwardTraits<F, 16, Variant::grid>{});
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace xlstm::cuda
