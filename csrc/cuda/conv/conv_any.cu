// Causal depthwise convolution with any number of taps, or in double, and the sums of both ways (docs/kernels/conv.md):
// a thread has one feature of a run of tokens, and asks the caches for its window again and again.
#include "cuda/conv/features.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kResidentBlocks = 4;

// One feature of a run.
template <class A>
struct Column {
  const ConvForwardParams<void>& p;
  const ConvRun& run;
  int64_t feature;

  XLSTM_DEVICE bool reset(int64_t s) const { return s >= run.begin && s < run.end && p.reset.at(run.row, s); }
  XLSTM_DEVICE A input(int64_t s) const {
    if (s >= run.begin) return load_any<A>(p.x.data, p.x.type, p.x.offset(run.row, 0, s) + feature);
    if (p.state.data == nullptr) return 0;
    const int64_t row = s - run.begin + p.shape.past();
    return load_any<A>(p.state.data, p.state.type, p.state.offset(run.sequence, 0, row) + feature);
  }
  XLSTM_DEVICE A weight(int64_t distance) const {
    return load_any<A>(p.weight.data, p.weight.type, feature * p.shape.taps + p.shape.past() - distance);
  }
  // How many inputs before token t it sees, all of them next to it.
  XLSTM_DEVICE int64_t seen(int64_t t) const {
    int64_t count = 0;
    while (count < p.shape.past() && !reset(t - count)) ++count;
    return count;
  }
  // How many tokens after s, all of them next to it, are not cut off from it.
  XLSTM_DEVICE int64_t seers(int64_t s) const {
    int64_t count = 0;
    while (count < p.shape.past() && s + count + 1 < run.end && !reset(s + count + 1)) ++count;
    return count;
  }
};

// y, or with dy the gradient of the pre-activation.
template <class A>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks)
    conv_any_fwd(ConvForwardParams<void> p, AnyView dy, A* g, unsigned across) {
  const auto [slot, feature] = column_place(across, 1);
  if (feature >= p.shape.features) return;
  const ConvRun run = conv_run<unsigned>(p.shape, kConvTokens, slot);
  const Column<A> column{p, run, feature};
  const A bias = p.bias.data ? load_any<A>(p.bias.data, p.bias.type, feature) : A{0};
  for (int64_t t = run.first; t < run.last; ++t) {
    const int64_t seen = XLSTM_MUTANT("causal_conv1d_any: resets ignored") ? p.shape.past() : column.seen(t);
    A sum = bias;
    for (int64_t d = 0; d <= seen; ++d) sum += column.weight(d) * column.input(t - d);
    const A sigmoid = p.silu ? data_sigmoid<A>(sum) : A{1};
    if (dy.data) {
      const A slope = p.silu ? sigmoid * (1 + sum * (1 - sigmoid)) : A{1};
      g[(run.row * p.shape.seqlen + t) * p.shape.features + feature] =
          slope * load_any<A>(dy.data, dy.type, dy.offset(run.row, 0, t) + feature);
    } else {
      const A y = p.silu ? sum * sigmoid : sum;
      store_any(const_cast<void*>(p.y.data), p.y.type, p.y.offset(run.row, 0, t) + feature, y);
    }
  }
  if (dy.data || !run.ends) return;
  const int64_t past = p.shape.past(), seen = column.seen(run.end);
  for (int64_t row = 0; row < past; ++row) {  // upwards: in place each row is read before it is written
    const A x = past - row <= seen ? column.input(run.end - past + row) : A{0};
    store_any(const_cast<void*>(p.next.data), p.next.type, p.next.offset(run.sequence, 0, row) + feature, x);
  }
}

// dx of the run, or of the state before it.
template <class A>
XLSTM_DEVICE void input_grad(const ConvBackwardParams<void, A>& p, const Column<A>& column, const A* g, int64_t s) {
  const ConvShape& shape = p.forward.shape;
  const ConvRun& run = column.run;
  const int64_t F = shape.features, past = shape.past(), seers = column.seers(s);
  A sum = 0;
  for (int64_t d = s < run.begin ? run.begin - s : 0; d <= seers; ++d) sum += column.weight(d) * g[(s + d) * F];
  const int64_t row = past - (run.end - s);
  if (p.dnext && row >= 0 && seers == run.end - 1 - s) {
    sum += p.dnext[(run.sequence * past + row) * F + column.feature];
  }
  if (s < run.begin) {
    p.dstate[(run.sequence * past + s - run.begin + past) * F + column.feature] = sum;
  } else {
    const int64_t at = p.dx.offset(run.row, 0, s) + column.feature;
    store_any(const_cast<void*>(p.dx.data), p.dx.type, at, sum);
  }
}

