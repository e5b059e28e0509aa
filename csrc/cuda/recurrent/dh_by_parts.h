#pragma once
// dh in a block or a cluster: a block has the rows of R of its own hidden units. It multiplies R^T with d raw of these,
// which is a part of dh for every unit of the head, and sends each part to the block that owns the unit (inbox.h).
#include "cuda/recurrent/fragments.h"
#include "cuda/recurrent/inbox.h"
#include "cuda/recurrent/warp_tile.h"

namespace xlstm::cuda {

// A warp has kMTiles tiles of 16 rows of R^T, its weights of kSteps products each in registers. Few tiles: kSplits
// warps share one, each with a part of the d raw, and count as sources of their own.
template <class C>
struct PartsTraits : C {
  static constexpr int kAllMTiles = C::kDimension / 16;
  static constexpr int kSplits = kAllMTiles < C::kWarps ? C::kWarps / kAllMTiles : 1;
  static constexpr int kTileWarps = C::kWarps / kSplits;
  static constexpr int kMTiles = kAllMTiles / kTileWarps;
  static constexpr int kSplitGates = kGates * C::kUnits / kSplits;  // d raw of a split
  static constexpr int kSteps = kSplitGates / C::F::kDepth;
  // Sums of a tile that do not wait for each other; of many warps, some multiply while others wait.
  static constexpr int kChains = kMTiles >= 4 ? 1 : (C::kWarps > 8 ? 2 : 4) / kMTiles;
  static constexpr int kSources = C::kDimension / C::kUnits * kSplits;
  static_assert(kMTiles * kSteps * sizeof(typename C::F::Weights) <= (C::kThreads > 256 ? 256 : 512));
  static_assert(kSplits == 1 || C::kVariant == Variant::block);
};

template <class C>
using Inbox = std::conditional_t<C::kVariant == Variant::block, BlockInbox<C>, ClusterInbox<C>>;

// Sums of the helpers, for the warp that has the cells.
template <class C, bool = (C::kHelpers > 1)>
struct HelperSums {};
template <class C>
struct HelperSums<C, true> {
  RowPair<typename C::A> x[C::kHelpers - 1][C::kGroups * 32];
};

template <class C>
class DhByParts {
  using P = PartsTraits<C>;
  using F = typename C::F;
  using T = typename C::T;
  using A = typename C::A;
  using Sums = A[P::kMTiles][P::kChains][4];

 public:
  struct Shared {
    typename Inbox<P>::Shared inbox;
    HelperSums<C> helpers;
  };
  using Stage = WeightStage<F, P::kMTiles, P::kSteps, C::kWarps>;

  XLSTM_DEVICE DhByParts(Shared& shared, Stage (&stage)[C::kWarps], const RecurrentBackwardParams<void>& params,
                         const Team& of, const BatchRows<C::kTiles>& of_rows, void*)
      : s(shared), p(params), team(of), rows(of_rows), inbox(s.inbox, p, team) {
    load_weights(stage[warp()]);
  }

  XLSTM_DEVICE void start() { inbox.start(); }

  // The sums of all sources for two cells.
  XLSTM_DEVICE RowPair<A> receive(int tile, int message, const Reader& reader) {
    RowPair<A> sum = inbox.receive(tile, message, reader);
    if constexpr (C::kHelpers > 1) {
      const int cells = threadIdx.x % (C::kGroups * 32);
      if (reader.helper > 0) s.helpers.x[reader.helper - 1][cells] = sum;
      device::sync_threads(XLSTM_MUTANT("resident_bwd: sums of helpers read before they are there"));
      if (reader.helper > 0) return {};
#pragma unroll
      for (int i = 0; i < C::kHelpers - 1; ++i) {
        const RowPair<A> other = s.helpers.x[i][cells];
        sum.x[0] += other.x[0], sum.x[1] += other.x[1];
      }
    }
    return sum;
  }

