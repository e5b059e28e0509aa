// Linear maps of blocks of any size up to 16, or in double, and the sums of both ways over the runs
// (docs/kernels/headwise.md). A thread has one feature of what it writes, for a run of tokens.
#include "cuda/columns.h"
#include "cuda/headwise/headwise.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kResidentBlocks = 4;

// Part of an output: element o of a block gets sum_i weight(o, i) from(i), i < in, of the same block.
struct AnyTerm {
  Any weight;
  int64_t by_out, by_in;  // strides
  AnyView from;
  int in;
};

// The terms of one output, blocks of `out` features. Forward there is one, backward one for each map.
struct AnyMap {
  HeadwiseShape shape;
  AnyTerm terms[kHeadwiseMaps];
  int count, out;
  Any bias;
  AnyView to;
};

struct AnyRun {
  int64_t row, first, last;
};

template <int64_t kLength>
XLSTM_DEVICE AnyRun any_run(const HeadwiseShape& shape, int64_t index) {
  const unsigned per_row = static_cast<unsigned>((shape.seqlen + kLength - 1) / kLength);
  const unsigned slot = static_cast<unsigned>(index), row = slot / per_row;
  const int64_t first = int64_t{slot - row * per_row} * kLength;
  return {row, first, min(first + kLength, shape.seqlen)};
}

// sum_i w[i] x[at + i], i < in
template <class A>
XLSTM_DEVICE A product(const A (&w)[kHeadwiseBlock], const AnyView& x, int64_t at, int in) {
  A sum = 0;
  with_type(x.type, [&]<class T>() {
    const T* from = static_cast<const T*>(x.data) + at;
#pragma unroll
    for (int i = 0; i < kHeadwiseBlock; ++i) {
      if (i < in) sum += w[i] * widen<A>(from[i]);
    }
  });
  return sum;
}

template <class A>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks) headwise_any(AnyMap map, unsigned across) {
  const auto [slot, feature] = column_place(across, 1);
  if (feature >= map.shape.blocks * map.out) return;
  const unsigned index = static_cast<unsigned>(feature), block = index / static_cast<unsigned>(map.out);
  const int own = static_cast<int>(index - block * map.out);
  A w[kHeadwiseMaps][kHeadwiseBlock];
#pragma unroll
  for (int k = 0; k < kHeadwiseMaps; ++k) {
    const AnyTerm& term = map.terms[k];
    const int64_t at = int64_t{block} * map.out * term.in + own * term.by_out;
#pragma unroll
    for (int i = 0; i < kHeadwiseBlock; ++i) {
      const bool given = k < map.count && i < term.in;
      w[k][i] = given ? load_any<A>(term.weight.data, term.weight.type, at + i * term.by_in) : A{0};
    }
  }
  const A bias = map.bias.data ? load_any<A>(map.bias.data, map.bias.type, feature) : A{0};
  const AnyRun run = any_run<kHeadwiseTokens>(map.shape, slot);
  for (int64_t t = run.first; t < run.last; ++t) {
    A sum = bias;
#pragma unroll
    for (int k = 0; k < kHeadwiseMaps; ++k) {
      if (k >= map.count) continue;
      if (k > 0 && XLSTM_MUTANT("headwise_linear_any: the first term alone")) continue;
      const AnyTerm& term = map.terms[k];
      const int64_t at = term.from.offset(run.row, 0, t) + int64_t{block} * term.in;
      sum += product(w[k], term.from, at, term.in);
    }
    store_any(const_cast<void*>(map.to.data), map.to.type, map.to.offset(run.row, 0, t) + feature, sum);
  }
}

// What a sum over tokens is of, by its place among those of a shape.
struct AnySum {
  int map;
  int64_t place;    // among dweight (N, O, I) of the map, or dbias (N, O)
  int64_t out, in;  // features of dy and of x
  bool of_bias;

  XLSTM_DEVICE AnySum(const HeadwiseShape& shape, int64_t index) {
    map = index >= shape.sums(0);
    const unsigned local = static_cast<unsigned>(map ? index - shape.sums(0) : index);
    const unsigned features = static_cast<unsigned>(map ? shape.out[1] : shape.out[0]);
    const unsigned ins = static_cast<unsigned>(shape.in),
                   weights = static_cast<unsigned>(shape.blocks) * features * ins;
    of_bias = local >= weights;
    place = of_bias ? local - weights : local;
    out = of_bias ? place : local / ins;
    in = of_bias ? 0 : out / features * ins + local % ins;
  }
};

