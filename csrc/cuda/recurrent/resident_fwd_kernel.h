#pragma once
// Forward scan of the recurrent cells with R in registers (docs/kernels/recurrent.md). A step of a batch tile:
//   h of the step before (exchange.h) -> products with R -> raw gates -> the cell -> h of the step
// A block has 8, 16 .. units of one head with all four gates; a warp multiplies 8 of these units, or a part of their
// rows. Its two fragment tiles are gates 0 and 1, gates 2 and 3 of the 8 units: a lane that has their sums has all
// gates of its cells. x comes in and results leave in rows of 8 units (warp_tile.h).
#include "cuda/recurrent/resident_fwd_rows.h"

namespace xlstm::cuda {

constexpr int kMaxCarried = 3;  // values of a cell from step to step

// Sums of the warps that share rows of R, for the one that has the cells.
template <class S, bool = (S::kSplits > 1)>
struct Partials {};
template <class S>
struct Partials<S, true> {
  device::Pack<typename S::A, 4> x[S::kSplits - 1][2][S::kGroups * 32];
};

template <class S>
struct ForwardShared {
  typename ExchangeOf<S>::Shared exchange;
  ForwardTiles<S> tiles;
  device::Pack<typename S::A, 2> state[S::kTiles][kMaxCarried]
                                      [S::kGroups * 32];  // of two cells; read by their thread alone
  Partials<S> partials;
  RowLengths<S::kTiles> lengths;
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
    group = S::kHasMover ? warp : warp % S::kGroups;  // a mover is a warp more, and has no part
    split = S::kHasMover ? 0 : warp / S::kGroups;
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

template <class S>
class ForwardScan {
  using F = typename S::F;
  using T = typename S::T;
  using A = typename S::A;
  using Math = CellMath<T>;
  static constexpr bool kRoomy = S::kRoomy, kStartsWithX = S::kStartsWithX;

 public:
  using Weights = typename F::Weights[2][S::kSteps];

  XLSTM_DEVICE ForwardScan(const RecurrentForwardParams<void>& params, const Team& of, ForwardShared<S>& shared,
                           void* padded_h)
      : p(params),
        team(of),
        s(shared),
        rows(shared.lengths, params.shape, of),
        exchange(shared.exchange, params, of, rows, padded_h),
        moved(params, of, shared.tiles, rows, exchange.stores_h) {}

  XLSTM_DEVICE void run(const Weights& weights) {
    rows.find_lengths(p.shape, p.lengths);
    __syncthreads();
    if (has_cells()) {
      load_bias();
      load_initial();
      moved.start();
    }
    __syncthreads();
    if (has_cells()) {
      if (kStartsWithX) read_x();
      load_reset({});
    }
    exchange.start();
#pragma unroll 1
    for (Position at; at.t < seqlen; at.next(team.tiles)) {
      step(weights, at.t, at.tile);
      before = at;
    }
    __syncthreads();
    if (has_cells() && seqlen > 0) moved.store(before, turn);
    device::cp_async_wait<0>();
  }

 private:
  const RecurrentForwardParams<void>& p;
  const Team& team;
  ForwardShared<S>& s;
  const Rows<S> rows;
  ExchangeOf<S> exchange;
  ForwardRowsOfCells<S> moved;
  const Part<S> part{p.shape};
  const CellLane cell;
  const int first_unit = team.rank * S::kUnits + part.group * kWarpUnits;  // of the head
  const int units = static_cast<int>(p.shape.head_dim) - first_unit;       // that exist, of 8
  const int seqlen = static_cast<int>(p.shape.seqlen);
  A bias[kGates] = {};
  uint8_t reset[2] = {};                            // before the step to come
  A x[2][4] = {};                                   // x + b where the sums lie
  Position before{-1, 0};                           // the step before this one, whose results are still to be stored
  unsigned slot = kStartsWithX ? 0 : S::kRing - 1;  // of the ring: the x that has been read
  int turn = 0;                                     // of the buffers of results: that of this step

  XLSTM_DEVICE bool has_cells() const { return S::kSplits == 1 || part.split == 0; }
  XLSTM_DEVICE int state_index() const { return part.group * 32 + threadIdx.x % 32; }
  XLSTM_DEVICE int64_t of_hidden() const { return team.head * p.shape.head_dim + first_unit + cell.unit; }
  XLSTM_DEVICE int64_t state_offset(int tile, int i) const {
    return rows.number(tile, cell.row + i) * p.shape.hidden() + of_hidden();
  }