template <class A>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks)
    conv_any_bwd(ConvBackwardParams<void, A> p, const A* g, A* sums, unsigned across) {
  const ConvShape& shape = p.forward.shape;
  const auto [slot, feature] = column_place(across, 1);
  if (feature >= shape.features) return;
  const int64_t F = shape.features, K = shape.taps;
  const ConvRun run = conv_run<unsigned>(shape, kConvGradTokens, slot);
  const Column<A> column{p.forward, run, feature};
  g += run.row * shape.seqlen * F + feature;
  sums += slot * (K + 1) * F + feature;
  const int64_t from = run.starts ? run.begin - shape.past() : run.first;
  for (int64_t s = from; s < run.last; ++s) input_grad(p, column, g, s);
  for (int64_t d = 0; d < K; ++d) {
    A sum = 0;
    for (int64_t s = run.starts ? run.begin - d : run.first; s < run.last; ++s) {
      if (s + d >= run.begin && d <= column.seers(s)) sum += column.input(s) * g[(s + d) * F];
    }
    sums[d * F] = sum;
  }
  A sum = 0;
  for (int64_t t = run.first; t < run.last; ++t) sum += g[t * F];
  sums[K * F] = sum;
}

constexpr int kSumFeatures = 8, kSumGroups = 32 / kSumFeatures;  // of a warp: sectors of 32 bytes

// One row of the sums: of the weights at one distance, or of the bias. A group of lanes adds up every fourth run, and
// then the groups add up.
template <class A>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks)
    conv_sums(ConvBackwardParams<void, A> p, const A* sums, int64_t slots, unsigned across) {
  const int64_t F = p.forward.shape.features, K = p.forward.shape.taps;
  const auto [d, thread] = column_place(across, 1);
  const int lane = threadIdx.x % 32, group = lane / kSumFeatures;
  const int64_t feature = thread / 32 * kSumFeatures + lane % kSumFeatures;
  A sum = 0;
  if (feature < F) {
    sums += d * F + feature;
#pragma unroll 8
    for (int64_t slot = group; slot < slots; slot += kSumGroups) sum += sums[slot * (K + 1) * F];
  }
  sum += __shfl_xor_sync(~0u, sum, kSumFeatures);
  if (!XLSTM_MUTANT("causal_conv1d_sums: half of the groups")) sum += __shfl_xor_sync(~0u, sum, 2 * kSumFeatures);
  if (group != 0 || feature >= F) return;
  if (d == K) {
    p.dbias[feature] = sum;
  } else {
    p.dweight[feature * K + K - 1 - d] = sum;
  }
}

}  // namespace

template <class A>
cudaError_t conv_fwd_any(const ConvForwardParams<void>& p, const AnyView& dy, A* g, cudaStream_t stream) {
  const int64_t slots = conv_slots(p.shape, kConvTokens);
  if (slots == 0) return cudaSuccess;
  const ColumnLaunch l = column_launch("causal_conv1d fwd, any taps", slots, p.shape.features, 1, stream);
  return l.refused != cudaSuccess ? l.refused : launch(l.launch, conv_any_fwd<A>, p, dy, g, l.across);
}

template <class A>
cudaError_t conv_bwd_any(const ConvBackwardParams<void, A>& p, const A* g, A* sums, cudaStream_t stream) {
  const ConvShape& shape = p.forward.shape;
  const int64_t slots = conv_slots(shape, kConvGradTokens);
  if (slots == 0) return cudaSuccess;
  const ColumnLaunch l = column_launch("causal_conv1d bwd, any taps", slots, shape.features, 1, stream);
  return l.refused != cudaSuccess ? l.refused : launch(l.launch, conv_any_bwd<A>, p, g, sums, l.across);
}

template <class A>
cudaError_t conv_add_up(const ConvBackwardParams<void, A>& p, const A* sums, int64_t slots, cudaStream_t stream) {
  const ConvShape& shape = p.forward.shape;
  const ColumnLaunch l = column_launch("causal_conv1d sums", shape.taps + 1, shape.features * kSumGroups, 1, stream);
  return l.refused != cudaSuccess ? l.refused : launch(l.launch, conv_sums<A>, p, sums, slots, l.across);
}

#define XLSTM_INSTANTIATE(A)                                                                           \
  template cudaError_t conv_fwd_any(const ConvForwardParams<void>&, const AnyView&, A*, cudaStream_t); \
  template cudaError_t conv_bwd_any(const ConvBackwardParams<void, A>&, const A*, A*, cudaStream_t);   \
  template cudaError_t conv_add_up(const ConvBackwardParams<void, A>&, const A*, int64_t, cudaStream_t);
XLSTM_INSTANTIATE(float)
XLSTM_INSTANTIATE(double)
#undef XLSTM_INSTANTIATE

}  // namespace xlstm::cuda
