// Causal depthwise convolution, forward: a work item is a run of tokens of a block of features. Nearby rows of x stay
// in the cache.
#include "cpu/simd/conv.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <class T>
void convolve_run(const ConvForwardParams<T>& p, const ConvRun& run, const T* w, int64_t from, int64_t count) {
  for (int64_t t = run.first; t < run.last; ++t) {
    const PreActivation<T> pre{p, run, w, t, conv_seen(p, run, t)};
    T* y = p.y.at(run.row, 0, t) + from;
    for_vectors<T>(count, [&](int64_t j, int64_t lanes) {
      const Vec<T> a = pre(from + j, lanes);
      store_n(y + j, p.silu ? a * sigmoid<T>(a) : a, lanes);
    });
  }
}

// The last inputs that a next token would see, zeros for the others. In place each row is read before it is written.
template <class T>
void store_next_state(const ConvForwardParams<T>& p, const ConvRun& run, int64_t from, int64_t count) {
  const int64_t past = p.shape.past(), seen = conv_seen(p, run, run.end);
  for (int64_t row = 0; row < past; ++row) {
    T* to = p.next.at(run.sequence, 0, row) + from;
    const int64_t distance = past - row;
    if (distance <= seen)
      scale_row<T>(to, 1, conv_input(p, run, run.end - distance) + from, count);
    else
      fill_row<T>(to, 0, count);
  }
}

}  // namespace

template <class T>
void conv_fwd(const ConvForwardParams<T>& p, const Runtime& runtime) {
  const int64_t F = p.shape.features, length = conv_run_length(p.shape), slots = conv_slots(p.shape, length);
  if (slots == 0) return;
  const size_t bytes = static_cast<size_t>(p.shape.taps * F) * sizeof(T);
  const T* w = weights_by_distance(p, static_cast<T*>(runtime.scratch(0, bytes)));
  const int64_t blocks = ceil_div(F, kConvFeatures);
  runtime.parallel(slots * blocks, conv_grain(p.shape, 1), [&](int64_t item) {
    const int64_t from = item % blocks * kConvFeatures, count = min_of(kConvFeatures, F - from);
    const ConvRun run = conv_run(p.shape, length, item / blocks);
    convolve_run(p, run, w, from, count);
    if (run.ends) store_next_state(p, run, from, count);
  });
}

template void conv_fwd<float>(const ConvForwardParams<float>&, const Runtime&);
template void conv_fwd<double>(const ConvForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