template <class A>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks)
    headwise_any_sums(HeadwiseBackwardParams<void, A> p, A* sums, unsigned across) {
  const HeadwiseForwardParams<void>& in = p.forward;
  const auto [slot, index] = column_place(across, 1);
  if (index >= in.shape.all_sums()) return;
  const AnySum of(in.shape, index);
  const AnyView& dy = of.map ? p.dy[1] : p.dy[0];
  const AnyRun run = any_run<kHeadwiseGradTokens>(in.shape, slot);
  A sum = 0;
#pragma unroll 2
  for (int64_t t = run.first; t < run.last; ++t) {
    const A grad = load_any<A>(dy.data, dy.type, dy.offset(run.row, 0, t) + of.out);
    sum += of.of_bias ? grad : grad * load_any<A>(in.x.data, in.x.type, in.x.offset(run.row, 0, t) + of.in);
  }
  sums[slot * in.shape.all_sums() + index] = sum;
}

constexpr int kSumFeatures = 8, kSumGroups = 32 / kSumFeatures;  // of a warp: sectors of 32 bytes

// A group of lanes adds up every fourth run, and then the groups add up.
template <class A>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks)
    headwise_sums(HeadwiseBackwardParams<void, A> p, const A* sums, int64_t runs, unsigned across) {
  const HeadwiseShape& shape = p.forward.shape;
  const int64_t all = shape.all_sums(), thread = column_place(across, 1).feature;
  const int lane = threadIdx.x % 32, group = lane / kSumFeatures;
  const int64_t index = thread / 32 * kSumFeatures + lane % kSumFeatures;
  A sum = 0;
  if (index < all) {
#pragma unroll 8
    for (int64_t run = group; run < runs; run += kSumGroups) sum += sums[run * all + index];
  }
  sum += __shfl_xor_sync(~0u, sum, kSumFeatures);
  if (!XLSTM_MUTANT("headwise_linear_sums: half of the groups")) sum += __shfl_xor_sync(~0u, sum, 2 * kSumFeatures);
  if (group != 0 || index >= all) return;
  const AnySum of(shape, index);
  A* dweight = of.map ? p.dweight[1] : p.dweight[0];
  A* dbias = of.map ? p.dbias[1] : p.dbias[0];
  (of.of_bias ? dbias : dweight)[of.place] = sum;
}

template <class A>
cudaError_t launch_map(const AnyMap& map, const char* name, cudaStream_t stream) {
  const int64_t runs = headwise_runs(map.shape, kHeadwiseTokens);
  const ColumnLaunch l = column_launch(name, runs, map.shape.blocks * map.out, 1, stream);
  return l.refused != cudaSuccess ? l.refused : launch(l.launch, headwise_any<A>, map, l.across);
}

}  // namespace

template <class A>
cudaError_t headwise_fwd_any(const HeadwiseForwardParams<void>& p, cudaStream_t stream) {
  const HeadwiseShape& s = p.shape;
  for (int n = 0; n < s.maps; ++n) {
    AnyMap map{s,     {{p.weight[n], s.in, 1, p.x, static_cast<int>(s.in)}}, 1, static_cast<int>(s.out[n]), p.bias[n],
               p.y[n]};
    const cudaError_t error = launch_map<A>(map, "headwise_linear fwd, any blocks", stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class A>
cudaError_t headwise_bwd_any(const HeadwiseBackwardParams<void, A>& p, A* sums, cudaStream_t stream) {
  const HeadwiseShape& s = p.forward.shape;
  AnyMap map{s, {}, s.maps, static_cast<int>(s.in), {}, p.dx};
  for (int n = 0; n < s.maps; ++n) map.terms[n] = {p.forward.weight[n], 1, s.in, p.dy[n], static_cast<int>(s.out[n])};
  const cudaError_t error = launch_map<A>(map, "headwise_linear dx, any blocks", stream);
  if (error != cudaSuccess) return error;
  const int64_t runs = headwise_runs(s, kHeadwiseGradTokens);
  const ColumnLaunch l = column_launch("headwise_linear bwd, any blocks", runs, s.all_sums(), 1, stream);
  return l.refused != cudaSuccess ? l.refused : launch(l.launch, headwise_any_sums<A>, p, sums, l.across);
}

template <class A>
cudaError_t headwise_add_up(const HeadwiseBackwardParams<void, A>& p, const A* sums, cudaStream_t stream) {
  const HeadwiseShape& s = p.forward.shape;
  const ColumnLaunch l = column_launch("headwise_linear sums", 1, s.all_sums() * kSumGroups, 1, stream);
  const int64_t runs = headwise_runs(s, kHeadwiseGradTokens);
  return l.refused != cudaSuccess ? l.refused : launch(l.launch, headwise_sums<A>, p, sums, runs, l.across);
}

#define XLSTM_INSTANTIATE(A)                                                                       \
  template cudaError_t headwise_fwd_any<A>(const HeadwiseForwardParams<void>&, cudaStream_t);      \
  template cudaError_t headwise_bwd_any(const HeadwiseBackwardParams<void, A>&, A*, cudaStream_t); \
  template cudaError_t headwise_add_up(const HeadwiseBackwardParams<void, A>&, const A*, cudaStream_t);
XLSTM_INSTANTIATE(float)
XLSTM_INSTANTIATE(double)
#undef XLSTM_INSTANTIATE

}  // namespace xlstm::cuda
