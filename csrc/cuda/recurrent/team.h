#pragma once
// Shared by the resident kernels of both directions: the place of a block in its team, and its rows of the batch.
#include "cuda/device/device.h"
#include "cuda/recurrent/cells.h"
#include "cuda/recurrent/plan.h"
#include "cuda/recurrent/unit_state.h"

namespace xlstm::cuda {

// plan.blocks blocks with consecutive numbers are a team (a cluster where the plan says so). Team `index` of a head
// takes the batch tiles index, index + teams, ..: `tiles` of them. A launch has the teams from plan.first_team on.
struct Team {
  int rank, blocks;  // this block, and how many share the head's units
  int index, teams, tiles;
  int rows;  // of a tile
  int head;

  // First batch row of its tile number k.
  XLSTM_DEVICE int first_row(int k) const { return (index + k * teams) * rows; }
};

XLSTM_DEVICE Team team_of(int block, const RecurrentShape& shape, const RecurrentPlan& plan) {
  const int of_head = plan.first_team + block / plan.blocks, heads = static_cast<int>(shape.num_heads);
  const int index = of_head / heads;
  const int all = static_cast<int>((shape.batch + plan.rows - 1) / plan.rows);
  const int tiles = (all - index + plan.teams - 1) / plan.teams;
  return {block % plan.blocks, plan.blocks, index, plan.teams, tiles, plan.rows, of_head % heads};
}

// Tokens of a batch row. On a device lengths are not checked to be in [0, seqlen].
XLSTM_DEVICE int tokens_of(const RecurrentShape& shape, const int64_t* lengths, int64_t row) {
  return static_cast<int>(lengths ? max(int64_t{0}, min(lengths[row], shape.seqlen)) : shape.seqlen);
}

// What a block keeps of its batch rows in shared memory.
template <int kTiles>
struct RowLengths {
  int tokens[kTiles][kBatchTile];  // 0 of rows that do not exist
  int full_steps[kTiles];          // tokens that all rows of the tile have
};

// The batch rows of a block, by tile and place in it: where they are, and which of their tokens the head takes as
// number t. Numbers of rows and tokens fit 32 bits (launch_teams), so that an address costs few instructions.
template <int kTiles>
class BatchRows {
 public:
  XLSTM_DEVICE BatchRows(RowLengths<kTiles>& of_rows, const RecurrentShape& shape, const Team& team)
      : lengths(of_rows),
        tiles(team.tiles),
        first(team.first_row(0)),
        step(team.teams * team.rows),
        end(end_of(static_cast<int>(shape.batch), team)),
        seqlen(static_cast<int>(shape.seqlen)),
        reversed(device::opaque(static_cast<int>(shape.is_reversed(team.head)))),
        first_token(device::opaque(reversed ? seqlen - 1 : 0)),
        direction(device::opaque(reversed ? -1 : 1)) {}

  // By all threads, before the rest; a barrier follows.
  XLSTM_DEVICE void find_lengths(const RecurrentShape& shape, const int64_t* of_batch) const {
    if (threadIdx.x >= kTiles) return;
    const int tile = threadIdx.x;
    int full = seqlen;
    for (int row = 0; row < kBatchTile; ++row) {
      const bool there = tile < tiles && exists(tile, row);
      const int tokens = there ? tokens_of(shape, of_batch, number(tile, row)) : 0;
      lengths.tokens[tile][row] = tokens;
      if (there) full = min(full, tokens);
    }
    lengths.full_steps[tile] = full;
  }

  XLSTM_DEVICE int length(int tile, int row) const { return lengths.tokens[tile][row]; }
  XLSTM_DEVICE int full_steps(int tile) const { return lengths.full_steps[tile]; }
  // Whether no row of a reversed head ends early: then plain_index and plain_offset hold.
  XLSTM_DEVICE bool are_plain() const {
    bool all = true;
    for (int tile = 0; tile < tiles; ++tile) all &= full_steps(tile) == seqlen;
    return all || !reversed;
  }

  XLSTM_DEVICE int number(int tile, int row) const { return first + tile * step + row; }
  // Rows past the batch and past the tile do not. Of a team with several tiles each has all of kBatchTile (plan.h), so
  // that one end, past the last of its rows, serves for both.
  XLSTM_DEVICE bool exists(int tile, int row) const { return number(tile, row) < end; }
  XLSTM_DEVICE int count(int tile) const { return min(kBatchTile, end - number(tile, 0)); }
  // RecurrentShape::token
  XLSTM_DEVICE int token(int tile, int row, int t) const {
    if (!reversed) return t;
    const int count = length(tile, row);
    return t < count ? count - 1 - t : t;
  }
  // The token among all of the batch.
  XLSTM_DEVICE uint64_t index(int tile, int row, int t) const { return index_of(tile, row, token(tile, row, t)); }
  XLSTM_DEVICE uint64_t index_of(int tile, int row, int token) const {
    return uint64_t{unsigned_(number(tile, row))} * unsigned_(seqlen) + unsigned_(token);
  }
  // token() of several rows, kStep apart, with one branch.
  template <int kStep, int kCount>
  XLSTM_DEVICE void tokens_at(int (&of_rows)[kCount], int tile, int row, int t) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of_rows[i] = t;
    if (!reversed) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) of_rows[i] = token(tile, row + i * kStep, t);
  }
  // Of the token, from the first row's first one.
  XLSTM_DEVICE int64_t offset(int tile, int row, int t, int64_t batch_stride, int64_t time_stride) const {
    return offset_of(tile, row, token(tile, row, t), batch_stride, time_stride);
  }
  // The same without branches.
  XLSTM_DEVICE uint64_t plain_index(int tile, int row, int t) const { return index_of(tile, row, plain_token(t)); }
  XLSTM_DEVICE int64_t plain_offset(int tile, int row, int t, int64_t batch_stride, int64_t time_stride) const {
    return offset_of(tile, row, plain_token(t), batch_stride, time_stride);
  }

 private:
  RowLengths<kTiles>& lengths;
  const int tiles, first, step, end, seqlen, reversed, first_token, direction;

  XLSTM_DEVICE static int end_of(int batch, const Team& team) {
    if (XLSTM_MUTANT("recurrent: rows of the next team are stored too")) return batch;
    return min(batch, team.first_row(team.tiles - 1) + team.rows);
  }
  XLSTM_DEVICE int plain_token(int t) const { return first_token + direction * t; }
  XLSTM_DEVICE int64_t offset_of(int tile, int row, int token, int64_t batch_stride, int64_t time_stride) const {
    return unsigned_(number(tile, row)) * batch_stride + unsigned_(token) * time_stride;
  }

  XLSTM_DEVICE static uint32_t unsigned_(int x) { return static_cast<uint32_t>(x); }
};

