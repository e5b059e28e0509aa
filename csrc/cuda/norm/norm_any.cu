// Norm over heads of rows of any length, or in double, and the sums of both ways over the runs (docs/kernels/norm.md):
// a block has one row at a time, and asks the caches for it again and again.
#include "cuda/norm/norm.h"
#include "cuda/norm/sums.h"
#include "cuda/recurrent/cell_math.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kResidentBlocks = 4;

template <class A>
struct AnyRow {
  const NormForwardParams<void>& p;
  int64_t batch, head, time;
  A mean = 0, rstd = 0;

  XLSTM_DEVICE AnyRow(const NormForwardParams<void>& params, int64_t token, unsigned of_head)
      : p(params), head(of_head) {
    const unsigned index = static_cast<unsigned>(token), seqlen = static_cast<unsigned>(p.shape.seqlen);
    batch = index / seqlen;
    time = index - static_cast<unsigned>(batch) * seqlen;
  }

  XLSTM_DEVICE A load(const AnyView& x, int64_t d) const {
    return load_any<A>(x.data, x.type, x.offset(batch, head, time) + d);
  }
  XLSTM_DEVICE void store(const AnyView& x, int64_t d, A value) const {
    store_any(const_cast<void*>(x.data), x.type, x.offset(batch, head, time) + d, value);
  }
  XLSTM_DEVICE A value(const Any& x, int64_t d, A absent) const {
    return x.data ? load_any<A>(x.data, x.type, head * p.shape.dim + d) : absent;
  }
  XLSTM_DEVICE A weight(int64_t d) const {
    return p.weight.data ? static_cast<A>(p.options.weight_offset) + value(p.weight, d, 0) : A{1};
  }
  XLSTM_DEVICE A n(int64_t d) const { return (load(p.h, d) - mean) * rstd; }
  XLSTM_DEVICE A before_gate(int64_t d) const {
    const A sum = n(d) * weight(d) + value(p.bias, d, 0);
    return p.skip.data ? sum + value(p.skip_weight, d, 1) * load(p.skip, d) : sum;
  }

  // All threads of the block.
  XLSTM_DEVICE void normalise(NormShared<A>& s, int& place) {
    const int64_t dim = p.shape.dim;
    A sum[1] = {0}, squares[1] = {0};
    if (!p.options.rms) {
      for (int64_t d = threadIdx.x; d < dim; d += kNormThreads) sum[0] += load(p.h, d);
      add_over_team(sum, kNormThreads, s, place);
      mean = sum[0] / static_cast<A>(dim);
    }
    for (int64_t d = threadIdx.x; d < dim; d += kNormThreads) {
      const A x = load(p.h, d) - mean;
      squares[0] += x * x;
    }
    add_over_team(squares, kNormThreads, s, place);
    rstd = 1 / std::sqrt(squares[0] / static_cast<A>(dim) + static_cast<A>(p.options.eps));
  }
};

// act(gate) and its derivative.
template <class A>
struct AnyGate {
  A value = 1, slope = 0;

  XLSTM_DEVICE AnyGate(const AnyRow<A>& row, int64_t d) {
    if (row.p.gate.data == nullptr) return;
    const A gate = row.load(row.p.gate, d), sigmoid = data_sigmoid<A>(gate), rest = 1 - sigmoid;
    const bool alone = row.p.options.sigmoid;
    value = alone ? sigmoid : gate * sigmoid;
    slope = alone ? sigmoid * rest : sigmoid * (1 + gate * rest);
  }
};

template <class A>
__global__ void __launch_bounds__(kNormThreads, kResidentBlocks) norm_any_fwd(NormForwardParams<void> p) {
  XLSTM_SHARED(NormShared<A>, s);
  const unsigned heads = static_cast<unsigned>(p.shape.heads), token = blockIdx.x / heads;
  AnyRow<A> row(p, token, blockIdx.x - token * heads);
  int place = 0;
  row.normalise(s, place);
  for (int64_t d = threadIdx.x; d < p.shape.dim; d += kNormThreads) {
    row.store(p.y, d, row.before_gate(d) * AnyGate<A>(row, d).value);
  }
}

