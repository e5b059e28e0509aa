#pragma once
// A thread of the convolution owns a few neighbouring features of one run of tokens. Its accesses are whole where every
// row of the call starts at a multiple of their size: that is asked once, before the launch.
#include "cuda/conv/conv.h"
#include "cuda/device/device.h"
#include "cuda/packs.h"
#include "cuda/recurrent/cell_math.h"

namespace xlstm::cuda {

constexpr int kConvThreads = 128;  // at most

struct ConvPlace {
  int64_t row, feature;  // row: a slot, or what else a block has for itself
};

// Divisions have 32 bits: others are calls.
XLSTM_DEVICE ConvPlace conv_place(unsigned across, int count) {
  const unsigned row = blockIdx.x / across, part = blockIdx.x - row * across;
  return {row, (int64_t{part} * blockDim.x + threadIdx.x) * count};
}

// `across` blocks for each row, whose threads own `count` features each.
struct ConvLaunch {
  device::Launch launch;
  unsigned across;
  cudaError_t refused = cudaSuccess;
};

inline ConvLaunch conv_launch(const char* name, int64_t rows, int64_t features, int count, cudaStream_t stream) {
  const int64_t threads = (features + count - 1) / count, warps = (threads + 31) / 32;
  const int64_t block = warps * 32 < kConvThreads ? warps * 32 : kConvThreads, across = (threads + block - 1) / block;
  ConvLaunch l{};
  if (across > device::kMaxGridX || rows > device::kMaxGridX / across) l.refused = cudaErrorInvalidConfiguration;
  l.across = static_cast<unsigned>(across);
  l.launch.grid = dim3(static_cast<unsigned>(l.refused ? 0 : rows * across));
  l.launch.block = dim3(static_cast<unsigned>(block));
  l.launch.name = name;
  l.launch.stream = stream;
  return l;
}

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
