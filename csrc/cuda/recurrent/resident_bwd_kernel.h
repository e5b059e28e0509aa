#pragma once
// The backward scan with R on the chip (docs/kernels/recurrent.md). Per step a block computes d raw of its own hidden
// units from their dh, which is R^T d raw of all units a step later. How that comes about is a class of its own:
//   DhByParts, DhByGather
//   start()                                before the loop, all threads
//   receive(tile, message, reader)         all threads: dh of a thread's two cells, from d raw of step `message`
//   send(t, tile, message, draw, move)     all threads, behind a barrier: what others need of d raw
// Steps and messages count from 0, tokens t from the last one down.
#include "cuda/recurrent/dh_by_gather.h"
#include "cuda/recurrent/dh_by_parts.h"
#include "cuda/recurrent/resident_bwd_rows.h"
#include "cuda/recurrent/scan.h"

namespace xlstm::cuda {
namespace {

using namespace device;

// kDimension: the longest head.
template <class F_, int kUnits_, int kThreads_, Variant kVariant_>
struct BwdTraits {
  using F = F_;
  using T = typename F::Element;
  using A = typename F::Sum;
  static constexpr Variant kVariant = kVariant_;
  static constexpr int kUnits = kUnits_, kThreads = kThreads_, kWarps = kThreads / 32, kTiles = max_tiles(kVariant);
  // A warp beside these that only moves rows (resident_bwd_rows.h): where registers are left for one.
  static constexpr bool kHasMover = kVariant == Variant::block && kUnits == kResidentUnits && sizeof(T) == 2;
  static constexpr int kBlockThreads = kThreads + (kHasMover ? 32 : 0);
  static constexpr bool kRoomy = kThreads <= 256;  // more than 128 registers, or no rows to move
  static constexpr int kDimension =
      kVariant == Variant::block ? kUnits : static_cast<int>(resident_head_dim(F::kDepth, kUnits));
  // Cells: a warp has 8 units and all rows. Of warps with the same units, which may add up other sources, one has them.
  static constexpr int kGroups = kUnits / kWarpUnits, kHelpers = kWarps / kGroups;
  // Tokens under way. One: no room for more where a block may have 99 KB, and each is waited for.
  static constexpr int kRing = sizeof(T) == 8 ? 1 : sizeof(T) == 4 ? 2 : kThreads > 256 ? 3 : 4;
  static constexpr int kPitch = padded_pitch<T>(kGates * kUnits);
  // Of d raw. Parts of dh may have come while a warp still multiplies, so that others write the next d raw. In a grid
  // there is a barrier between.
  static constexpr int kDrawBuffers = kVariant == Variant::grid ? 1 : 2;
};

template <class C>
using Dh = std::conditional_t<C::kVariant == Variant::grid, DhByGather<C>, DhByParts<C>>;

constexpr int kMaxGrads = 3;

template <class C>
struct BwdShared {
  alignas(16) DrawRows<C> draw[C::kDrawBuffers];
  InputTiles<C> inputs;
  RowPair<typename C::A> grads[C::kTiles][kMaxGrads][C::kGroups * 32];  // carried; read and written by one thread
  RowLengths<C::kTiles> lengths;
  typename Dh<C>::Shared of_dh;
};

template <class C>
union BwdMemory {
  BwdShared<C> scan;
  typename Dh<C>::Stage weights[C::kWarps];
};

template <class C>
class BwdBlock {
  using F = typename C::F;
  using T = typename C::T;
  using A = typename C::A;
  using Math = CellMath<T>;
  using Draw = DrawRows<C>;
  static constexpr bool kGathers = C::kVariant == Variant::grid;

 public:
  // The weights come through memory that is used for the scan later.
  XLSTM_DEVICE BwdBlock(BwdMemory<C>& memory, const RecurrentBackwardParams<void>& params, const RecurrentPlan& plan,
                        void* padded_draw)
      : s(memory.scan),
        p(params),
        team(team_of(blockIdx.x, p.shape, plan)),
        rows(s.lengths, p.shape, team),
        moved(s.inputs, p, team, rows),
        of_dh(s.of_dh, memory.weights, p, team, rows, padded_draw) {
    __syncthreads();
  }

