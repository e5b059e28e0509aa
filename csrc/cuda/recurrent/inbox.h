#pragma once
// How the blocks of a team add up their parts of dh (dh_by_parts.h). Each of them sends, once per tile of the batch and
// token, a part for every hidden unit to the block that owns the unit: message number 0, 1, .. of the tile. The owner
// adds the parts in an order that their sources give, so that no bit depends on the order of arrival.
//
// start     before the loop, all threads
// expect    all threads; before the first send of a message, and after that tile's receive of the message before
// send      a lane's part: two rows of one unit
// receive   all threads; the sums of a thread's two rows
//
// There is no other protocol, and two buffers suffice. A block sends message k of a tile when it has received all of
// message k - 1. Another block sent its part of k - 1 after a barrier that follows its receive of k - 2: so the buffer
// of k - 2, which k overwrites, has been read by then.
#include "cuda/recurrent/dh_sums.h"

namespace xlstm::cuda {

// ---- one block: its own shared memory ----

template <class C>
class BlockInbox {
  using A = typename C::A;

 public:
  struct Shared {
    RowPair<A> sums[C::kTiles][C::kSources][C::kUnits * kBatchTile / 2];
  };

  XLSTM_DEVICE BlockInbox(Shared& shared, const RecurrentBackwardParams<void>&, const Team&) : s(shared) {}
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

  XLSTM_DEVICE ClusterInbox(Shared& shared, const RecurrentBackwardParams<void>& p, const Team& team)
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

}  // namespace xlstm::cuda
