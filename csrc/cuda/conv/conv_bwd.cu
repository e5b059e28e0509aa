// Causal depthwise convolution, backward, up to four taps (docs/kernels/conv.md): a thread walks a run of tokens from
// its last to its first one with four features. With g[t] the gradient of the pre-activation,
//
//   dx[s] = sum_d weight[d] g[s + d]        dweight[d] = sum_s x[s] g[s + d]        dbias = sum_t g[t]
//
// It has the inputs at t, t - 1, t - 2, t - 3 for g[t], and g of s, s + 1, s + 2, s + 3 for the rest: x and dy are read
// once, but for the three tokens on either side of a run.
#include "cuda/conv/features.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kBatch = 2;     // tokens whose loads are in flight together
constexpr int kFeatures = 4;  // of a thread
constexpr int kResidentBlocks = 3;

template <class T>
using Features = Pack<T, kFeatures>;

struct Walk {
  float w[kFewTaps][kFeatures], bias[kFeatures];
  float x[kFewTaps][kFeatures];   // inputs t, t - 1, ..
  float g[kFewTaps][kFeatures];   // of s, s + 1, ..
  float dw[kFewTaps][kFeatures];  // sums
  float db[kFeatures];
  unsigned resets;  // bit i: before token t - i
  int reach;        // the greatest distance from which a token sees s
};

template <class T>
XLSTM_DEVICE void set_input(Walk& walk, int place, const Features<T>& x) {
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) walk.x[place][c] = widen<float>(x.x[c]);
}

XLSTM_DEVICE bool reset_at(const ConvForwardParams<void>& p, const ConvRun& run, int64_t s) {
  return s >= run.begin && p.reset.at(run.row, s);
}

// To the input before: x[0] and the bits follow, g[0] is free.
XLSTM_DEVICE void step_back(Walk& walk, int past) {
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) {
#pragma unroll
    for (int d = kFewTaps - 1; d > 0; --d) walk.g[d][c] = walk.g[d - 1][c];
  }
  walk.reach = min(walk.reach + 1, past);
}

XLSTM_DEVICE void drop_input(Walk& walk) {
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) {
#pragma unroll
    for (int d = 0; d < kFewTaps - 1; ++d) walk.x[d][c] = walk.x[d + 1][c];
  }
  if (walk.resets & 1u) walk.reach = -1;
  walk.resets >>= 1;
}

// g[0] from dy of token t.
template <class T>
XLSTM_DEVICE void set_g(Walk& walk, const Features<T>& dy, bool silu, int past) {
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) {
    float grad = widen<float>(dy.x[c]);
    if (silu) {
      float sum = walk.bias[c] + walk.w[0][c] * walk.x[0][c];
#pragma unroll
      for (int d = 1; d < kFewTaps; ++d) {
        const bool sees = d <= past && (walk.resets & ((1u << d) - 1)) == 0;
        if (sees) sum += walk.w[d][c] * walk.x[d][c];
      }
      const float sigmoid = data_sigmoid<T>(sum);
      grad *= sigmoid * (1 + sum * (1 - sigmoid));
    }
    walk.g[0][c] = grad;
  }
}

// The gradient of input s, which tokens from the distance `nearest` on see; and its part of the sums for the weights.
XLSTM_DEVICE void input_grad(float (&dx)[kFeatures], Walk& walk, int nearest) {
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) {
    float sum = 0;
#pragma unroll
    for (int d = 0; d < kFewTaps; ++d) {
      if (d >= nearest && d <= walk.reach) {
        sum += walk.w[d][c] * walk.g[d][c];
        walk.dw[d][c] += walk.x[0][c] * walk.g[d][c];
      }
    }
    dx[c] = sum;
  }
}

// The state after the last token holds input s, where no reset lies between.
XLSTM_DEVICE void add_final_state_grad(float (&dx)[kFeatures], const ConvBackwardParams<void, float>& p,
                                       const ConvRun& run, int64_t s, int64_t feature) {
  const ConvShape& shape = p.forward.shape;
  const int64_t row = shape.past() - (run.end - s);
  if (p.dnext == nullptr || row < 0) return;
  const float* dnext = p.dnext + (run.sequence * shape.past() + row) * shape.features + feature;
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) {
    if (c < shape.features - feature) dx[c] += dnext[c];
  }
}

