#pragma once
// A thread of the convolution owns a few neighbouring features of one run of tokens. Its accesses are whole where every
// row of the call starts at a multiple of their size: that is asked once, before the launch.
#include "cuda/columns.h"
#include "cuda/conv/conv.h"
#include "cuda/device/device.h"
#include "cuda/packs.h"
#include "cuda/recurrent/cell_math.h"

namespace xlstm::cuda {

// Weights by distance, zeros past the taps and the features; and the bias.
template <int kCount>
XLSTM_DEVICE void load_weights(float (&w)[kFewTaps][kCount], float (&bias)[kCount], const ConvForwardParams<void>& p,
                               int64_t feature) {
  const int64_t taps = p.shape.taps, count = p.shape.features - feature;
  device::with_type(p.weight.type, [&]<class W>() {
    const W* weight = static_cast<const W*>(p.weight.data) + feature * taps;
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
#pragma unroll
      for (int d = 0; d < kFewTaps; ++d) {
        w[d][c] = c < count && d < taps ? device::widen<float>(weight[c * taps + taps - 1 - d]) : 0.f;
      }
    }
  });
  const bool given = p.bias.data != nullptr;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    bias[c] = given && c < count ? device::load_any<float>(p.bias.data, p.bias.type, feature + c) : 0.f;
  }
}

// Input s of a sequence from this thread's features on: of x, or of the state; zeros where there is neither.
template <class P, class T>
XLSTM_DEVICE P load_input(const ConvForwardParams<void>& p, const ConvRun& run, int64_t s, int64_t feature,
                          bool whole) {
  const int64_t count = p.shape.features - feature;
  if (s >= run.begin) {
    return load_pack<P>(static_cast<const T*>(p.x.data) + p.x.offset(run.row, 0, s) + feature, count, whole);
  }
  const int64_t row = s - run.begin + p.shape.past();
  if (p.state.data == nullptr || row < 0) return P{};
  return load_pack<P>(static_cast<const T*>(p.state.data) + p.state.offset(run.sequence, 0, row) + feature, count,
                      whole);
}

}  // namespace xlstm::cuda
