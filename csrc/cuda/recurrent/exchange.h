#pragma once
// How h of a step gets to all blocks of a team, one policy per variant (plan.h). h of a batch tile lies in shared
// memory, row by row, as T. Rows past the batch have no meaning; past the last unit of a row there are zeros.
//   start()              after the rows before the first step are staged
//   wait(t, tile)        those rows of the step before t; no warp changes them before the next wait. A barrier of the
//                        block: what was there before it, other warps may read
//   put(t, tile, ..)     h of step t of a warp's cells (warp_tile.h): what stays in the block
//   send(t, tile, ..)    the same, once it lies in the warp's memory in rows: what leaves the block
//   stores_h             whether `send` also writes the output
// unit: the first one of the warp, of the head.
#include "cuda/recurrent/fragments.h"
#include "cuda/recurrent/l2_rows.h"
#include "cuda/recurrent/scan.h"
#include "cuda/recurrent/warp_tile.h"

namespace xlstm::cuda {

// The part of the forward scan that a block computes. F: Fragments.
template <class F_, int kUnits_, Variant kVariant_>
struct ForwardTraits {
  using F = F_;
  using T = typename F::Element;
  using A = typename F::Sum;
  static constexpr Variant kVariant = kVariant_;
  static constexpr int kUnits = kUnits_;
  static constexpr int kThreads = kUnits == kWideUnits ? 512 : 256;
  // Warps: (split, group of 8 units). Those of split 0 have the cells; others multiply a part of the rows of R.
  static constexpr int kGroups = kUnits / kWarpUnits, kSplits = kThreads / 32 / kGroups;
  static constexpr int kWidth =
      kVariant == Variant::block ? kUnits : static_cast<int>(resident_head_dim(F::kDepth, kUnits));  // of a row of R
  static constexpr int kSteps = kWidth / F::kDepth / kSplits;                                        // of a warp
  static constexpr int kTiles = max_tiles(kVariant);
  static constexpr int kPitch = padded_pitch<T>(kWidth);
  static constexpr int kPacket = 16 / sizeof(T);  // values in 16 bytes

  // A warp beside these that only moves rows (resident_fwd_rows.h): where registers are left for one.
  static constexpr bool kHasMover = kVariant == Variant::block && kUnits == kResidentUnits && sizeof(T) == 2;
  static constexpr int kBlockThreads = kThreads + (kHasMover ? 32 : 0);
  static constexpr bool kRoomy = kThreads <= 256;  // more than 128 registers, or no rows to move
  // Sums start with x and b, which are read a step ahead. Sums of wider types would lose digits to them.
  static constexpr bool kStartsWithX = sizeof(T) == 2 && kRoomy;
  // Steps of x that are under way, there or read.
  static constexpr int kRing = sizeof(T) == 2 ? 4 : sizeof(T) == 4 ? 3 : 2;
  // Of results. Wider types leave no room for two where a block may have 99 KB, and a barrier more is needed; warps
  // that share rows of R have it anyway.
  static constexpr int kResultBuffers = sizeof(T) > 2 || kSplits > 1 ? 1 : 2;
};

template <class S>
using Rows = BatchRows<S::kTiles>;

template <class S>
struct HiddenRows {
  alignas(16) typename S::T row[kBatchTile][S::kPitch];
};

// h before the first step.
template <class S>
XLSTM_DEVICE void stage_initial(HiddenRows<S>& to, const RecurrentForwardParams<void>& p, const Team& team, int tile) {
  using T = typename S::T;
  using A = typename S::A;
  const int D = static_cast<int>(p.shape.head_dim);
  const A* h = static_cast<const A*>(p.initial_state.h);
#pragma unroll 1
  for (int i = threadIdx.x; i < kBatchTile * S::kWidth; i += S::kThreads) {
    const int row = i / S::kWidth, unit = i % S::kWidth;
    const int b = team.first_row(tile) + row;
    const bool exists = h && b < p.shape.batch && unit < D;
    to.row[row][unit] = exists ? device::narrow<T>(h[b * p.shape.hidden() + int64_t{team.head} * D + unit]) : T{};
  }
}

// ---- one block has all units ----

template <class S>
struct BlockExchange {
  struct Shared {
    HiddenRows<S> h[2][S::kTiles];
  };
  static constexpr bool stores_h = false;

  Shared& s;
  const Team& team;

  XLSTM_DEVICE BlockExchange(Shared& shared, const RecurrentForwardParams<void>& p, const Team& of, const Rows<S>&,
                             void*)
      : s(shared), team(of) {
    for (int tile = 0; tile < team.tiles; ++tile) stage_initial<S>(s.h[0][tile], p, team, tile);
  }

