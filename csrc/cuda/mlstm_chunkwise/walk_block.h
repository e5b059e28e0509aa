#pragma once
// A block of a walk: its shared memory, and its producer. Walks differ in what X, Y and Z are (outputs.h), in the
// direction, and in what the gates make of a span.
#include "cuda/mlstm_chunkwise/hopper_tiles.h"
#include "cuda/mlstm_chunkwise/states_block.h"
#include "cuda/mlstm_chunkwise/token_maps.h"

namespace xlstm::cuda {
namespace {

using namespace device;

using T = __nv_bfloat16;
constexpr Product kProduct = Product::bf16;

constexpr int kSpan = 64;  // tokens, at most
constexpr int kGroupThreads = kTileThreads;
constexpr int kMaxDepth = 256;
constexpr int kFirstTeamBarrier = 1;

struct Maps {
  CUtensorMap x, y, z;
};

// After it: two slabs for P, one of each warpgroup for what it stores, and the ring. A stage has the slabs of X, of Y
// and of Z, whose columns the warpgroups share out. Gates: of a span. Extra: what else consumers share.
template <class Gates_, class Extra, int kDepth_, int kGroups_>
struct alignas(kSharedAlignment) Shared {
  using Gates = Gates_;
  static constexpr int kDepth = kDepth_, kGroups = kGroups_;
  static constexpr int kDepthSlabs = kDepth / kSlabColumns, kStageSlabs = 2 * kDepthSlabs + kGroups;
  static constexpr int kStages = kDepth == kMaxDepth ? 2 : kDepth == 64 && kGroups == 2 ? 4 : 3;
  static constexpr int kFirstStage = 2 + kGroups, kSlabs = kFirstStage + kStages * kStageSlabs;

  Block blocks[kGroups];  // of each warpgroup: here, because the state leaves them no registers
  int first_column;       // of Z and of out
  int groups;             // warpgroups that have columns
  Gates spans[kStages];
  Extra extra;
  uint64_t full[kStages], empty[kStages], scores_full[2];

  static constexpr size_t bytes() { return sizeof(Shared) + kSlabs * kSlabBytes; }
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

  // By one thread.
  XLSTM_DEVICE void init_mbarriers() const {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(shared_address(&full[stage]), 2);  // bytes of TMA, and the gates
      mbarrier_init(shared_address(&empty[stage]), groups * kGroupThreads / 32);
    }
    for (const uint64_t& of_scores : scores_full) mbarrier_init(shared_address(&of_scores), kGroupThreads / 32);
    fence_mbarrier_init();
  }
};

// A warp. Spans come in order; the last stage says that there are no more.
template <class S, class Spans>
struct Producer {
  const Maps& maps;
  S& s;

  XLSTM_DEVICE void run(Spans& spans) const {
    Ring ring = s.ring();
    const bool one = threadIdx.x % 32 == 0;
#pragma unroll 1
    for (;; ring.advance()) {
      if (!XLSTM_MUTANT("mlstm_walk: a stage is filled while it is read")) ring.await_empty();
      typename S::Gates& gates = s.spans[ring.stage()];
      const bool over = spans.over();
      if (one && !over) send(ring, spans.first());
      spans.describe(gates);
      __syncwarp();
      if (one) mbarrier_arrive(ring.full(), over ? 2 : 1);
      if (over) break;
    }
  }

 private:
  XLSTM_DEVICE void send(const Ring& ring, int first) const {
    mbarrier_arrive_expect_tx(ring.full(), (2 * S::kDepthSlabs + s.groups) * kSlabBytes);
    uint32_t to = ring.memory();
    const Block& block = s.blocks[0];
    const auto bring = [&](const CUtensorMap& map, int column) {
      const int corner[4] = {column, static_cast<int>(block.tokens.begin) + first, static_cast<int>(block.head),
                             static_cast<int>(block.tokens.row)};
      tma_load(to, &map, corner, ring.full());
      to += kSlabBytes;
    };
#pragma unroll 1
    for (int j = 0; j < S::kDepthSlabs; ++j) bring(maps.x, j * kSlabColumns);
#pragma unroll 1
    for (int j = 0; j < S::kDepthSlabs; ++j) bring(maps.y, j * kSlabColumns);
#pragma unroll 1
    for (int g = 0; g < s.groups; ++g) bring(maps.z, s.first_column + g * kSlabColumns);
  }
};

}  // namespace
}  // namespace xlstm::cuda
