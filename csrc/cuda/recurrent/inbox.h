#pragma once
// How the blocks of a team add up their parts of dh (resident_bwd_kernel.h). Each of them sends, once per tile of the
// batch and token, a part for every hidden unit to the block that owns the unit: message number 0, 1, .. of the tile.
// The owner adds the parts in an order that their sources give, so that no bit depends on the order of arrival.
//
// start     before the loop, all threads
// expect    all threads; before the first send of a message, and after that tile's receive of the message before
// send      a lane's part: two rows of one unit
// receive   all threads; the sums of a thread's two rows
//
// There is no other protocol, and two buffers suffice. A block sends message k of a tile when it has received all of
// message k - 1. Another block sent its part of k - 1 after a barrier that follows its receive of k - 2: so the buffer
// of k - 2, which k overwrites, has been read by then.
#include "cuda/recurrent/scan.h"
#include "cuda/recurrent/team.h"

namespace xlstm::cuda {

template <class A>
struct alignas(2 * sizeof(A)) RowPair {
  A x[2];
};

// Where rows `row` (even) and `row + 1` of a unit lie in shared memory: a warp writes and reads 8 units side by side.
XLSTM_DEVICE int pair_position(int unit, int row) {
  return unit * (kBatchTile / 2) + row / 2;
}

// What a thread reads: every kHelpers'th source.
struct Reader {
  int unit, row, helper;
  bool wanted;  // the cells exist
};

// Adds pair(source) of all sources of this helper.
template <int kHelpers, class A, class At>
XLSTM_DEVICE RowPair<A> sum_of_sources(int helper, int sources, At pair) {
  RowPair<A> sum{};
  sources -= XLSTM_MUTANT("resident_bwd: the last source left out");
#pragma unroll 8
  for (int source = helper; source < sources; source += kHelpers) {
    const RowPair<A> part = pair(source);
    sum.x[0] += part.x[0];
    sum.x[1] += part.x[1];
  }
  return sum;
}

// ---- one block: its own shared memory ----

template <class C>
class BlockInbox {
  using A = typename C::A;

 public:
  struct Shared {
    RowPair<A> sums[C::kTiles][C::kSources][C::kUnits * kBatchTile / 2];
  };

  XLSTM_DEVICE BlockInbox(Shared& shared, const RecurrentBackwardParams<void>&, const Team&, const RecurrentPlan&,
                          void*)
      : s(shared) {}
  XLSTM_DEVICE void start() {}
  XLSTM_DEVICE void expect(int, int, int) {}
  XLSTM_DEVICE void send(int, int tile, int, int source, int unit, int row, A first, A second) {
    s.sums[tile][source][pair_position(unit, row)] = {{first, second}};
  }
  // One buffer: a warp that sends the next message has passed the barrier between the cells and their product.
  XLSTM_DEVICE RowPair<A> receive(int tile, int, const Reader& at) {
    sync_computing(XLSTM_MUTANT("resident_bwd: block reads sums before they are written"));
    if (!at.wanted) return {};
    return sum_of_sources<1, A>(0, C::kSources,
                                [&](int source) { return s.sums[tile][source][pair_position(at.unit, at.row)]; });
  }

 private:
  Shared& s;

  // A warp that only moves rows has nothing to do with sums.
  XLSTM_DEVICE static void sync_computing(bool left_out) {
    if constexpr (C::kHasMover) {
      if (!left_out) device::barrier_sync(1, C::kThreads);
    } else {
      device::sync_threads(left_out);
    }
  }
};

// ---- a cluster: the shared memory of others ----

template <class C>
class ClusterInbox {
  using A = typename C::A;

 public:
  struct Shared {
    RowPair<A> sums[2][C::kTiles][C::kSources][C::kUnits * kBatchTile / 2];
    alignas(8) uint64_t full[2][C::kTiles];
  };

  XLSTM_DEVICE ClusterInbox(Shared& shared, const RecurrentBackwardParams<void>& p, const Team& team,
                            const RecurrentPlan&, void*)
      : s(shared), blocks(team.blocks) {
    // Tiles of 16 units are sent as long as they hold a unit of the head.
    const int units = static_cast<int>(p.shape.head_dim) - team.rank * C::kUnits;
    sent_units = units < C::kUnits ? (units + 15) / 16 * 16 : C::kUnits;
  }

  XLSTM_DEVICE void start() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * C::kTiles; ++i) device::mbarrier_init(device::shared_address(&s.full[0][0] + i), 1);
      device::fence_mbarrier_init();
    }
    device::cluster_sync();
  }

  XLSTM_DEVICE void expect(int tile, int message, int rows) {
    const uint32_t bytes = blocks * sent_units * ((rows + 1) / 2) * static_cast<uint32_t>(sizeof(RowPair<A>));
    if (threadIdx.x == 0) device::mbarrier_arrive_expect_tx(device::shared_address(&full(tile, message)), bytes);
  }

  XLSTM_DEVICE void send(int owner, int tile, int message, int source, int unit, int row, A first, A second) {
    const uint32_t to = device::shared_address(&s.sums[buffer(message)][tile][source][pair_position(unit, row)]);
    const uint32_t mbarrier = device::shared_address(&full(tile, message));
    if (XLSTM_MUTANT("resident_bwd: cluster does not send sums")) return;
    device::st_async(device::map_to_rank(to, owner), RowPair<A>{{first, second}}, device::map_to_rank(mbarrier, owner));
  }

  // A block may leave after its last receive: then nothing is under way to it.
  XLSTM_DEVICE RowPair<A> receive(int tile, int message, const Reader& at) {
    const int phase = message / 2 + XLSTM_MUTANT("resident_bwd: cluster waits for the other parity");
    device::mbarrier_wait_cluster(device::shared_address(&full(tile, message)), phase % 2,
                                  {"parts of dh", message, tile},
                                  XLSTM_MUTANT("resident_bwd: cluster reads sums before they are there"));
    if (!at.wanted) return {};
    return sum_of_sources<C::kHelpers, A>(at.helper, blocks, [&](int source) {
      return s.sums[buffer(message)][tile][source][pair_position(at.unit, at.row)];
    });
  }

 private:
  Shared& s;
  int blocks, sent_units;

  XLSTM_DEVICE static int buffer(int message) {
    return XLSTM_MUTANT("resident_bwd: cluster has one buffer instead of two") ? 0 : message % 2;
  }
  XLSTM_DEVICE uint64_t& full(int tile, int message) { return s.full[message % 2][tile]; }
};