  XLSTM_DEVICE void run() {
    rows.find_lengths(p.shape, p.lengths);
    of_dh.start();
    __syncthreads();
    moved.find_access();
    if (has_cells()) {
      load_final();
      moved.fetch_first();
      load_reset(seqlen - 1, 0);
      moved.wait_for_first();
    }
    __syncthreads();
    int draw = 0;
#pragma unroll 1
    for (Position at; at.t < seqlen; at.next(team.tiles)) {
      draw = C::kDrawBuffers == 1 || XLSTM_MUTANT("resident_bwd: one buffer of d raw instead of two") ? 0 : 1 - draw;
      RowPair<A> dh{};
      if (at.t > 0) {
        dh = receive(at.tile, at.t - 1);
      } else if (C::kDrawBuffers == 1) {
        sync_threads(XLSTM_MUTANT("resident_bwd: d raw written over before it is read"));
      }
      const int t = seqlen - 1 - at.t;
      if (has_cells()) {
        step(t, at.tile, dh, s.draw[draw]);
        if (C::kRing > 1) moved.wait_for_inputs();
      }
      sync_threads(XLSTM_MUTANT("resident_bwd: d raw read before it is there"));
      of_dh.send(t, at.tile, at.t, s.draw[draw], [&] {
        if (has_cells()) move_rows(t, at.tile, s.draw[draw]);
      });
      if constexpr (C::kRing == 1) {
        moved.wait_for_inputs();
        __syncthreads();
      }
    }
#pragma unroll 1
    for (int tile = 0; tile < team.tiles; ++tile) {
      RowPair<A> dh{};
      if (seqlen > 0 && !XLSTM_MUTANT("resident_bwd: a block leaves before the last message"))
        dh = receive(tile, seqlen - 1);
      if (has_cells()) store_initial(tile, dh);
      // Sums that warps passed on have been read.
      if (C::kHelpers > 1 || kGathers) sync_threads(XLSTM_MUTANT("resident_bwd: last sums written over"));
    }
    cp_async_wait<0>();
  }

 private:
  BwdShared<C>& s;
  const RecurrentBackwardParams<void>& p;
  const Team team;
  const BatchRows<C::kTiles> rows;
  const CellLane cell;
  const int group = static_cast<int>(threadIdx.x) / 32 % C::kGroups;
  const int helper = C::kHelpers > 1 ? static_cast<int>(threadIdx.x) / 32 / C::kGroups : 0;
  const int first_unit = team.rank * C::kUnits + group * kWarpUnits;  // of the head
  const int units = static_cast<int>(p.shape.head_dim) - first_unit;  // that exist, of 8
  const int seqlen = static_cast<int>(p.shape.seqlen);
  uint8_t reset[2] = {};    // before the token after the one to come
  unsigned slot = 0;        // of the ring: inputs of this step
  BwdRowsOfCells<C> moved;  // before of_dh: the other way round the blocks of 128 units spill on sm_90a
  Dh<C> of_dh;

  XLSTM_DEVICE bool has_cells() const { return C::kHelpers == 1 || helper == 0; }
  XLSTM_DEVICE int cell_index() const { return group * 32 + threadIdx.x % 32; }
  XLSTM_DEVICE bool exists(int tile, int i) const { return cell.unit < units && rows.exists(tile, cell.row + i); }
  XLSTM_DEVICE int64_t state_offset(int tile, int i) const {
    return rows.number(tile, cell.row + i) * p.shape.hidden() + team.head * p.shape.head_dim + first_unit + cell.unit;
  }

  // ---- before the first step ----