  // ---- before the first step ----

  XLSTM_DEVICE void load_bias() {
    if (!p.b.data || cell.unit >= units) return;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      bias[gate] = device::load_any<A>(p.b.data, p.b.type, gate * p.shape.hidden() + of_hidden());
    }
  }

  // Cells that do not exist are advanced too: from the empty state.
  XLSTM_DEVICE void load_initial() {
    for (int tile = 0; tile < team.tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t at = state_offset(tile, i);
        const bool exists = cell.unit < units && rows.exists(tile, cell.row + i);
        const UnitState<A> initial = exists ? load_unit_state<A>(p.initial_state, at) : UnitState<A>{};
        with_cell<Math>(p.cell, [&](auto functor) {
          constexpr int kStates = decltype(functor)::kStates;
          A state[kStates];
          functor.load_state(initial, state);
#pragma unroll
          for (int n = 0; n < kMaxCarried; ++n) {
            s.state[tile][n][state_index()].x[i] = n < kStates ? state[n < kStates ? n : 0] : A{0};
          }
        });
        if (exists && rows.length(tile, cell.row + i) == 0) pass_through(initial, at);
      }
    }
  }

  // A row without tokens hands its state through, to the bit.
  XLSTM_DEVICE void pass_through(const UnitState<A>& initial, int64_t at) {
    store_unit_state(p.final_state, at, initial);
    static_cast<A*>(p.final_state.h)[at] = p.initial_state.h ? static_cast<const A*>(p.initial_state.h)[at] : A{0};
  }

  // ---- inputs ----

  XLSTM_DEVICE void read_x() {
    A pairs[kGates][2];
    read_cells(pairs, s.tiles.x[part.group].tile[slot]);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i / 4][i % 4] = pairs[i / 2][i % 2] + bias[i / 2];
  }

  XLSTM_DEVICE void load_reset(const Position& at) {
    const uint8_t* flags = reinterpret_cast<const uint8_t*>(p.reset.data);
    if (!flags || at.t >= seqlen) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = cell.row + i;
      const int64_t offset = rows.offset(at.tile, row, at.t, p.reset.batch, p.reset.time);
      reset[i] = rows.exists(at.tile, row) ? flags[offset] : uint8_t{0};
    }
  }

  // ---- products ----

  // sums + odd: R h for the 8 units of this warp, in four chains, on top of what is in them. Values of kAtOnce steps at
  // a time, read while those before are multiplied.
  XLSTM_DEVICE void multiply(A (&sums)[2][4], A (&odd)[2][4], const Weights& weights, const HiddenRows<S>& h) const {
    const T* from = &h.row[0][part.first * F::kDepth];
    if constexpr (kFewRows<F> > 0) {
      if (p.shape.batch <= kFewRows<F>) return multiply_few(sums, odd, weights, from);
    }
    constexpr int kBuffers = kRoomy ? 2 : 1;  // other warps multiply meanwhile
    typename F::Values values[kBuffers][kAtOnce];
    F::load_values(values[0], from, S::kPitch);
#pragma unroll
    for (int first = 0; first < S::kSteps; first += kAtOnce) {
      const int group = first / kAtOnce;
      const auto load_next = [&] {
        const T* next = from + (first + kAtOnce) * F::kDepth;
        if (first + kAtOnce < S::kSteps) F::load_values(values[(group + 1) % kBuffers], next, S::kPitch);
      };
      if (kBuffers > 1) load_next();
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          F::multiply(k % 2 ? odd[tile] : sums[tile], weights[tile][first + k], values[group % kBuffers][k]);
        }
      }
      if (first + kAtOnce >= part.count) break;
      if (kBuffers == 1) load_next();
    }
  }

  XLSTM_DEVICE void multiply_few(A (&sums)[2][4], A (&odd)[2][4], const Weights& weights, const T* from) const {
#pragma unroll
    for (int first = 0; first < S::kSteps; first += kAtOnce) {
      if (first >= part.count) break;
#pragma unroll
      for (int k = first; k < first + kAtOnce; ++k) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          F::multiply_few(k % 2 ? odd[tile] : sums[tile], weights[tile][k], from + k * F::kDepth, S::kPitch);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) F::finish_few(sums[tile]), F::finish_few(odd[tile]);
  }

  // All warps of a group have the same cells in the same lanes.
  XLSTM_DEVICE void add_splits(A (&sums)[2][4]) {
    if constexpr (S::kSplits > 1) {
      auto& partial = s.partials.x;
      if (!has_cells()) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const A(&x)[4] = sums[tile];
          partial[part.split - 1][tile][state_index()] = {x[0], x[1], x[2], x[3]};
        }
      }
      device::sync_threads(XLSTM_MUTANT("resident_fwd: sums read before all warps wrote them"));
      if (!has_cells()) return;
