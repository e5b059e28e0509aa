#pragma once
// What forward and backward of the convolution share: the cut of the work, and one token's pre-activation.
#include "cpu/simd/math.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

constexpr int64_t kConvFeatures = 256;  // of a block
constexpr int kUsualTaps = 4;

// Tokens of a run: with more taps more, so that the backward's sums of each run stay small beside x.
inline int64_t conv_run_length(const ConvShape& shape) {
  return max_of(64, 16 * shape.taps);
}

// Runs of so many blocks of features are worth a thread. `passes`: over the taps, for each token.
inline int64_t conv_grain(const ConvShape& shape, int64_t passes) {
  const int64_t tokens = max_of(1, min_of(conv_run_length(shape), shape.seqlen));
  return ceil_div(int64_t{1} << 16, passes * tokens * shape.taps * min_of(shape.features, kConvFeatures));
}

// The weights by distance, (K, F), in the calling thread's scratch.
template <class T>
const T* weights_by_distance(const ConvForwardParams<T>& p, T* to) {
  const int64_t F = p.shape.features, K = p.shape.taps;
  for (int64_t f = 0; f < F; ++f) {
    for (int64_t d = 0; d < K; ++d) to[d * F + f] = p.weight[f * K + K - 1 - d];
  }
  return to;
}

// Input s of a sequence, counted as tokens of its row: of x, or before the first token of the state.
template <class T>
XLSTM_INLINE const T* conv_input(const ConvForwardParams<T>& p, const ConvRun& run, int64_t s) {
  return s >= run.begin ? p.x.at(run.row, 0, s) : p.state.at(run.sequence, 0, s - run.begin + p.shape.past());
}

// How many inputs before token t it sees, all of them next to it.
template <class T>
int64_t conv_seen(const ConvForwardParams<T>& p, const ConvRun& run, int64_t t) {
  int64_t seen = 0;
  while (seen < p.shape.past() && (t - seen > run.begin || p.state)) {
    if (t - seen >= run.begin && t - seen < run.end && p.reset.at(run.row, t - seen)) break;
    ++seen;
  }
  return seen;
}

// bias + sum of weights times inputs, for the features from j on. w (K, F).
template <class T>
struct PreActivation {
  const ConvForwardParams<T>& p;
  const ConvRun& run;
  const T* w;
  int64_t t, seen;

  XLSTM_INLINE_MEMBER Vec<T> operator()(int64_t j, int64_t lanes) const {
    const int64_t F = p.shape.features, from_x = min_of(seen, t - run.begin);
    const T *x = p.x.at(run.row, 0, t) + j, *weight = w + j;
    Vec<T> sum = p.bias ? load_n(p.bias + j, lanes) : splat<T>(0);
    if (from_x == kUsualTaps - 1 && seen == from_x) {
      XLSTM_UNROLL
      for (int d = 0; d < kUsualTaps; ++d) sum += load_n(weight + d * F, lanes) * load_n(x - d * p.x.time, lanes);
      return sum;
    }
    for (int64_t d = 0; d <= seen; ++d) {
      const T* input = d <= from_x ? x - d * p.x.time : conv_input(p, run, t - d) + j;
      sum += load_n(weight + d * F, lanes) * load_n(input, lanes);
    }
    return sum;
  }
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
