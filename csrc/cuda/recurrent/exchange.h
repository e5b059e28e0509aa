#pragma once
// How h of a step gets to all blocks of a team, one policy per variant (plan.h). h of a batch tile lies in shared
// memory, row by row, as T, zeros past the batch and past the last unit.
//   start()              after the rows before the first step are staged
//   wait(t, tile)        those rows of the step before t; no warp changes them before the next wait
//   give(t, tile, ..)    h of step t, by all lanes of a warp: one value each
//   stores_h             whether `give` also writes the output
#include "cuda/recurrent/fragments.h"
#include "cuda/recurrent/scan.h"
#include "cuda/recurrent/team.h"

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
  static constexpr int kGroups = kUnits / 8, kSplits = kThreads / 32 / kGroups;  // warps: (split, group of 8 units)
  static constexpr int kWidth =
      kVariant == Variant::block ? kUnits : static_cast<int>(resident_head_dim(F::kDepth, kUnits));  // of a row of R
  static constexpr int kSteps = kWidth / F::kDepth / kSplits;                                        // of a warp
  static constexpr int kTiles = max_tiles(kVariant);
  static constexpr int kPitch = padded_pitch<T>(kWidth);
  static constexpr int kPacket = 16 / sizeof(T);  // values in 16 bytes

  // One warp has whole rows of R: then its lanes have all sums of the cells that they advance. Else sums of several
  // warps are added up through shared memory, and the cells are dealt anew, lanes along the units.
  static constexpr bool kDirect = kSplits == 1;
  static constexpr int kLaneStride = kDirect ? 4 : 1;  // between lanes with neighbouring units
  static constexpr int kRowsAtOnce = kThreads / kUnits;
  static constexpr int kCells = kDirect ? 2 : kRowsAtOnce >= kBatchTile ? 1 : kBatchTile / kRowsAtOnce;  // of a thread
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
    const int64_t b = team.first_row(tile) + row;
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
                             void*, int64_t)
      : s(shared), team(of) {
    for (int tile = 0; tile < team.tiles; ++tile) stage_initial<S>(s.h[0][tile], p, team, tile);
  }

  XLSTM_DEVICE void start() {}

  // One barrier per step: h is written beside the h that slower warps still read.
  XLSTM_DEVICE const HiddenRows<S>& wait(int t, int tile) {
    if (tile == 0) device::sync_threads(XLSTM_MUTANT("resident_fwd: block reads h before all warps wrote it"));
    return s.h[t % 2][tile];
  }

  XLSTM_DEVICE void give(int t, int tile, int row, int unit, typename S::T h) {
    const int next = XLSTM_MUTANT("resident_fwd: block has one buffer of h") ? 0 : (t + 1) % 2;
    s.h[next][tile].row[row][unit] = h;
  }
};

// ---- a cluster: each block writes its h into the shared memory of all ----
//
// A warp sends its part of h_t once it has read h_{t-1}, and it reads h_{t-1} once all parts of it are there. So
// a warp that has all of h_t may overwrite h_{t-1} anywhere: two buffers, and no message that one is read. h of the
// last step is not sent: nothing is under way to a block that leaves.

template <class S>
struct ClusterExchange {
  struct Shared {
    HiddenRows<S> h[2][S::kTiles];
    alignas(8) uint64_t full[2][S::kTiles];  // h is there
  };
  static constexpr bool stores_h = false;

  Shared& s;
  const Team& team;
  const int steps;
  const int64_t batch;

  XLSTM_DEVICE ClusterExchange(Shared& shared, const RecurrentForwardParams<void>& p, const Team& of, const Rows<S>&,
                               void*, int64_t)
      : s(shared), team(of), steps(static_cast<int>(p.shape.seqlen)), batch(p.shape.batch) {
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
    const int phase = (t - 1) / 2 + XLSTM_MUTANT("resident_fwd: cluster waits for the wrong phase");
    if (t > 0) {
      device::mbarrier_wait_cluster(full(t % 2, tile), phase % 2, {"h", t, tile},
                                    XLSTM_MUTANT("resident_fwd: cluster does not wait for h"));
    }
    if (threadIdx.x == 0 && t + 1 < steps) device::mbarrier_arrive_expect_tx(full((t + 1) % 2, tile), bytes(tile));
    return s.h[t % 2][tile];
  }

