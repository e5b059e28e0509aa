// Causal depthwise convolution, forward, up to four taps (docs/kernels/conv.md): a thread walks a run of tokens with 16
// bytes of features, and the last three inputs in registers.
#include "cuda/conv/features.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kBatch = 4;  // tokens whose loads are in flight together

template <class T>
struct Window {
  static constexpr int kCount = Vector<T>::kCount;
  float past[kFewTaps - 1][kCount];  // inputs at the distances 1, 2, 3
  int seen;                          // how many of them the next token may see
};

// The inputs before the first token of a run, up to the last reset.
template <class T>
XLSTM_DEVICE Window<T> window_before(const ConvForwardParams<void>& p, const ConvRun& run, int64_t feature,
                                     bool whole) {
  Window<T> window{};
  bool open = !XLSTM_MUTANT("causal_conv1d_fwd: the window of a run starts empty");
#pragma unroll
  for (int d = 1; d < kFewTaps; ++d) {
    const int64_t s = run.first - d;
    if (open && d <= p.shape.past()) {
      const auto x = load_input<Vector<T>, T>(p, run, s, feature, whole);
#pragma unroll
      for (int c = 0; c < Window<T>::kCount; ++c) window.past[d - 1][c] = widen<float>(x.x[c]);
      window.seen = d;
      open = s < run.begin || !p.reset.at(run.row, s);
    }
  }
  return window;
}

// y of one token, and the window moves on.
template <class T>
XLSTM_DEVICE Vector<T> convolve(Window<T>& window, const Vector<T>& x, const float (&w)[kFewTaps][Window<T>::kCount],
                                const float (&bias)[Window<T>::kCount], bool silu, int past) {
  Vector<T> y;
#pragma unroll
  for (int c = 0; c < Window<T>::kCount; ++c) {
    const float input = widen<float>(x.x[c]);
    float sum = bias[c] + w[0][c] * input;
#pragma unroll
    for (int d = 1; d < kFewTaps; ++d) {
      if (d <= window.seen) sum += w[d][c] * window.past[d - 1][c];
    }
#pragma unroll
    for (int d = kFewTaps - 2; d > 0; --d) window.past[d][c] = window.past[d - 1][c];
    window.past[0][c] = input;
    y.x[c] = narrow<T>(silu ? sum * data_sigmoid<T>(sum) : sum);
  }
  window.seen = min(window.seen + 1, past);
  return y;
}

// The last inputs that a next token would see, zeros for the others.
template <class T>
XLSTM_DEVICE void store_next_state(const ConvForwardParams<void>& p, const ConvRun& run, const Window<T>& window,
                                   int64_t feature, bool whole) {
  const int64_t past = p.shape.past();
  T* next = static_cast<T*>(const_cast<void*>(p.next.data)) + feature;
#pragma unroll
  for (int d = 1; d < kFewTaps; ++d) {
    const bool seen = d <= window.seen || XLSTM_MUTANT("causal_conv1d_fwd: the state keeps what a reset hides");
    Vector<T> x;
#pragma unroll
    for (int c = 0; c < Window<T>::kCount; ++c) x.x[c] = narrow<T>(seen ? window.past[d - 1][c] : 0.f);
    if (d > past) continue;
    store_pack(next + p.next.offset(run.sequence, 0, past - d), x, p.shape.features - feature, whole);
  }
}

template <class T>
__global__ void __launch_bounds__(kColumnThreads) conv_fwd(ConvForwardParams<void> p, unsigned across, bool whole) {
  constexpr int kCount = Window<T>::kCount;
  const auto [slot, feature] = column_place(across, kCount);
  if (feature >= p.shape.features) return;
  const ConvRun run = conv_run<unsigned>(p.shape, kConvTokens, slot);
  const int64_t count = p.shape.features - feature;
  const int past = static_cast<int>(p.shape.past());
  float w[kFewTaps][kCount], bias[kCount];
  load_weights(w, bias, p, feature);
  Window<T> window = window_before<T>(p, run, feature, whole);
  const T* x = static_cast<const T*>(p.x.data) + p.x.offset(run.row, 0, run.first) + feature;
  T* y = static_cast<T*>(const_cast<void*>(p.y.data)) + p.y.offset(run.row, 0, run.first) + feature;
#pragma unroll 1
  for (int64_t t = run.first; t < run.last; t += kBatch) {
    Vector<T> inputs[kBatch];
    bool reset[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool inside = t + i < run.last;
      inputs[i] = inside ? load_pack<Vector<T>>(x + i * p.x.time, count, whole) : Vector<T>{};
      reset[i] = inside && p.reset.at(run.row, t + i) && !XLSTM_MUTANT("causal_conv1d_fwd: resets ignored");
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (t + i >= run.last) break;
      if (reset[i]) window.seen = 0;
      store_pack(y + i * p.y.time, convolve(window, inputs[i], w, bias, p.silu, past), count, whole);
    }
    x += kBatch * p.x.time, y += kBatch * p.y.time;
  }
  if (run.ends) store_next_state(p, run, window, feature, whole);
}

}  // namespace

cudaError_t conv_fwd_few(const ConvForwardParams<void>& p, cudaStream_t stream) {
  const int64_t F = p.shape.features, count = 16 / bytes_of(p.x.type), slots = conv_slots(p.shape, kConvTokens);
  const ColumnLaunch l = column_launch("causal_conv1d fwd", slots, F, static_cast<int>(count), stream);
  if (slots == 0) return cudaSuccess;
  if (l.refused != cudaSuccess) return l.refused;
  const bool fit = packs_fit(p.x, F, count) && packs_fit(p.y, F, count) && packs_fit(p.state, F, count) &&
                   packs_fit(p.next, F, count);
  const bool whole = fit || XLSTM_MUTANT("causal_conv1d_fwd: whole vectors in rows that are not aligned");
  switch (p.x.type) {
    case Type::bf16:
      return launch(l.launch, conv_fwd<__nv_bfloat16>, p, l.across, whole);
    case Type::f16:
      return launch(l.launch, conv_fwd<__half>, p, l.across, whole);
    case Type::f32:
      return launch(l.launch, conv_fwd<float>, p, l.across, whole);
    case Type::f64:
      return cudaErrorInvalidValue;
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
