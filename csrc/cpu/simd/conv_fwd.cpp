// Causal depthwise convolution, forward: a work item is a run of tokens of a block of features. Nearby rows of x stay
// in the cache.
#include <cstring>

#include "cpu/simd/conv.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <class E, class T = ArithmeticOf<E>>
void convolve_run(const ConvForwardParams<T>& p, const ConvRun& run, const T* w, int64_t from, int64_t count) {
  const PreActivations<E> pre{p, run, w, from, count};
  pre.each(run.first, run.last, [&](int64_t t, int64_t j, int64_t lanes, Vec<T> a) {
    store_elements(row_of<E>(p.y, run.row, 0, t) + from + j, p.silu ? a * sigmoid<T>(a) : a, lanes);
  });
}

// The last inputs that a next token would see, zeros for the others. In place each row is read before it is written.
template <class E, class T = ArithmeticOf<E>>
void store_next_state(const ConvForwardParams<T>& p, const ConvRun& run, int64_t from, int64_t count) {
  const int64_t past = p.shape.past(), seen = conv_seen(p, run, run.end);
  const size_t bytes = static_cast<size_t>(count) * sizeof(E);
  for (int64_t row = 0; row < past; ++row) {
    E* to = row_of<E>(p.next, run.sequence, 0, row) + from;
    const int64_t distance = past - row;
    if (distance <= seen)
      std::memmove(to, conv_input<E>(p, run, run.end - distance) + from, bytes);
    else
      std::memset(to, 0, bytes);
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
  with_elements_of<T>(p.x.type, [&](auto element) {
    using E = decltype(element);
    runtime.parallel(slots * blocks, conv_grain(p.shape, 1), [&](int64_t item) {
      const int64_t from = item % blocks * kConvFeatures, count = min_of(kConvFeatures, F - from);
      const ConvRun run = conv_run(p.shape, length, item / blocks);
      convolve_run<E>(p, run, w, from, count);
      if (run.ends) store_next_state<E>(p, run, from, count);
    });
  });
}

template void conv_fwd<float>(const ConvForwardParams<float>&, const Runtime&);
template void conv_fwd<double>(const ConvForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