  XLSTM_DEVICE void give(int t, int tile, int row, int unit, typename S::T h) {
    if (t + 1 >= steps && !XLSTM_MUTANT("resident_fwd: cluster sends h of the last step")) return;
    __syncwarp();  // all lanes have read h of the step before
    const uint4 packet = gather_packet<S::kLaneStride>(h);
    if (row >= rows(tile) || XLSTM_MUTANT("resident_fwd: cluster does not send h")) return;
    const int member = unit % S::kPacket, next = (t + 1) % 2;
    const int buffer = XLSTM_MUTANT("resident_fwd: cluster has one buffer of h") ? 0 : next;
    const int from = XLSTM_MUTANT("resident_fwd: cluster sends to the wrong slice") ? unit % S::kUnits : unit;
    const uint32_t to = device::shared_address(&s.h[buffer][tile].row[row][from - member]);
    // each lane of the packet serves other blocks
    for (int rank = member; rank < team.blocks; rank += S::kPacket) {
      device::st_async(device::map_to_rank(to, rank), packet, device::map_to_rank(full(next, tile), rank));
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
  XLSTM_DEVICE int rows(int tile) const {
    const int64_t left = batch - team.first_row(tile);
    return left < kBatchTile ? static_cast<int>(left) : kBatchTile;
  }
  XLSTM_DEVICE uint32_t bytes(int tile) const {
    return static_cast<uint32_t>(rows(tile) * S::kUnits * sizeof(typename S::T)) * team.blocks;
  }
};

// ---- a grid: h goes through L2, and a word of it says by its value that it is there ----
//
// `padded_h`: (B, S, H, width) of T, the output itself or a workspace. Every block fills its units with kAbsent before
// the first step, then all meet once.

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
  T* const padded_h;
  const int width;
  const bool stores_h;
  int turn = 0;  // of the two buffers

  XLSTM_DEVICE GridExchange(Shared& shared, const RecurrentForwardParams<void>& params, const Team& of,
                            const Rows<S>& of_rows, void* padded_h_, int64_t width_)
      : s(shared),
        p(params),
        team(of),
        rows(of_rows),
        padded_h(static_cast<T*>(padded_h_)),
        width(static_cast<int>(width_)),
        stores_h(padded_h_ == params.h) {}

  XLSTM_DEVICE void start() {
    const int first = team.rank * S::kUnits, units = width - first < S::kUnits ? width - first : S::kUnits;
    const int packets = units / S::kPacket;
    const bool filled = !XLSTM_MUTANT("resident_fwd: grid does not mark h as absent");
    for (int i = 0; filled && i < team.tiles * kBatchTile; ++i) {
      const int64_t b = team.first_row(i / kBatchTile) + i % kBatchTile;
      if (b >= p.shape.batch) continue;
      for (int64_t x = threadIdx.x; x < p.shape.seqlen * packets; x += S::kThreads) {
        const uint4 absent{kAbsent, kAbsent, kAbsent, kAbsent};
        *reinterpret_cast<uint4*>(padded_row(b, x / packets) + first + x % packets * S::kPacket) = absent;
      }
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

  XLSTM_DEVICE void give(int t, int tile, int row, int unit, T h) {
    const uint4 packet = gather_packet<S::kLaneStride>(h);
    const int64_t b = team.first_row(tile) + row;
    const bool one = unit % S::kPacket == 0 && unit < width && b < p.shape.batch;
    if (XLSTM_MUTANT("resident_fwd: grid does not send h")) return;
    if (one) device::store_relaxed(reinterpret_cast<uint4*>(padded_row(b, rows.token(tile, row, t)) + unit), packet);
  }

 private:
  XLSTM_DEVICE T* padded_row(int64_t b, int64_t t) const {
    return padded_h + ((b * p.shape.seqlen + t) * p.shape.num_heads + team.head) * width;
  }

  // h of step t from L2: every thread asks for its packets until all of them are there.
  XLSTM_DEVICE void stage(HiddenRows<S>& to, int t, int tile) {
    constexpr int kRow = S::kWidth / S::kPacket, kLoads = kBatchTile * kRow / S::kThreads;
    uint4 packets[kLoads];
    const T* from[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int x = threadIdx.x + i * S::kThreads, unit = x % kRow * S::kPacket;
      const int64_t b = team.first_row(tile) + x / kRow;
      from[i] = b < p.shape.batch && unit < width ? padded_row(b, rows.token(tile, x / kRow, t)) + unit : nullptr;
      packets[i] = {};
    }
    device::Patience patience({"h", t + 1, tile});
    bool all;
    do {
      all = true;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (from[i]) packets[i] = device::load_relaxed(reinterpret_cast<const uint4*>(from[i]));
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) all = all && complete(packets[i]);
      if (!all) patience.spend(device::Source::here());
    } while (!all && !XLSTM_MUTANT("resident_fwd: grid does not wait for h"));
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int x = threadIdx.x + i * S::kThreads;
      *reinterpret_cast<uint4*>(&to.row[x / kRow][x % kRow * S::kPacket]) = packets[i];
    }
  }
};

template <class S>
using ExchangeOf =
    std::conditional_t<S::kVariant == Variant::block, BlockExchange<S>,
                       std::conditional_t<S::kVariant == Variant::cluster, ClusterExchange<S>, GridExchange<S>>>;

}  // namespace xlstm::cuda
