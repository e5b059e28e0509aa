#pragma once
// dh in a grid: a block reads d raw of all units of the head through L2 (l2_rows.h), in dx itself or in a workspace,
// and multiplies it with the columns of R of its own units. Every warp has a half of a gate, and takes what it
// multiplies from L2 straight into registers; the sums of the warps meet in shared memory.
#include "cuda/recurrent/dh_sums.h"
#include "cuda/recurrent/fragments.h"
#include "cuda/recurrent/l2_rows.h"
#include "cuda/recurrent/warp_tile.h"

namespace xlstm::cuda {

template <class C>
class DhByGather {
  using F = typename C::F;
  using T = typename C::T;
  using A = typename C::A;
  using InL2 = L2Rows<T, kGates>;
  static constexpr int kMTiles = C::kUnits / 16;  // of R^T: rows are units of this block
  // A lane has 16 bytes of a batch row, the four lanes of a row 64 bytes side by side: two steps of a product.
  static constexpr int kChunk = 4 * InL2::kPacket;  // units
  static constexpr int kPackets = C::kDimension / 2 / kChunk, kSteps = 2 * kPackets;
  static constexpr int kChains = 4 / kMTiles;  // sums of a tile that do not wait for each other
  using Sums = A[kMTiles][kChains][4];
  static_assert(kChunk == 2 * F::kDepth && C::kWarps == 2 * kGates);
  static_assert(kMTiles * kSteps * sizeof(typename F::Weights) <= 512);

 public:
  struct Shared {
    RowPair<A> sums[C::kWarps][C::kUnits * kBatchTile / 2];
  };
  using Stage = WeightStage<F, kMTiles, kSteps, C::kWarps>;

  XLSTM_DEVICE DhByGather(Shared& shared, Stage (&stage)[C::kWarps], const RecurrentBackwardParams<void>& params,
                          const Team& of, const BatchRows<C::kTiles>& of_rows, void* padded_draw)
      : s(shared), p(params), team(of), rows(of_rows), in_l2(padded_draw, p.shape, team.head) {
    const int chunks = (in_l2.width + kChunk - 1) / kChunk, half = warp() / kGates, first = half * ((chunks + 1) / 2);
    count = (chunks + 1 - half) / 2;
    load_weights(stage[warp()], first * kChunk);
    const int end = min(in_l2.width, (first + count) * kChunk);
    const int unit = first * kChunk + static_cast<int>(threadIdx.x) % 4 * InL2::kPacket;
    for (int i = 0; i < kPackets; ++i) exist |= unit + i * kChunk < end ? 1u << i : 0;
    from_there = in_l2.packet(0, gate(), unit);
    row = static_cast<int>(threadIdx.x) % 32 / 4;
    if (kFewRows<F> > 0 && p.shape.batch <= kFewRows<F>) row %= 2;
  }

  XLSTM_DEVICE void start() const {
    __syncthreads();  // lengths of rows are there
    if (!XLSTM_MUTANT("resident_bwd: grid does not mark d raw as absent")) {
      in_l2.template mark_absent<C::kThreads>(rows, team.tiles, p.shape.seqlen, team.rank * C::kUnits, C::kUnits);
    }
    device::grid_sync(XLSTM_MUTANT("resident_bwd: grid starts before d raw is marked as absent"));
  }