#pragma unroll
      for (int i = 0; i < (S::kSplits - 1) * 2; ++i) {
        const auto other = partial[i / 2][i % 2][state_index()];
#pragma unroll
        for (int x = 0; x < 4; ++x) sums[i % 2][x] += other.x[x];
      }
    }
  }

  // ---- a step ----

  // What h of the next step does not wait for: results of the step before go out and x of a later one comes in.
  XLSTM_DEVICE void move_rows() {
    moved.move(before, slot, turn);
    slot = (slot + 1) % S::kRing;
  }

  XLSTM_DEVICE void step(const Weights& weights, int t, int tile) {
    A sums[2][4] = {}, odd[2][4] = {};
#pragma unroll
    for (int i = 0; kStartsWithX && i < 8; ++i) sums[i / 4][i % 4] = x[i / 4][i % 4];
    // While tensor cores work on a product: that of warps without cells, or the warp's own.
    constexpr bool kMovesFirst = S::kSplits > 1;
    const HiddenRows<S>& h = exchange.wait(t, tile);
    if (kMovesFirst && has_cells()) move_rows();
    multiply(sums, odd, weights, h);
    device::Pack<A, 2> state[kMaxCarried];
    if (has_cells() && kRoomy) load_state(state, tile);
    if (!kMovesFirst && has_cells()) move_rows();
    if (S::kResultBuffers == 1 && S::kSplits == 1) {
      device::sync_threads(XLSTM_MUTANT("resident_fwd: results written before all warps moved those before"));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] += odd[i / 4][i % 4];
    add_splits(sums);
    if (!has_cells()) return;
    if (!kRoomy) load_state(state, tile);
    with_cell<Math>(p.cell, [&](auto functor) { advance(functor, sums, state, t, tile); });
    moved.wait_for_x();
  }

  XLSTM_DEVICE void load_state(device::Pack<A, 2> (&state)[kMaxCarried], int tile) const {
#pragma unroll
    for (int n = 0; n < kMaxCarried; ++n) state[n] = s.state[tile][n][state_index()];
  }

  // Past the end of a row: zeros, and the state stays.
  template <class Cell>
  struct Cells {
    A state[2][Cell::kStates], saved[2][kSaved], h[2];
  };

  template <class Cell>
  XLSTM_DEVICE void advance(const Cell& functor, A (&sums)[2][4], const device::Pack<A, 2> (&state)[kMaxCarried], int t,
                            int tile) {
    Cells<Cell> c;
#pragma unroll
    for (int n = 0; n < Cell::kStates; ++n) c.state[0][n] = state[n].x[0], c.state[1][n] = state[n].x[1];
    if (p.reset.data) start_anew(c, sums, t, tile);
    read_x();
#pragma unroll
    for (int i = 0; !kStartsWithX && i < 8; ++i) sums[i / 4][i % 4] += x[i / 4][i % 4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const A raw[kGates] = {sums[0][i], sums[0][2 + i], sums[1][i], sums[1][2 + i]};
      c.h[i] = functor.forward(raw, c.state[i], c.saved[i]);
    }
    if (t + 1 >= rows.full_steps(tile)) end_rows(c, t, tile);
    put(c, t, tile);
  }

  // Rows with a reset: no state, and of the sums, which depend on h of their row alone, only x and b.
  template <class Cell>
  XLSTM_DEVICE void start_anew(Cells<Cell>& c, A (&sums)[2][4], int t, int tile) {
    A empty[Cell::kStates];
    Cell::load_state(UnitState<A>{}, empty);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!reset[i]) continue;
#pragma unroll
      for (int gate = 0; gate < kGates && !XLSTM_MUTANT("resident_fwd: h is not reset"); ++gate) {
        sums[gate / 2][gate % 2 * 2 + i] = kStartsWithX ? x[gate / 2][gate % 2 * 2 + i] : 0;
      }
