#pragma once
// A thread of the usual maps owns one block of four features of a run of tokens, with its weights in registers.
#include "cuda/columns.h"
#include "cuda/device/device.h"
#include "cuda/headwise/headwise.h"
#include "cuda/packs.h"

namespace xlstm::cuda {

template <class T>
using BlockPack = device::Pack<T, kUsualBlock>;

struct BlockWeights {
  float w[kHeadwiseMaps][kUsualBlock][kUsualBlock];  // (out, in)
};

// Zeros of a map that is not there.
XLSTM_DEVICE BlockWeights load_weights(const HeadwiseForwardParams<void>& p, int64_t block) {
  BlockWeights weights{};
#pragma unroll
  for (int map = 0; map < kHeadwiseMaps; ++map) {
    if (map >= p.shape.maps) continue;
    device::with_type(p.weight[map].type, [&]<class W>() {
      constexpr int kCount = sizeof(W) == 8 ? 2 : kUsualBlock;
      using WeightPack = device::Pack<W, kCount>;
      const bool whole = device::aligned_for<WeightPack>(p.weight[map].data);
      const W* from = static_cast<const W*>(p.weight[map].data) + block * kUsualBlock * kUsualBlock;
#pragma unroll
      for (int first = 0; first < kUsualBlock * kUsualBlock; first += kCount) {
        const auto pack = load_pack<WeightPack>(from + first, kCount, whole);
#pragma unroll
        for (int c = 0; c < kCount; ++c) {
          const int out = (first + c) / kUsualBlock, in = (first + c) % kUsualBlock;
          const bool transposed = XLSTM_MUTANT("headwise_linear: the blocks are transposed");
          (transposed ? weights.w[map][in][out] : weights.w[map][out][in]) = device::widen<float>(pack.x[c]);
        }
      }
    });
  }
  return weights;
}

// Tokens [first, last) of a row of x, and the first feature of the block.
struct BlockRun {
  int64_t row, first, last, feature;

  XLSTM_DEVICE int64_t start(const AnyView& x) const { return x.offset(row, 0, first) + feature; }
};

template <int64_t kLength>
XLSTM_DEVICE BlockRun block_run(const HeadwiseShape& shape, const ColumnPlace& place) {
  const unsigned per_row = static_cast<unsigned>((shape.seqlen + kLength - 1) / kLength);
  const unsigned slot = static_cast<unsigned>(place.row), row = slot / per_row;
  const int64_t first = int64_t{slot - row * per_row} * kLength;
  return {row, first, min(first + kLength, shape.seqlen), place.feature};
}

inline bool block_packs_fit(const AnyView& x) {
  return packs_fit(x, kUsualBlock, kUsualBlock);
}

}  // namespace xlstm::cuda