// A thread has the same features of all rows of its run, and its sums in memory.
template <class A>
__global__ void __launch_bounds__(kNormThreads, kResidentBlocks)
    norm_any_bwd(NormBackwardParams<void, A> p, A* sums_of_runs) {
  XLSTM_SHARED(NormShared<A>, s);
  const NormForwardParams<void>& in = p.forward;
  const int64_t dim = in.shape.dim, F = in.shape.features();
  const unsigned heads = static_cast<unsigned>(in.shape.heads), run = blockIdx.x / heads;
  const unsigned head = blockIdx.x - run * heads;
  A* sums = sums_of_runs + int64_t{run} * kNormSums * F + head * dim;
  const int64_t first = run * kNormTokens, last = min(first + kNormTokens, in.shape.tokens());
  int place = 0;
  for (int64_t token = first; token < last; ++token) {
    const auto add = [&](int which, int64_t d, A value) {
      if (p.sums[which] == nullptr) return;
      A* sum = sums + which * F + d;
      *sum = token == first ? value : *sum + value;
    };
    AnyRow<A> row(in, token, head);
    row.normalise(s, place);
    A means[2] = {0, 0};  // of dn and dn n
    for (int64_t d = threadIdx.x; d < dim; d += kNormThreads) {
      const AnyGate<A> act(row, d);
      const A dy = row.load(p.dy, d), n = row.n(d), dp = dy * act.value, dn = dp * row.weight(d);
      add(kWeightSum, d, dp * n);
      add(kBiasSum, d, dp);
      if (in.skip.data) add(kSkipWeightSum, d, dp * row.load(in.skip, d));
      if (p.dgate.data) row.store(p.dgate, d, dy * row.before_gate(d) * act.slope);
      if (p.dskip.data) row.store(p.dskip, d, dp * row.value(in.skip_weight, d, 1));
      means[0] += dn, means[1] += dn * n;
    }
    add_over_team(means, kNormThreads, s, place);
    const A mean = in.options.rms ? A{0} : means[0] / static_cast<A>(dim), mean_n = means[1] / static_cast<A>(dim);
    for (int64_t d = threadIdx.x; d < dim; d += kNormThreads) {
      const A dn = row.load(p.dy, d) * AnyGate<A>(row, d).value * row.weight(d);
      row.store(p.dh, d, row.rstd * (dn - mean - row.n(d) * mean_n));
    }
  }
}

constexpr int kSumFeatures = 8, kSumGroups = 32 / kSumFeatures;  // of a warp: sectors of 32 bytes
constexpr int kBlockFeatures = kNormWarps * kSumFeatures;

// A group of lanes adds up every fourth run, and then the groups add up.
template <class A>
__global__ void __launch_bounds__(kNormThreads, kResidentBlocks)
    norm_sums(NormBackwardParams<void, A> p, const A* sums, unsigned across) {
  const int64_t F = p.forward.shape.features(), runs = norm_runs(p.forward.shape);
  const unsigned which = blockIdx.x / across;
  const int lane = threadIdx.x % 32, group = lane / kSumFeatures;
  const int64_t feature =
      int64_t{blockIdx.x - which * across} * kBlockFeatures + threadIdx.x / 32 * kSumFeatures + lane % kSumFeatures;
  A* to = p.sums[which];
  if (to == nullptr) return;
  A sum = 0;
  if (feature < F) {
    sums += which * F + feature;
#pragma unroll 8
    for (int64_t run = group; run < runs; run += kSumGroups) sum += sums[run * kNormSums * F];
  }
  for (int step = kSumFeatures; step < 32; step *= 2) {
    if (step == kSumFeatures && XLSTM_MUTANT("multihead_norm_gate_sums: half of the groups")) continue;
    sum += __shfl_xor_sync(~0u, sum, step);
  }
  if (group == 0 && feature < F) to[feature] = sum;
}

// One block for each of so many rows of all heads, if a grid has so many.
template <class A>
bool any_launch(Launch& l, const char* name, int64_t rows, const NormShape& shape, cudaStream_t stream) {
  if (shape.tokens() > kMaxGridX || rows > kMaxGridX / shape.heads) return false;
  l.grid = dim3(static_cast<unsigned>(rows * shape.heads));
  l.block = dim3(kNormThreads);
  l.shared_bytes = sizeof(NormShared<A>);
  l.name = name, l.stream = stream;
  return true;
}

}  // namespace

template <class A>
cudaError_t norm_fwd_any(const NormForwardParams<void>& p, cudaStream_t stream) {
  Launch l;
  const bool fits = any_launch<A>(l, "multihead_norm_gate fwd, any rows", p.shape.tokens(), p.shape, stream);
  return fits ? launch(l, norm_any_fwd<A>, p) : cudaErrorInvalidConfiguration;
}

template <class A>
cudaError_t norm_bwd_any(const NormBackwardParams<void, A>& p, A* sums, cudaStream_t stream) {
  Launch l;
  const NormShape& shape = p.forward.shape;
  const bool fits = any_launch<A>(l, "multihead_norm_gate bwd, any rows", norm_runs(shape), shape, stream);
  return fits ? launch(l, norm_any_bwd<A>, p, sums) : cudaErrorInvalidConfiguration;
}

template <class A>
cudaError_t norm_add_up(const NormBackwardParams<void, A>& p, const A* sums, cudaStream_t stream) {
  const int64_t across = (p.forward.shape.features() + kBlockFeatures - 1) / kBlockFeatures;
  if (across > kMaxGridX / kNormSums) return cudaErrorInvalidConfiguration;
  Launch l;
  l.grid = dim3(static_cast<unsigned>(across * kNormSums));
  l.block = dim3(kNormThreads);
  l.name = "multihead_norm_gate sums", l.stream = stream;
  return launch(l, norm_sums<A>, p, sums, static_cast<unsigned>(across));
}

#define XLSTM_INSTANTIATE(A)                                                               \
  template cudaError_t norm_fwd_any<A>(const NormForwardParams<void>&, cudaStream_t);      \
  template cudaError_t norm_bwd_any(const NormBackwardParams<void, A>&, A*, cudaStream_t); \
  template cudaError_t norm_add_up(const NormBackwardParams<void, A>&, const A*, cudaStream_t);
XLSTM_INSTANTIATE(float)
XLSTM_INSTANTIATE(double)
#undef XLSTM_INSTANTIATE

}  // namespace xlstm::cuda