  XLSTM_DEVICE void start() {}

  // h is written beside the h that slower warps still read.
  XLSTM_DEVICE const HiddenRows<S>& wait(int t, int tile) {
    device::sync_threads(XLSTM_MUTANT("resident_fwd: block reads h before all warps wrote it"));
    return s.h[t % 2][tile];
  }

  XLSTM_DEVICE void put(int t, int tile, int unit, const device::Pack<typename S::T, 2>& h) {
    const int next = XLSTM_MUTANT("resident_fwd: block has one buffer of h") ? 0 : (t + 1) % 2;
    write_cells<S::kPitch>(&s.h[next][tile].row[0][unit], {h});
  }
  XLSTM_DEVICE void send(int, int, int, const typename S::T (&)[kBatchTile][kWarpUnits]) {}
};

// ---- a cluster: each block writes its h into the shared memory of all ----
//
// A warp sends its part of h_t once it has read h_{t-1}, and it reads h_{t-1} once all parts of it are there. So
// a warp that has all of h_t may overwrite h_{t-1} anywhere: two buffers, and no message that one is read. h of the
// last step is not sent: nothing is under way to a block that leaves.

template <class S>
struct ClusterExchange {
  using T = typename S::T;
  struct Shared {
    HiddenRows<S> h[2][S::kTiles];
    alignas(8) uint64_t full[2][S::kTiles];  // h is there
  };
  static constexpr bool stores_h = false;

  Shared& s;
  const Team& team;
  const Rows<S> rows;
  const int steps;

  XLSTM_DEVICE ClusterExchange(Shared& shared, const RecurrentForwardParams<void>& p, const Team& of,
                               const Rows<S>& of_rows, void*)
      : s(shared), team(of), rows(of_rows), steps(static_cast<int>(p.shape.seqlen)) {
    for (int tile = 0; tile < team.tiles; ++tile) {
      stage_initial<S>(s.h[0][tile], p, team, tile);
      clear(s.h[1][tile]);
    }
  }

  XLSTM_DEVICE void start() {
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < 2 * S::kTiles; ++i) device::mbarrier_init(full(i % 2, i / 2), 1);
      device::fence_mbarrier_init();
    }
    device::cluster_sync();
  }

  XLSTM_DEVICE const HiddenRows<S>& wait(int t, int tile) {
    device::sync_threads(XLSTM_MUTANT("resident_fwd: cluster reads x before all warps have it"));
    const int phase = (t - 1) / 2 + XLSTM_MUTANT("resident_fwd: cluster waits for the wrong phase");
    if (t > 0) {
      device::mbarrier_wait_cluster(full(t % 2, tile), phase % 2, {"h", t, tile},
                                    XLSTM_MUTANT("resident_fwd: cluster does not wait for h"));
    }
    if (threadIdx.x == 0 && t + 1 < steps) device::mbarrier_arrive_expect_tx(full((t + 1) % 2, tile), bytes(tile));
    return s.h[t % 2][tile];
  }

  XLSTM_DEVICE void put(int, int, int, const device::Pack<T, 2>&) {}

  // All lanes have read h of the step before. Each has a row for some of the blocks.
  XLSTM_DEVICE void send(int t, int tile, int unit, const T (&h)[kBatchTile][kWarpUnits]) {
    if (t + 1 >= steps && !XLSTM_MUTANT("resident_fwd: cluster sends h of the last step")) return;
    const RowLane at;
    if (at.row >= rows.count(tile) || XLSTM_MUTANT("resident_fwd: cluster does not send h")) return;
    const int next = XLSTM_MUTANT("resident_fwd: cluster has one buffer of h") ? 0 : (t + 1) % 2;
    const int first = XLSTM_MUTANT("resident_fwd: cluster sends to the wrong slice") ? unit % S::kUnits : unit;
    const uint32_t to = device::shared_address(&s.h[next][tile].row[at.row][first]), there = full((t + 1) % 2, tile);
    uint4 packets[kWarpUnits / S::kPacket];
#pragma unroll
    for (int i = 0; i < kWarpUnits / S::kPacket; ++i) packets[i] = load_packet(&h[at.row][i * S::kPacket]);
    for (int rank = at.part; rank < team.blocks; rank += 4) {
#pragma unroll
      for (int i = 0; i < kWarpUnits / S::kPacket; ++i) {
        device::st_async(device::map_to_rank(to + i * 16, rank), packets[i], device::map_to_rank(there, rank));
      }
    }
  }

 private:
  XLSTM_DEVICE uint32_t full(int buffer, int tile) const { return device::shared_address(&s.full[buffer][tile]); }
  // No block sends what lies past the units of all blocks or past the batch.
  XLSTM_DEVICE void clear(HiddenRows<S>& to) const {
    for (int x = threadIdx.x; x < kBatchTile * S::kWidth; x += S::kThreads) {
      to.row[x / S::kWidth][x % S::kWidth] = typename S::T{};
    }
  }
  XLSTM_DEVICE uint32_t bytes(int tile) const {
    return static_cast<uint32_t>(rows.count(tile) * S::kUnits * sizeof(typename S::T)) * team.blocks;
  }
};