#pragma unroll
      for (int n = 0; n < Cell::kStates && !XLSTM_MUTANT("resident_fwd: the state is not reset"); ++n) {
        c.state[i][n] = empty[n];
      }
    }
    Position following{t, tile};
    following.next(team.tiles);
    load_reset(following);
  }

  template <class Cell>
  XLSTM_DEVICE void end_rows(Cells<Cell>& c, int t, int tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int tokens = rows.length(tile, cell.row + i);
      if (t >= tokens) {
        c.h[i] = 0;
#pragma unroll
        for (int x = 0; x < kSaved; ++x) c.saved[i][x] = 0;
#pragma unroll
        for (int x = 0; x < Cell::kStates; ++x) c.state[i][x] = s.state[tile][x][state_index()].x[i];
      } else if (t + 1 == tokens && cell.unit < units) {
        const int64_t at = state_offset(device::opaque(tile), i);  // here, not in every step
        store_unit_state(p.final_state, at, Cell::store_state(c.state[i]));
        static_cast<A*>(p.final_state.h)[at] = device::widen<A>(device::narrow<T>(c.h[i]));
      }
    }
  }

  // Units past the head have no weights, but zero times an infinite h is NaN: that of theirs is zero.
  template <class Cell>
  XLSTM_DEVICE void put(const Cells<Cell>& c, int t, int tile) {
    using Pair = device::Pack<T, 2>;
    const bool exists = first_unit + cell.unit < static_cast<int>(p.shape.head_dim) ||
                        XLSTM_MUTANT("resident_fwd: h of units past the head is not cleared");
    const Pair h = narrow_one_nan<T>(exists ? c.h[0] : 0, exists ? c.h[1] : 0);
    exchange.put(t, tile, first_unit, h);
    Pair saved[kSaved];
#pragma unroll
    for (int x = 0; x < kSaved; ++x) saved[x] = device::narrow_two<T>(c.saved[0][x], c.saved[1][x]);
    auto& results = s.tiles.results[part.group].tile[ForwardTiles<S>::buffer(turn)].x;
    turn ^= 1;
    write_cells(&results[0][0][0], {saved[0], saved[1], saved[2], saved[3]});
    write_cells(&results[kSaved - 1][0][0], {saved[4], h});
#pragma unroll
    for (int x = 0; x < Cell::kStates; ++x) s.state[tile][x][state_index()] = {{c.state[0][x], c.state[1][x]}};
    if (!XLSTM_MUTANT("resident_fwd: results read before all lanes wrote them")) __syncwarp();
    exchange.send(t, tile, first_unit, results[kSaved]);
  }
};

// Per multiprocessor. Heads of a single block and of 16 bits run side by side where there are many: nine warps leave 96
// registers a thread for two blocks.
template <class S>
constexpr int kResidentForward = S::kHasMover ? 2 : 1;

template <class S>
__global__ void __launch_bounds__(S::kBlockThreads, kResidentForward<S>)
    resident_fwd_kernel(const __grid_constant__ RecurrentForwardParams<void> p, RecurrentPlan plan, void* padded_h) {
  if constexpr (S::kVariant != Variant::cluster || XLSTM_SM90) {
    XLSTM_SHARED(ForwardMemory<S>, s);
    const Team team = team_of(blockIdx.x, p.shape, plan);
    if constexpr (S::kHasMover) {
      if (threadIdx.x >= S::kThreads) return ForwardMover<S>(p, team, s.scan.tiles, s.scan.lengths).run();
    }
    typename ForwardScan<S>::Weights weights;
    load_weights<S>(weights, s, p, team);
    __syncthreads();
    ForwardScan<S>(p, team, s.scan, padded_h).run(weights);
  } else {
    __trap();  // compiled for a device without clusters: launches refuse it
  }
}

template <class S>
cudaError_t launch_resident_fwd(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                                cudaStream_t stream) {
  device::Launch l;
  l.block = dim3(S::kBlockThreads);
  l.shared_bytes = sizeof(ForwardMemory<S>);
  l.name = "resident_fwd";
  l.stream = stream;
  return launch_teams(l, resident_fwd_kernel<S>, p, plan, padded_h);
}

// The plans of one kind of products (plan.cpp says which there are).
template <class F>
cudaError_t launch_fwd(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                       cudaStream_t stream) {
  constexpr bool kHalf = sizeof(typename F::Element) == 2, kTeams = sizeof(typename F::Element) < 8;
  const auto run = [&](auto shape) { return launch_resident_fwd<decltype(shape)>(p, plan, padded_h, stream); };
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