  // This warp's part for all units of the head. move(): what the next step does not wait for.
  template <class Move>
  XLSTM_DEVICE void send(int, int tile, int message, const T (&draw)[kBatchTile][C::kPitch], Move move) {
    const int D = static_cast<int>(p.shape.head_dim), count = rows.count(tile);
    inbox.expect(tile, message, count);
    Sums sums = {};
    multiply(sums, draw);
    constexpr bool kMovesFirst = C::kVariant == Variant::block;  // while tensor cores work; or messages travel
    if (kMovesFirst) move();
    const CellLane cell;
    const int source = team.rank * P::kSplits + split();
#pragma unroll
    for (int i = 0; i < P::kMTiles; ++i) {
      if (first_in(i) >= D || cell.row >= count) continue;
#pragma unroll
      for (int chain = 1; chain < P::kChains; ++chain) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][0][j] += sums[i][chain][j];
      }
      const A(&sum)[4] = sums[i][0];
      const int unit = first_in(i) % C::kUnits + cell.unit, of_unit = first_in(i) / C::kUnits;
      const int owner =
          XLSTM_MUTANT("resident_bwd: sums sent to another block") ? (of_unit + 1) % team.blocks : of_unit;
      inbox.send(owner, tile, message, source, unit, cell.row, sum[0], sum[1]);
      inbox.send(owner, tile, message, source, unit + 8, cell.row, sum[2], sum[3]);
    }
    if (!kMovesFirst) move();
  }

 private:
  Shared& s;
  const RecurrentBackwardParams<void>& p;
  const Team team;
  const BatchRows<C::kTiles> rows;
  Inbox<P> inbox;
  typename F::Weights weights[P::kMTiles][P::kSteps];

  XLSTM_DEVICE static int warp() { return threadIdx.x / 32; }
  XLSTM_DEVICE static int split() { return warp() / P::kTileWarps; }
  // Tiles of R^T are dealt in turn, so that each warp has some where the head is short.
  XLSTM_DEVICE static int first_in(int mtile) { return (mtile * P::kTileWarps + warp() % P::kTileWarps) * 16; }

  // Of R^T: rows `in` of the head, columns the d raw of this split.
  XLSTM_DEVICE void load_weights(Stage& stage) {
    const int D = static_cast<int>(p.shape.head_dim), first = team.rank * C::kUnits, count = D - first;
    const T* from = static_cast<const T*>(p.R.data) + team.head * p.R.head + first * p.R.out;
    cuda::load_weights<F>(weights, stage, p.R.in != 1, [&](int mtile, int row, int k) {
      const int column = split() * P::kSplitGates + k, gate = column / C::kUnits, out = column % C::kUnits;
      const int in = first_in(mtile) + row;
      return in < D && out < count ? from[gate * p.R.gate + out * p.R.out + in * p.R.in] : T{};
    });
  }

  XLSTM_DEVICE void multiply(Sums& sums, const T (&draw)[kBatchTile][C::kPitch]) const {
    const T* from = &draw[0][split() * P::kSplitGates];
    if constexpr (kFewRows<F> > 0) {
      if (p.shape.batch <= kFewRows<F>) return multiply_few(sums, from);
    }
    constexpr int kAtOnce = 4;
    static_assert(P::kSteps % kAtOnce == 0);
#pragma unroll
    for (int first = 0; first < P::kSteps; first += kAtOnce) {
      typename F::Values values[kAtOnce];
      F::load_values(values, from + first * F::kDepth, C::kPitch);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
        for (int i = 0; i < P::kMTiles; ++i) F::multiply(sums[i][k % P::kChains], weights[i][first + k], values[k]);
      }
    }
  }

  XLSTM_DEVICE void multiply_few(Sums& sums, const T* from) const {
#pragma unroll
    for (int step = 0; step < P::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < P::kMTiles; ++i) {
        F::multiply_few(sums[i][step % P::kChains], weights[i][step], from + step * F::kDepth, C::kPitch);
      }
    }
#pragma unroll
    for (int i = 0; i < P::kMTiles * P::kChains; ++i) F::finish_few(sums[i / P::kChains][i % P::kChains]);
  }
};

}  // namespace xlstm::cuda