  XLSTM_DEVICE void load_final() {
    for (int tile = 0; tile < team.tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool there = exists(tile, i);
        const int64_t at = state_offset(tile, i);
        const UnitState<A> final = there ? load_unit_state<A>(p.final_state, at) : UnitState<A>{},
                           grad = there ? load_unit_state<A>(p.final_state_grad, at) : UnitState<A>{};
        with_cell<Math>(p.cell, [&](auto functor) {
          constexpr int kGrads = decltype(functor)::kGrads;
          A d[kGrads];
          functor.load_grad(final, grad, d);
#pragma unroll
          for (int n = 0; n < kMaxGrads; ++n) {
            s.grads[tile][n][cell_index()].x[i] = n < kGrads ? d[n < kGrads ? n : 0] : A{0};
          }
        });
      }
    }
  }

  // ---- inputs ----

  XLSTM_DEVICE void load_reset(int t, int tile) {
    const uint8_t* flags = reinterpret_cast<const uint8_t*>(p.reset.data);
    if (!flags || t < 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      reset[i] = t + 1 < rows.length(tile, cell.row + i) && reset_before(t + 1, tile, i);
    }
  }
  XLSTM_DEVICE bool reset_before(int t, int tile, int i) const {
    const int64_t at = rows.offset(tile, cell.row + i, t, p.reset.batch, p.reset.time);
    return reinterpret_cast<const uint8_t*>(p.reset.data)[at] != 0;
  }

  XLSTM_DEVICE RowPair<A> receive(int tile, int message) {
    const bool wanted = cell.unit < units && rows.exists(tile, cell.row);
    return of_dh.receive(tile, message, {group * kWarpUnits + cell.unit, cell.row, helper, wanted});
  }

  // ---- a step ----

  // d raw of a token: for the product, which takes it rounded.
  XLSTM_DEVICE void step(int t, int tile, RowPair<A>& dh, Draw& draw) {
    __syncwarp();
    A inputs[kInputs][2];
    {
      A first[4][2], last[2][2];
      read_cells(first, s.inputs[group].tile[slot]);
      read_cells<4>(last, s.inputs[group].tile[slot]);
#pragma unroll
      for (int i = 0; i < kInputs * 2; ++i)
        inputs[i / 2][i % 2] = i < 8 ? first[i / 2 % 4][i % 2] : last[i / 2 % 2][i % 2];
    }
    RowPair<A> grads[kMaxGrads];
#pragma unroll
    for (int n = 0; n < kMaxGrads; ++n) grads[n] = s.grads[tile][n][cell_index()];
    if (p.reset.data) drop_after_reset(grads, dh, t, tile);
    const bool rows_end = t + 1 >= rows.full_steps(tile);  // with this token, or before it
    if (rows_end) end_rows(dh, t, tile);
    A d_raw[2][kGates];
    with_cell<Math>(p.cell, [&](auto functor) {
      constexpr int kGrads = decltype(functor)::kGrads;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        A saved[kSaved], d[kGrads];
#pragma unroll
        for (int x = 0; x < kSaved; ++x) saved[x] = inputs[x][i];
#pragma unroll
        for (int n = 0; n < kGrads; ++n) d[n] = grads[n].x[i];
        functor.backward(saved, inputs[kSaved][i] + dh.x[i], d, d_raw[i]);
#pragma unroll
        for (int n = 0; n < kGrads; ++n) grads[n].x[i] = d[n];
      }
    });
    if (rows_end) clear_past_the_end(grads, d_raw, t, tile);
    device::Pack<T, 2> pairs[kGates];
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) pairs[gate] = narrow_one_nan<T>(d_raw[0][gate], d_raw[1][gate]);
    write_cells<C::kPitch, C::kUnits>(&draw[0][group * kWarpUnits], pairs);
#pragma unroll
    for (int n = 0; n < kMaxGrads; ++n) s.grads[tile][n][cell_index()] = grads[n];
  }

  // Nothing comes from behind a reset.
  XLSTM_DEVICE void drop_after_reset(RowPair<A> (&grads)[kMaxGrads], RowPair<A>& dh, int t, int tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!reset[i] || XLSTM_MUTANT("resident_bwd: reset ignored")) continue;
      dh.x[i] = 0;