// The steps of a team: token by token, and of each the tiles.
struct Position {
  int t = 0, tile = 0;
  XLSTM_DEVICE void next(int tiles) {
    if (++tile == tiles) tile = 0, ++t;
  }
};

// A row of shared memory, padded so that the lanes of a fragment meet no bank twice.
template <class T>
constexpr int padded_pitch(int elements) {
  return elements + (sizeof(T) == 8 ? 32 : 16) / static_cast<int>(sizeof(T));
}

// Weights on their way to the registers of a warp: steps of kTiles tiles of 16 rows, of kAllSteps as many as fit beside
// those of the other warps. Each turn is code of its own.
template <class F, int kTiles, int kAllSteps, int kWarps>
struct WeightStage {
  static constexpr int kMost = 128 / kWarps / kTiles, kSteps = kAllSteps < kMost ? kAllSteps : kMost,
                       kRows = kTiles * 16, kColumns = kSteps * F::kDepth;
  typename F::Element x[kRows][padded_pitch<typename F::Element>(kColumns)];
};

// Weights of a warp, through shared memory of its own. at(tile, row, k): an element, zero past the edges; side by
// side in memory along k, or else along rows.
template <class F, int kTiles, int kSteps, int kWarps, class At>
XLSTM_DEVICE void load_weights(typename F::Weights (&weights)[kTiles][kSteps],
                               WeightStage<F, kTiles, kSteps, kWarps>& stage, bool along_k, At at) {
  using T = typename F::Element;
  using Stage = WeightStage<F, kTiles, kSteps, kWarps>;
  static_assert(kSteps % Stage::kSteps == 0);
  // Blocks of twice as many threads have half as many weights a thread, and half of the registers.
  constexpr int kMost = sizeof weights > 256 ? 16 : 8;
  constexpr int kElements = Stage::kRows * Stage::kColumns / 32, kAtOnce = kElements < kMost ? kElements : kMost;
  const auto row_of = [&](int x) { return along_k ? x / Stage::kColumns : x % Stage::kRows; };
  const auto column_of = [&](int x) { return along_k ? x % Stage::kColumns : x / Stage::kRows; };
#pragma unroll
  for (int step = 0; step < kSteps; step += Stage::kSteps) {
#pragma unroll 1
    for (int x = threadIdx.x % 32; x < kElements * 32; x += kAtOnce * 32) {
      T elements[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int row = row_of(x + i * 32);
        elements[i] = at(row / 16, row % 16, step * F::kDepth + column_of(x + i * 32));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) stage.x[row_of(x + i * 32)][column_of(x + i * 32)] = elements[i];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kTiles * Stage::kSteps; ++i) {
      const int tile = i / Stage::kSteps, k = i % Stage::kSteps;
      weights[tile][step + k] = F::load_shared(&stage.x[tile * 16][k * F::kDepth], sizeof stage.x[0] / sizeof(T));
    }
    __syncwarp();
  }
}

// ---- launches ----

// kernel(params, plan, rest): all teams, as many in a launch as the plan says.
template <class Params, class... Rest, class... A>
cudaError_t launch_teams(device::Launch l, void (*kernel)(Params, RecurrentPlan, Rest...), const Params& p,
                         RecurrentPlan plan, A&&... rest) {
  const RecurrentShape& shape = p.shape;
  const int64_t all = plan.teams * shape.num_heads, at_once = plan.teams_at_once(shape);
  if (at_once * plan.blocks > device::kMaxGridX) return refused("more blocks than a grid has");
  if (shape.seqlen >= INT32_MAX || shape.batch > INT32_MAX - kBatchTile || kSaved * shape.hidden() > INT32_MAX)
    return refused("more tokens, rows or units than such a kernel counts");
  if (plan.variant == Variant::cluster) l.cluster = static_cast<unsigned>(plan.blocks);
  l.cooperative = plan.variant == Variant::grid;
  for (int64_t first = 0; first < all; first += at_once) {
    plan.first_team = static_cast<int>(first);
    l.grid = dim3(static_cast<unsigned>(std::min(at_once, all - first) * plan.blocks));
    const cudaError_t error = device::launch(l, kernel, p, plan, rest...);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace xlstm::cuda
