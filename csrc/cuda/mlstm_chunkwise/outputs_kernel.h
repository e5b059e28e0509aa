#pragma once
// The kernel of outputs.h, for the sources that instantiate it, one per product.
//
// A block computes 64 rows x (64 x blocks) columns. Its work is one list of steps, each of them the product of 16 rows
// a warp with one tile of an operand: first those of the state, then for every tile of tokens those of the scores X Y^T
// and those of their product with Z. The tiles come through a ring, two steps ahead. Accumulators and scores stay in
// registers, and what is the same for all threads in shared memory.
#include "cuda/mlstm_chunkwise/outputs_block.h"
#include "cuda/mlstm_chunkwise/outputs_instances.h"
#include "cuda/mlstm_chunkwise/outputs_rows.h"

namespace xlstm::cuda {
namespace {

using namespace device;

// ---- products ----

// d (16 x 64) += rows m .. of x times a tile.
template <Product P, bool kTransposed, class T>
XLSTM_DEVICE void multiply_x(Accumulator<P> (&d)[8][4], const TallTile<Element<P>>& x, int m, const T& tile) {
  using F = Fragments<P>;
#pragma unroll
  for (int k = 0; k < kTileDepth<Element<P>>; k += F::kDepth) {
    typename F::A a;
    if constexpr (kTransposed) {
      F::load_a_paired(a, x, m, k);
    } else {
      F::load_a(a, x, m, k);
    }
    multiply<P, kTransposed>(d, a, tile, k);
  }
}

// d (16 x 64) += the columns of P that belong to a group of tokens times the tile of these tokens.
template <Product P>
XLSTM_DEVICE void multiply_scores(Accumulator<P> (&d)[8][4], const Accumulator<P> (&scores)[8][4], int group,
                                  const WideTile<Element<P>>& tile) {
  using F = Fragments<P>;
  constexpr int kSteps = kTileDepth<Element<P>> / F::kDepth;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    typename F::A a;
    F::to_a(a, scores, group * kSteps + i);
    multiply<P, true>(d, a, tile, i * F::kDepth);
  }
}

// sums += rows m .. of x times a vector.
template <Product P>
XLSTM_DEVICE void dot_x(Accumulator<P> (&sums)[2], const TallTile<Element<P>>& x, int m, const Accumulator<P>* vector) {
  using F = Fragments<P>;
#pragma unroll
  for (int k = 0; k < kTileDepth<Element<P>>; k += F::kDepth) {
    typename F::A a;
    F::load_a_paired(a, x, m, k);
    F::dot(sums, a, vector + k);
  }
}

// What a warp has of its 16 rows.
template <Product P, int kMaxBlocks>
struct Sums {
  using A = Accumulator<P>;
  A acc[kMaxBlocks][8][4] = {}, scores[8][4] = {};
  A of_p[2] = {}, of_n[2] = {};  // h: this lane's parts of the rows of P, and of X times n
};

// acc = X state, for one block of columns and one depth of X; after the last depth times the weights of the state.
template <Product P, OutputKind O, int kMaxBlocks>
XLSTM_DEVICE void add_state(Sums<P, kMaxBlocks>& sums, OutputsShared<P>& s, const TileStep& step, int m,
                            const TallTile<Element<P>>& x, const Stage<Element<P>>& tile, Accumulator<P> scale) {
#pragma unroll
  for (int n = 0; n < kMaxBlocks; ++n) {
    if (step.n != n) continue;
    if constexpr (kStateTransposed<O>) {
      multiply_x<P, true>(sums.acc[n], x, m, tile.wide);
    } else {
      multiply_x<P, false>(sums.acc[n], x, m, tile.tall);
    }
    if (step.k + 1 < s.schedule.depth) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m + lane_group() + 8 * half;
      const Accumulator<P> weight = s.rows.of_state[row] * (O == OutputKind::dq ? scale * s.rows.iota[row] : 1);
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        Accumulator<P>& x = sums.acc[n][j / 2][2 * half + j % 2];
        x = times_weight(x, weight);
      }
    }
  }
}

template <Product P, int kMaxBlocks>
XLSTM_DEVICE void add_scores(Sums<P, kMaxBlocks>& sums, const TileStep& step, int m, const TallTile<Element<P>>& x,
                             const TallTile<Element<P>>& y) {
  if (step.k == 0) {
#pragma unroll
    for (int i = 0; i < 32; ++i) sums.scores[i / 4][i % 4] = 0;
  }
  multiply_x<P, false>(sums.scores, x, m, y);
}

template <Product P, int kMaxBlocks>
XLSTM_DEVICE void add_values(Sums<P, kMaxBlocks>& sums, const TileStep& step, const WideTile<Element<P>>& z) {
#pragma unroll
  for (int n = 0; n < kMaxBlocks; ++n) {
#pragma unroll
    for (int group = 0; group < kTileRows / kTileDepth<Element<P>>; ++group) {
      if (step.n == n && step.k == group) multiply_scores<P>(sums.acc[n], sums.scores, group, z);
    }
  }
}

