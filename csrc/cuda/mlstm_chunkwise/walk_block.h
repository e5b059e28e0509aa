#pragma once
// A block of the forward walk: its shared memory, and its producer.
#include "cuda/mlstm_chunkwise/hopper_tiles.h"
#include "cuda/mlstm_chunkwise/token_maps.h"
#include "cuda/mlstm_chunkwise/walk.h"
#include "cuda/mlstm_chunkwise/walk_spans.h"

namespace xlstm::cuda {
namespace {

using namespace device;

using T = __nv_bfloat16;
constexpr Product kProduct = Product::bf16;

constexpr int kGroupThreads = kTileThreads;
constexpr int kMaxDepth = 256;
constexpr int kFirstTeamBarrier = 1;

struct Maps {
  CUtensorMap q, k, v;
};

// After it: two slabs for P, one of each warpgroup for what it stores, and the ring. A stage has the slabs of Q, of K
// and of V, whose columns the warpgroups share out.
template <int kDepth, int kGroups>
struct alignas(kSharedAlignment) Shared {
  static constexpr int kDepthSlabs = kDepth / kSlabColumns, kStageSlabs = 2 * kDepthSlabs + kGroups;
  static constexpr int kStages = kDepth == kMaxDepth ? 2 : kDepth == 64 && kGroups == 2 ? 4 : 3;
  static constexpr int kFirstStage = 2 + kGroups, kSlabs = kFirstStage + kStages * kStageSlabs;

  Block block;  // here, because the state leaves it no registers
  SpanGates spans[kStages];
  float n[2][kDepth];       // that enters a span
  float of_rows[2][kSpan];  // what h of a token is multiplied by
  uint64_t full[kStages], empty[kStages], scores_full[2];

  XLSTM_DEVICE uint32_t slab(int index) const { return shared_address(this + 1) + index * kSlabBytes; }
  XLSTM_DEVICE Ring ring() const {
    return Ring(slab(kFirstStage), shared_address(full), shared_address(empty), kStages, kStageSlabs * kSlabBytes);
  }
  XLSTM_DEVICE uint32_t scores(int span) const { return slab(span % 2); }
  XLSTM_DEVICE uint32_t output(int group) const { return slab(2 + group); }
  // What an address in a slab points to.
  template <class X>
  XLSTM_DEVICE X& at(uint32_t address) {
    return *reinterpret_cast<X*>(reinterpret_cast<unsigned char*>(this + 1) + (address - shared_address(this + 1)));
  }
};

template <int kDepth, int kGroups>
constexpr size_t kSharedBytes = sizeof(Shared<kDepth, kGroups>) + Shared<kDepth, kGroups>::kSlabs * kSlabBytes;

// A warp. Spans come in order; the last stage says that there are no more.
template <int kDepth, int kGroups>
struct Producer {
  using S = Shared<kDepth, kGroups>;
  const Maps& maps;
  const Block& block;
  S& s;
  int groups;

  XLSTM_DEVICE void run(const MlstmStatesParams<float>& p) const {
    Spans spans(p, block);
    Ring ring = s.ring();
    const bool one = threadIdx.x % 32 == 0;
#pragma unroll 1
    for (;; ring.advance()) {
      if (!XLSTM_MUTANT("mlstm_walk: a stage is filled while it is read")) ring.await_empty();
      SpanGates& gates = s.spans[ring.stage()];
      const bool over = spans.over();
      if (one && over) gates.count = 0;
      if (one && !over) send(ring, spans.first());
      if (!over) spans.describe(gates);
      __syncwarp();
      if (one) mbarrier_arrive(ring.full(), over ? 2 : 1);
      if (over) break;
    }
  }

 private:
  XLSTM_DEVICE void send(const Ring& ring, int first) const {
    mbarrier_arrive_expect_tx(ring.full(), (2 * S::kDepthSlabs + groups) * kSlabBytes);
    uint32_t to = ring.memory();
    const auto bring = [&](const CUtensorMap& map, int column) {
      const int corner[4] = {column, static_cast<int>(block.tokens.begin) + first, static_cast<int>(block.head),
                             static_cast<int>(block.tokens.row)};
      tma_load(to, &map, corner, ring.full());
      to += kSlabBytes;
    };
#pragma unroll 1
    for (int j = 0; j < S::kDepthSlabs; ++j) bring(maps.q, j * kSlabColumns);
#pragma unroll 1
    for (int j = 0; j < S::kDepthSlabs; ++j) bring(maps.k, j * kSlabColumns);
#pragma unroll 1
    for (int g = 0; g < groups; ++g) bring(maps.v, block.first_column + g * kSlabColumns);
  }
};

}  // namespace
}  // namespace xlstm::cuda