  // dh of two cells. A barrier follows before the next call.
  XLSTM_DEVICE RowPair<A> receive(int tile, int message, const Reader& reader) {
    uint4 packets[kPackets];
    const uint64_t token = rows.index(tile, row, static_cast<int>(p.shape.seqlen) - 1 - message);
    const uint4* from = from_there + token * in_l2.token_step();
    const uint32_t wanted = rows.exists(tile, row) ? exist : 0;
    Flags<kPackets> missing;
#pragma unroll
    for (int i = 0; i < kPackets; ++i) missing.set(i, wanted >> i & 1);
    await_packets(
        packets, missing, [&](int i) { return from + i * 4; }, device::Patience({"d raw", message, tile}),
        XLSTM_MUTANT("resident_bwd: grid does not wait for d raw"));
    __syncwarp();  // lanes have waited for different times, and matrices are next
    Sums sums = {};
    multiply(sums, packets);
    const CellLane cell;
#pragma unroll
    for (int i = 0; i < kMTiles; ++i) {
#pragma unroll
      for (int chain = 1; chain < kChains; ++chain) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][0][j] += sums[i][chain][j];
      }
      const A(&sum)[4] = sums[i][0];
      s.sums[warp()][pair_position(i * 16 + cell.unit, cell.row)] = {{sum[0], sum[1]}};
      s.sums[warp()][pair_position(i * 16 + cell.unit + 8, cell.row)] = {{sum[2], sum[3]}};
    }
    device::sync_threads(XLSTM_MUTANT("resident_bwd: sums of warps read before they are there"));
    if (!reader.wanted || reader.helper > 0) return {};
    const int cells = pair_position(reader.unit, reader.row);
    return sum_of_sources<1, A>(0, C::kWarps, [&](int source) { return s.sums[source][cells]; });
  }

  // d raw of this block's units: the rows that a thread moves. move(): what the next step does not wait for.
  template <class Move>
  XLSTM_DEVICE void send(int t, int tile, int, const T (&draw)[kBatchTile][C::kPitch], Move move) const {
    const MovedRow<C::kGroups> at;
    const int first = team.rank * C::kUnits + at.group * kWarpUnits;
    const bool there = at.part < kGates && rows.exists(tile, at.row);
    if (there && !XLSTM_MUTANT("resident_bwd: grid does not send d raw")) {
      const uint64_t token = rows.index(tile, at.row, t);
#pragma unroll
      for (int i = 0; i < kWarpUnits; i += InL2::kPacket) {
        const T* from = &draw[at.row][at.part * C::kUnits + at.group * kWarpUnits + i];
        if (first + i < in_l2.width) device::store_relaxed(in_l2.packet(token, at.part, first + i), load_packet(from));
      }
    }
    move();
  }

 private:
  Shared& s;
  const RecurrentBackwardParams<void>& p;
  const Team team;
  const BatchRows<C::kTiles> rows;
  const InL2 in_l2;
  typename F::Weights weights[kMTiles][kSteps];
  const uint4* from_there;  // the first packet of this lane in a token
  int count;                // chunks of this warp
  int row;                  // of the tile, of this lane
  uint32_t exist = 0;       // bits: its packets that do

  XLSTM_DEVICE static int warp() { return threadIdx.x / 32; }
  XLSTM_DEVICE static int gate() { return warp() % kGates; }

  // Of R^T: rows are units of this block, columns d raw of the warp's half of a gate, in the order in which packets
  // bring it: a lane multiplies the first 8 bytes of its packet in one step and the others in the next (fragments.h).
  XLSTM_DEVICE void load_weights(Stage& stage, int first) {
    constexpr int kWord = 4 / sizeof(T);  // units in 4 bytes
    const int D = static_cast<int>(p.shape.head_dim), of_block = team.rank * C::kUnits;
    const T* from = static_cast<const T*>(p.R.data) + team.head * p.R.head + gate() * p.R.gate;
    cuda::load_weights<F>(weights, stage, p.R.in != 1, [&](int mtile, int weight_row, int k) {
      const int word = k / kWord, lane = word % 4, of_packet = word / 4 % 4;
      const int out = first + k / kChunk * kChunk + lane * InL2::kPacket + of_packet * kWord + k % kWord;
      const int in = of_block + mtile * 16 + weight_row;
      return in < D && out < D && k < count * kChunk ? from[out * p.R.out + in * p.R.in] : T{};
    });
  }

  XLSTM_DEVICE void multiply(Sums& sums, const uint4 (&packets)[kPackets]) const {
    if constexpr (kFewRows<F> > 0) {
      if (p.shape.batch <= kFewRows<F>) return multiply_few(sums, packets);
    }
    constexpr int kAtOnce = 2;
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      if (i % kAtOnce == 0 && i >= count) break;
#pragma unroll
      for (int step = 2 * i; step < 2 * i + 2; ++step) {
        const typename F::Values values = values_of(packets[i], step % 2);
#pragma unroll
        for (int tile = 0; tile < kMTiles; ++tile) {
          F::multiply(sums[tile][step % kChains], weights[tile][step], values);
        }
      }
    }
  }

  XLSTM_DEVICE static typename F::Values values_of(const uint4& packet, int half) {
    return F::values_of(half ? uint2{packet.z, packet.w} : uint2{packet.x, packet.y});
  }

  // A lane has packets of batch row 0 or 1, and its neighbour those of the other: sums of its own come first.
  XLSTM_DEVICE void multiply_few(Sums& sums, const uint4 (&packets)[kPackets]) const {
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      if (i >= count) break;
      uint4 other;
      other.x = __shfl_xor_sync(~0u, packets[i].x, 4), other.y = __shfl_xor_sync(~0u, packets[i].y, 4);
      other.z = __shfl_xor_sync(~0u, packets[i].z, 4), other.w = __shfl_xor_sync(~0u, packets[i].w, 4);
#pragma unroll
      for (int step = 2 * i; step < 2 * i + 2; ++step) {
#pragma unroll
        for (int tile = 0; tile < kMTiles; ++tile) {
          F::multiply_few(sums[tile][step % kChains], weights[tile][step],
                          {values_of(packets[i], step % 2), values_of(other, step % 2)});
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kMTiles * kChains; ++i) {
      A(&sum)[4] = sums[i / kChains][i % kChains];
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const A own = sum[j], others = sum[j + 1];
        sum[j] = row == 0 ? own : others, sum[j + 1] = row == 0 ? others : own;
      }
      F::finish_few(sum);
    }
  }
};

}  // namespace xlstm::cuda