// ---- a grid: h goes through L2 (l2_rows.h), in the output itself or in a workspace ----

template <class S>
struct GridExchange {
  using T = typename S::T;
  struct Shared {
    HiddenRows<S> h[2];
  };

  Shared& s;
  const RecurrentForwardParams<void>& p;
  const Team& team;
  const Rows<S> rows;
  const L2Rows<T, 1> in_l2;
  const bool stores_h;
  int turn = 0;  // of the two buffers

  XLSTM_DEVICE GridExchange(Shared& shared, const RecurrentForwardParams<void>& params, const Team& of,
                            const Rows<S>& of_rows, void* padded_h)
      : s(shared),
        p(params),
        team(of),
        rows(of_rows),
        in_l2(padded_h, p.shape, of.head),
        stores_h(padded_h == params.h) {}

  XLSTM_DEVICE void start() {
    if (!XLSTM_MUTANT("resident_fwd: grid does not mark h as absent")) {
      in_l2.template mark_absent<S::kThreads>(rows, team.tiles, p.shape.seqlen, team.rank * S::kUnits, S::kUnits);
    }
    device::grid_sync(XLSTM_MUTANT("resident_fwd: grid starts before h is marked as absent"));
  }

  XLSTM_DEVICE const HiddenRows<S>& wait(int t, int tile) {
    HiddenRows<S>& to = s.h[XLSTM_MUTANT("resident_fwd: grid has one buffer of h") ? 0 : turn];
    turn ^= 1;
    if (t == 0) {
      stage_initial<S>(to, p, team, tile);
    } else {
      stage(to, t - 1, tile);
    }
    device::sync_threads(XLSTM_MUTANT("resident_fwd: grid reads h before it is staged"));
    return to;
  }

  XLSTM_DEVICE void put(int, int, int, const device::Pack<T, 2>&) {}

  XLSTM_DEVICE void send(int t, int tile, int unit, const T (&h)[kBatchTile][kWarpUnits]) {
    const RowLane at;
    const int first = at.part * S::kPacket;  // of 8
    if (first >= kWarpUnits || unit + first >= in_l2.width || !rows.exists(tile, at.row)) return;
    if (XLSTM_MUTANT("resident_fwd: grid does not send h")) return;
    device::store_relaxed(in_l2.packet(rows.index(tile, at.row, t), 0, unit + first), load_packet(&h[at.row][first]));
  }

 private:
  // h of step t from L2.
  XLSTM_DEVICE void stage(HiddenRows<S>& to, int t, int tile) {
    constexpr int kRow = S::kWidth / S::kPacket, kRows = S::kThreads / kRow, kLoads = kBatchTile / kRows;
    static_assert(S::kThreads % kRow == 0 && kBatchTile % kRows == 0);
    const int first = threadIdx.x / kRow, unit = threadIdx.x % kRow * S::kPacket;
    int tokens[kLoads];
    rows.template tokens_at<kRows>(tokens, tile, first, t);
    uint4 packets[kLoads];
    const uint4* from[kLoads];
    Flags<kLoads> missing;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      from[i] = in_l2.packet(rows.index_of(tile, first + i * kRows, tokens[i]), 0, unit);
      missing.set(i, rows.exists(tile, first + i * kRows) && unit < in_l2.width);
    }
    await_packets(
        packets, missing, [&](int i) { return from[i]; }, device::Patience({"h", t + 1, tile}),
        XLSTM_MUTANT("resident_fwd: grid does not wait for h"));
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      *reinterpret_cast<uint4*>(&to.row[first + i * kRows][unit]) = packets[i];
    }
  }
};

template <class S>
using ExchangeOf =
    std::conditional_t<S::kVariant == Variant::block, BlockExchange<S>,
                       std::conditional_t<S::kVariant == Variant::cluster, ClusterExchange<S>, GridExchange<S>>>;

}  // namespace xlstm::cuda