// ---- the kernel ----

// Per multiprocessor: 168 registers a thread, or 255.
template <Product P, int kMaxBlocks>
constexpr int kResidentBlocks = kMaxBlocks == 2 && P != Product::tf32x3 ? 3 : 2;

template <Product P, OutputKind O, int kMaxBlocks>
__global__ void __launch_bounds__(kTileThreads, (kResidentBlocks<P, kMaxBlocks>))
    outputs(MlstmOutputsParams<Accumulator<P>> p, OutputsTiling tiling) {
  using A = Accumulator<P>;
  XLSTM_SHARED(OutputsShared<P>, s);
  constexpr bool kCalls = kMaxBlocks < 4;  // with all registers in use, calls would move sums about where h is stored
  const Loader<P, O, kCalls> loader = {p, s, tiling.resident};
  if (threadIdx.x % 32 == 0) loader.prepare(tiling);
  __syncthreads();
  if (s.at.first_row >= s.at.tokens) return;

  TileStep ahead = s.schedule.first();
  const auto load_next = [&](int stage) {
    if (ahead.phase != Phase::end) {
      loader.load(ahead, stage);
      s.schedule.advance(ahead);
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) load_next(stage);
  loader.load_rows();
  if (O == OutputKind::h && s.schedule.has_state) loader.load_n();

  const A scale = static_cast<A>(p.options.scale);
  const int warp = threadIdx.x / 32, m = 16 * warp;
  const int x_row = XLSTM_MUTANT("mlstm_outputs: rows of another warp") ? m ^ 16 : m;
  Sums<P, kMaxBlocks> sums;
  int stage = 0;
  for (TileStep step = s.schedule.first(); step.phase != Phase::end; s.schedule.advance(step)) {
    cp_async_wait<kStages - 2>(XLSTM_MUTANT("mlstm_outputs: one group too few is waited for"));
    // Now everybody's copies are there, and nobody reads the stage of the step before any more.
    sync_threads(XLSTM_MUTANT("mlstm_outputs: no barrier before a step"));
    const int before = stage == 0 ? kStages - 1 : stage - 1;
    load_next(XLSTM_MUTANT("mlstm_outputs: a stage is filled while it is read") ? stage : before);

    const Stage<Element<P>>& tile = s.ring[stage];
    const TallTile<Element<P>>& x = loader.x_tile(step, stage);
    if (step.phase == Phase::state) {
      if (O == OutputKind::h && step.n == 0) {
        dot_x<P>(sums.of_n, x, x_row, s.n(tiling.resident) + step.k * kTileDepth<Element<P>>);
      }
      add_state<P, O>(sums, s, step, x_row, x, tile, scale);
    } else if (step.phase == Phase::scores) {
      add_scores(sums, step, x_row, x, tile.tall);
      if (step.k + 1 == s.schedule.depth) {
        weigh<O, P == Product::tf32x3>(sums.scores, s.rows, m, loader.columns(step.tile), step.tile, s.at, scale,
                                       sums.of_p);
      }
    } else {
      add_values(sums, step, tile.wide);
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  __syncthreads();  // the exchange lies where the tiles were
  const OutputRows<A> rows = {s.at, s.rows, s.exchange(), s.schedule.has_state, s.schedule.blocks};
  store_output<P, O>(p, rows, tiling.column_tiles, m, sums.acc, sums.of_p, sums.of_n);
}

// ---- launch ----

template <Product P, OutputKind O, int kMaxBlocks>
cudaError_t launch_output(const MlstmOutputsParams<Accumulator<P>>& p, OutputsTiling tiling, cudaStream_t stream) {
  const int64_t chunks = p.shape.batch * p.shape.num_heads * tiling.slots;
  const int64_t blocks = chunks * tiling.row_tiles * tiling.column_tiles;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  tiling.resident = outputs_shared_bytes<P, O>(p.shape, true) <= max_shared_bytes();
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks));
  l.block = dim3(kTileThreads);
  l.shared_bytes = outputs_shared_bytes<P, O>(p.shape, tiling.resident);
  l.name = "mlstm outputs";
  l.stream = stream;
  return launch(l, outputs<P, O, kMaxBlocks>, p, tiling);
}

template <Product P, int kMaxBlocks>
cudaError_t launch_outputs(const MlstmOutputsParams<Accumulator<P>>& p, const OutputsTiling& tiling,
                           cudaStream_t stream) {
  switch (p.output) {
    case OutputKind::h:
      return launch_output<P, OutputKind::h, kMaxBlocks>(p, tiling, stream);
    case OutputKind::dq:
      return launch_output<P, OutputKind::dq, kMaxBlocks>(p, tiling, stream);
    case OutputKind::dk:
      return launch_output<P, OutputKind::dk, kMaxBlocks>(p, tiling, stream);
    case OutputKind::dv:
      return launch_output<P, OutputKind::dv, kMaxBlocks>(p, tiling, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace xlstm::cuda