#pragma unroll
      for (int n = 0; n < kMaxGrads; ++n) grads[n].x[i] = 0;
    }
    const bool last_tile = tile + 1 == team.tiles;
    load_reset(last_tile ? t - 1 : t, last_tile ? 0 : tile + 1);
    __syncwarp();  // lanes have taken different ways, and matrices are next
  }

  // At the last token of a row dh is that of the final state.
  XLSTM_DEVICE void end_rows(RowPair<A>& dh, int t, int tile) const {
    const A* final = static_cast<const A*>(p.final_state_grad.h);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int left = rows.length(tile, cell.row + i) - t;
      if (left > 1) continue;
      dh.x[i] = left == 1 && final && cell.unit < units ? final[state_offset(tile, i)] : A{0};
    }
    __syncwarp();
  }

  // Rows without this token: zeros, and the carried gradients stay.
  XLSTM_DEVICE void clear_past_the_end(RowPair<A> (&grads)[kMaxGrads], A (&d_raw)[2][kGates], int t, int tile) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (t < rows.length(tile, cell.row + i)) continue;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) d_raw[i][gate] = 0;
#pragma unroll
      for (int n = 0; n < kMaxGrads; ++n) grads[n].x[i] = s.grads[tile][n][cell_index()].x[i];
    }
    __syncwarp();
  }

  XLSTM_DEVICE void move_rows(int t, int tile, const Draw& draw) {
    moved.move(t, tile, draw, slot);
    slot = (slot + 1) % C::kRing;
  }

  XLSTM_DEVICE void store_initial(int tile, const RowPair<A>& dh) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!exists(tile, i)) continue;
      const int64_t at = state_offset(tile, i);
      const A* last = static_cast<const A*>(p.final_state_grad.h);
      A* dh0 = static_cast<A*>(p.initial_state_grad.h) + at;
      UnitState<A> state = load_unit_state<A>(p.final_state_grad, at);
      if (rows.length(tile, cell.row + i) == 0) {  // the final state is the initial one
        *dh0 = last ? last[at] : A{0};
      } else {
        const bool empty = p.reset.data && reset_before(0, tile, i);
        *dh0 = empty ? A{0} : dh.x[i];
        with_cell<Math>(p.cell, [&](auto functor) {
          A d[decltype(functor)::kGrads];
#pragma unroll
          for (int n = 0; n < decltype(functor)::kGrads; ++n) d[n] = empty ? A{0} : s.grads[tile][n][cell_index()].x[i];
          state = functor.store_grad(load_unit_state<A>(p.initial_state, at), d);
        });
      }
      store_unit_state<A>(p.initial_state_grad, at, state);
    }
  }
};

// Per multiprocessor. Nine warps leave 96 registers a thread for two blocks.
template <class C>
constexpr int kResidentBackward = C::kHasMover ? 2 : 1;

template <class C>
__global__ void __launch_bounds__(C::kBlockThreads, kResidentBackward<C>)
    resident_bwd_kernel(const __grid_constant__ RecurrentBackwardParams<void> p, RecurrentPlan plan,
                        void* padded_draw) {
  if constexpr (C::kVariant != Variant::cluster || XLSTM_SM90) {
    XLSTM_SHARED(BwdMemory<C>, s);
    if constexpr (C::kHasMover) {
      if (threadIdx.x >= C::kThreads) {
        const Team team = team_of(blockIdx.x, p.shape, plan);
        return BwdMover<C>(s.scan.inputs, s.scan.draw, s.scan.lengths, p, team).run();
      }
    }
    BwdBlock<C>(s, p, plan, padded_draw).run();
  } else {
    __trap();  // compiled for a device without clusters: launches refuse it
  }
}

template <class F, int kUnits, int kThreads, Variant kVariant>
cudaError_t launch_bwd(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan, void* memory,
                       cudaStream_t stream) {
  using C = BwdTraits<F, kUnits, kThreads, kVariant>;
  device::Launch l;
  l.block = dim3(C::kBlockThreads);
  l.shared_bytes = sizeof(BwdMemory<C>);
  l.name = "resident_bwd";
  l.stream = stream;
  return launch_teams(l, resident_bwd_kernel<C>, p, plan, memory);
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