// ---- a grid: global memory, where each sum carries the number of its message ----

// Sums and tags of a block: [buffer][tile][source][row][unit].
XLSTM_HOST_DEVICE inline int64_t packets_per_block(const RecurrentPlan& plan) {
  return int64_t{2} * plan.tiles * plan.blocks * kBatchTile * plan.units;
}

// Of a launch; the next one clears them again.
inline size_t grid_inbox_bytes(const RecurrentShape& shape, const RecurrentPlan& plan) {
  return plan.teams_at_once(shape) * plan.blocks * packets_per_block(plan) * sizeof(uint64_t);
}

template <class C>
class GridInbox {
  using A = float;
  static constexpr int kCells = C::kUnits * kBatchTile;
  static constexpr int kAtOnce = 8;  // sources whose loads are in flight together

 public:
  struct Shared {};

  XLSTM_DEVICE GridInbox(Shared&, const RecurrentBackwardParams<void>&, const Team& team, const RecurrentPlan& plan,
                         void* memory)
      : rank(team.rank),
        blocks(team.blocks),
        tiles(plan.tiles),
        first(static_cast<uint64_t*>(memory) + (int64_t{blockIdx.x} - team.rank) * packets_per_block(plan)) {}

  // No tag of an earlier call may look like one of this.
  XLSTM_DEVICE void start() {
    uint64_t* own = at(rank, 0, 0, 0);
    for (int64_t i = threadIdx.x; i < int64_t{2} * tiles * blocks * kCells; i += C::kThreads) own[i] = 0;
    device::grid_sync(XLSTM_MUTANT("resident_bwd: grid sends before inboxes are clear"));
  }
  XLSTM_DEVICE void expect(int, int, int) {}

  XLSTM_DEVICE void send(int owner, int tile, int message, int source, int unit, int row, A x, A y) {
    uint64_t* to = at(owner, tile, message, source) + row * C::kUnits + unit;
    if (XLSTM_MUTANT("resident_bwd: grid does not send sums")) return;
    device::store_relaxed(to, packet(x, message));
    device::store_relaxed(to + C::kUnits, packet(y, message));
  }

  XLSTM_DEVICE RowPair<A> receive(int tile, int message, const Reader& reader) {
    RowPair<A> sum{};
    if (!reader.wanted) return sum;
    const int64_t step = int64_t{C::kHelpers} * kCells;
    const uint64_t* from = at(rank, tile, message, reader.helper) + reader.row * C::kUnits + reader.unit;
    for (int source = reader.helper; source < blocks; source += kAtOnce * C::kHelpers, from += kAtOnce * step) {
      const int count = (blocks - source + C::kHelpers - 1) / C::kHelpers;
      uint64_t packets[kAtOnce][2];
      device::Patience patience({"parts of dh", message, tile});
      while (true) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            packets[i][row] = i < count ? device::load_relaxed(from + i * step + row * C::kUnits) : packet(0, message);
          }
        }
        if (all_of(packets, message) || XLSTM_MUTANT("resident_bwd: grid does not wait for sums")) break;
        patience.spend(device::Source::here());
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        sum.x[0] += value(packets[i][0]);
        sum.x[1] += value(packets[i][1]);
      }
    }
    return sum;
  }

 private:
  int rank, blocks, tiles;
  uint64_t* first;  // of the team

  // In 32 bits: 64 blocks squared with 16 tiles and buffers of 128 cells are the most that a team has.
  XLSTM_DEVICE uint64_t* at(int owner, int tile, int message, int source) const {
    return first + (((owner * 2 + message % 2) * tiles + tile) * blocks + source) * kCells;
  }

  XLSTM_DEVICE static uint64_t packet(A x, int message) {
    return uint64_t{static_cast<uint32_t>(message) + 1} << 32 | device::bits_as<uint32_t>(x);
  }
  XLSTM_DEVICE static A value(uint64_t packet) { return device::bits_as<A>(static_cast<uint32_t>(packet)); }
  XLSTM_DEVICE static bool all_of(const uint64_t (&packets)[kAtOnce][2], int message) {
    const uint32_t tag = static_cast<uint32_t>(message) + !XLSTM_MUTANT("resident_bwd: grid takes the message before");
    bool all = true;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) all &= packets[i][row] >> 32 == tag;
    }
    return all;
  }
};

}  // namespace xlstm::cuda