XLSTM_DEVICE void store_sums(const ConvShape& shape, float* sums, int64_t feature, const Walk& walk, bool whole) {
  const int64_t count = shape.features - feature;
  sums += feature;
#pragma unroll
  for (int d = 0; d <= kFewTaps; ++d) {
    if (d < shape.taps || d == kFewTaps) {
      Features<float> row;
#pragma unroll
      for (int c = 0; c < kFeatures; ++c) row.x[c] = d == kFewTaps ? walk.db[c] : walk.dw[d % kFewTaps][c];
      store_pack(sums + (d == kFewTaps ? shape.taps : d) * shape.features, row, count, whole);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks)
    conv_bwd(ConvBackwardParams<void, float> p, float* sums, unsigned across, bool whole) {
  const ConvForwardParams<void>& in = p.forward;
  const auto [slot, feature] = column_place(across, kFeatures);
  if (feature >= in.shape.features) return;
  const ConvRun run = conv_run<unsigned>(in.shape, kConvGradTokens, slot);
  const int64_t count = in.shape.features - feature;
  const int past = static_cast<int>(in.shape.past());
  const int64_t seers = XLSTM_MUTANT("causal_conv1d_bwd: tokens after a run ignored") ? 0 : past;
  const int64_t top = min(run.last + seers, run.end);
  Walk walk{};
  walk.reach = -1;
  load_weights(walk.w, walk.bias, in, feature);
  bool open = top == run.end;  // no reset so far between here and the end of the sequence
#pragma unroll
  for (int d = 0; d < kFewTaps - 1; ++d) {
    set_input(walk, d, load_input<Features<T>, T>(in, run, top - 1 - d, feature, whole));
    if (d < 2) walk.resets |= static_cast<unsigned>(reset_at(in, run, top - 1 - d)) << d;
  }
#pragma unroll 1
  for (int64_t batch = top - 1; batch >= run.first; batch -= kBatch) {
    Features<T> dy[kBatch], x[kBatch];
    unsigned resets = 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t t = batch - i;
      if (t < run.first) continue;
      const T* from = static_cast<const T*>(p.dy.data) + p.dy.offset(run.row, 0, t) + feature;
      dy[i] = load_pack<Features<T>>(from, count, whole);
      x[i] = load_input<Features<T>, T>(in, run, t - 3, feature, whole);
      resets |= static_cast<unsigned>(reset_at(in, run, t - 2)) << (i + 2);
    }
    walk.resets |= resets;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t t = batch - i;
      if (t < run.first) break;
      set_input(walk, kFewTaps - 1, x[i]);
      step_back(walk, past);
      set_g(walk, dy[i], in.silu, past);
      if (t < run.last) {
        float dx[kFeatures];
        input_grad(dx, walk, 0);
        if (open) add_final_state_grad(dx, p, run, t, feature);
        Features<T> narrowed;
#pragma unroll
        for (int c = 0; c < kFeatures; ++c) {
          narrowed.x[c] = narrow<T>(dx[c]);
          walk.db[c] += walk.g[0][c];
        }
        T* to = static_cast<T*>(const_cast<void*>(p.dx.data)) + p.dx.offset(run.row, 0, t) + feature;
        store_pack(to, narrowed, count, whole);
      }
      open = open && (walk.resets & 1u) == 0;
      drop_input(walk);
    }
  }
  if (run.starts) {
#pragma unroll 1
    for (int before = 1; before <= past; ++before) {
      const int64_t s = run.begin - before;
      step_back(walk, past);
      float dx[kFeatures];
      input_grad(dx, walk, XLSTM_MUTANT("causal_conv1d_bwd: the state sees itself") ? 0 : before);
      if (open) add_final_state_grad(dx, p, run, s, feature);
      Features<float> wide;
#pragma unroll
      for (int c = 0; c < kFeatures; ++c) wide.x[c] = dx[c];
      store_pack(p.dstate + (run.sequence * past + past - before) * in.shape.features + feature, wide, count, whole);
      drop_input(walk);
    }
  }
  store_sums(in.shape, sums + slot * (in.shape.taps + 1) * in.shape.features, feature, walk, whole);
}

}  // namespace

cudaError_t conv_bwd_few(const ConvBackwardParams<void, float>& p, float* sums, cudaStream_t stream) {
  const ConvForwardParams<void>& in = p.forward;
  const int64_t F = in.shape.features, slots = conv_slots(in.shape, kConvGradTokens);
  const ColumnLaunch l = column_launch("causal_conv1d bwd", slots, F, kFeatures, stream);
  if (slots == 0) return cudaSuccess;
  if (l.refused != cudaSuccess) return l.refused;
  // What is written here in float32 is the op's own, and contiguous.
  const bool whole = packs_fit(in.x, F, kFeatures) && packs_fit(in.state, F, kFeatures) &&
                     packs_fit(p.dy, F, kFeatures) && packs_fit(p.dx, F, kFeatures);
  switch (in.x.type) {
    case Type::bf16:
      return launch(l.launch, conv_bwd<__nv_bfloat16>, p, sums, l.across, whole);
    case Type::f16:
      return launch(l.launch, conv_bwd<__half>, p, sums, l.across, whole);
    case Type::f32:
      return launch(l.launch, conv_bwd<float>, p, sums, l.across, whole);
    case Type::f64:
      return cudaErrorInvalidValue;
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
