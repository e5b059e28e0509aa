#pragma once
// What forward and backward of the convolution share: the cut of the work, and the pre-activations of a run.
#include "cpu/simd/elements.h"
#include "cpu/simd/math.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

constexpr int64_t kConvFeatures = 256;  // of a block
constexpr int kUsualTaps = 4, kUsualPast = kUsualTaps - 1;
constexpr int kConvTokens = 4;  // that share loads of inputs and weights, where the taps are the usual ones

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
template <class E, class T = ArithmeticOf<E>>
const E* conv_input(const ConvForwardParams<T>& p, const ConvRun& run, int64_t s) {
  if (s >= run.begin) return row_of<const E>(p.x, run.row, 0, s);
  return row_of<const E>(p.state, run.sequence, 0, s - run.begin + p.shape.past());
}

// How many inputs before token t it sees, all of them next to it.
template <class T>
int64_t conv_seen(const ConvForwardParams<T>& p, const ConvRun& run, int64_t t) {
  int64_t seen = 0;
  while (seen < p.shape.past() && (t - seen > run.begin || p.state.data)) {
    if (t - seen >= run.begin && t - seen < run.end && p.reset.at(run.row, t - seen)) break;
    ++seen;
  }
  return seen;
}

// Whether the taps are the usual ones, and tokens [first, last) of the sequence, with no reset between them.
template <class T>
bool conv_usual(const ConvForwardParams<T>& p, const ConvRun& run, int64_t first, int64_t last) {
  if (p.shape.taps != kUsualTaps || first < run.begin || last > run.end) return false;
  for (int64_t t = first + 1; p.reset.data && t < last; ++t) {
    if (p.reset.at(run.row, t)) return false;
  }
  return true;
}

// bias + sum of weights times inputs, the farthest first, for the features [from, from + count) of a run. w (K, F).
template <class E, class T = ArithmeticOf<E>>
struct PreActivations {
  const ConvForwardParams<T>& p;
  const ConvRun& run;
  const T* w;
  int64_t from, count;

  // Calls f(t, j, lanes, sum) for each vector of tokens [first, last), j: from `from` on.
  template <class F>
  XLSTM_INLINE_MEMBER void each(int64_t first, int64_t last, F f) const {
    for (int64_t t = first; t < last;) {
      if (t + kConvTokens <= last && conv_usual(p, run, t - kUsualPast, t + kConvTokens))
        usual(t, f), t += kConvTokens;
      else
        any(t, f), ++t;
    }
  }

 private:
  XLSTM_INLINE_MEMBER Vec<T> start(int64_t j, int64_t lanes) const {
    return p.bias ? load_n(p.bias + from + j, lanes) : splat<T>(0);
  }
  XLSTM_INLINE_MEMBER Vec<T> weight(int64_t d, int64_t j, int64_t lanes) const {
    return load_n(w + d * p.shape.features + from + j, lanes);
  }

  template <class F>
  XLSTM_INLINE_MEMBER void any(int64_t t, F f) const {
    const int64_t seen = conv_seen(p, run, t);
    for_vectors<T>(count, [&](int64_t j, int64_t lanes) {
      Vec<T> sum = start(j, lanes);
      for (int64_t d = seen; d >= 0; --d) {
        sum += weight(d, j, lanes) * load_elements(conv_input<E>(p, run, t - d) + from + j, lanes);
      }
      f(t, j, lanes, sum);
    });
  }

  // kConvTokens of them from t on.
  template <class F>
  XLSTM_INLINE_MEMBER void usual(int64_t t, F f) const {
    const E* x = conv_input<E>(p, run, t - kUsualPast) + from;
    for_vectors<T>(count, [&](int64_t j, int64_t lanes) {
      Vec<T> sums[kConvTokens], weights[kUsualTaps];
      for (int d = 0; d < kUsualTaps; ++d) weights[d] = weight(d, j, lanes);
      for (int c = 0; c < kConvTokens; ++c) sums[c] = start(j, lanes);
      XLSTM_UNROLL
      for (int s = 0; s < kUsualPast + kConvTokens; ++s) {
        const Vec<T> input = load_elements(x + s * p.x.time + j, lanes);
        XLSTM_UNROLL
        for (int c = 0; c < kConvTokens; ++c) {
          const int d = c + kUsualPast - s;
          if (d >= 0 && d < kUsualTaps) sums[c] += weights[d] * input;
        }
      }
      for (int c = 0; c < kConvTokens; ++c) f(t + c, j, lanes, sums[c]);
    });
  }
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
