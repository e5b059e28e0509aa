// Linear maps of blocks of four features, backward (docs/kernels/headwise.md): a thread walks a run of tokens with one
// block, and keeps its sums over the tokens.
//
//   dx[i] = sum of all maps of sum_o weight[o, i] dy[o]        dweight[o, i] = sum dy[o] x[i]        dbias = sum dy
#include "cuda/headwise/block.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kBatch = 2;  // tokens whose loads are in flight together
constexpr int kResidentBlocks = 3;

struct BlockSums {
  float dw[kHeadwiseMaps][kUsualBlock][kUsualBlock];  // (out, in)
  float db[kHeadwiseMaps][kUsualBlock];
};

// Adds the part of one map to dx and to the sums.
template <class T>
XLSTM_DEVICE void add_map(float (&dx)[kUsualBlock], BlockSums& sums, const BlockWeights& weights, int map,
                          const BlockPack<T>& x, const BlockPack<T>& dy) {
#pragma unroll
  for (int o = 0; o < kUsualBlock; ++o) {
    const float grad = widen<float>(dy.x[o]);
    sums.db[map][o] += grad;
#pragma unroll
    for (int i = 0; i < kUsualBlock; ++i) {
      dx[i] += weights.w[map][o][i] * grad;
      sums.dw[map][o][i] += grad * widen<float>(x.x[i]);
    }
  }
}

// to: of this run and block, of the first map.
XLSTM_DEVICE void store_sums(const HeadwiseShape& shape, const BlockSums& sums, float* to, int64_t block) {
#pragma unroll
  for (int map = 0; map < kHeadwiseMaps; ++map) {
    if (map >= shape.maps) continue;
    float* weights = to + map * shape.sums(0) + block * kUsualBlock * kUsualBlock;
    float* bias = to + map * shape.sums(0) + (shape.blocks * kUsualBlock + block) * kUsualBlock;
    BlockPack<float> pack;
#pragma unroll
    for (int o = 0; o < kUsualBlock; ++o) {
#pragma unroll
      for (int i = 0; i < kUsualBlock; ++i) pack.x[i] = sums.dw[map][o][i];
      store_whole(reinterpret_cast<BlockPack<float>*>(weights + o * kUsualBlock), pack);
    }
#pragma unroll
    for (int o = 0; o < kUsualBlock; ++o) pack.x[o] = sums.db[map][o];
    store_whole(reinterpret_cast<BlockPack<float>*>(bias), pack);
  }
}

template <class T>
__global__ void __launch_bounds__(kColumnThreads, kResidentBlocks)
    headwise_bwd(HeadwiseBackwardParams<void, float> p, float* sums_of_runs, unsigned across, bool whole) {
  const HeadwiseForwardParams<void>& in = p.forward;
  const ColumnPlace place = column_place(across, kUsualBlock);
  const BlockRun run = block_run<kHeadwiseGradTokens>(in.shape, place);
  if (run.feature >= in.shape.blocks * kUsualBlock) return;
  const BlockWeights weights = load_weights(in, run.feature / kUsualBlock);
  BlockSums sums{};
  const T* x = static_cast<const T*>(in.x.data) + run.start(in.x);
  T* dx = static_cast<T*>(const_cast<void*>(p.dx.data)) + run.start(p.dx);
  const T* dy[kHeadwiseMaps];
#pragma unroll
  for (int map = 0; map < kHeadwiseMaps; ++map) dy[map] = static_cast<const T*>(p.dy[map].data) + run.start(p.dy[map]);
#pragma unroll 1
  for (int64_t t = run.first; t < run.last; t += kBatch) {
    BlockPack<T> inputs[kBatch], grads[kBatch][kHeadwiseMaps];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool inside = t + i < run.last;
      inputs[i] = inside ? load_pack<BlockPack<T>>(x + i * in.x.time, kUsualBlock, whole) : BlockPack<T>{};
#pragma unroll
      for (int map = 0; map < kHeadwiseMaps; ++map) {
        const bool given = inside && map < in.shape.maps;
        grads[i][map] =
            given ? load_pack<BlockPack<T>>(dy[map] + i * p.dy[map].time, kUsualBlock, whole) : BlockPack<T>{};
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (t + i >= run.last) break;
      float grad[kUsualBlock] = {};
#pragma unroll
      for (int map = 0; map < kHeadwiseMaps; ++map) {
        if (map >= in.shape.maps) continue;
        if (map > 0 && XLSTM_MUTANT("headwise_linear_bwd: the first map alone")) continue;
        add_map(grad, sums, weights, map, inputs[i], grads[i][map]);
      }
      BlockPack<T> out;
#pragma unroll
      for (int c = 0; c < kUsualBlock; ++c) out.x[c] = narrow<T>(grad[c]);
      store_pack(dx + i * p.dx.time, out, kUsualBlock, whole);
    }
    x += kBatch * in.x.time, dx += kBatch * p.dx.time;
#pragma unroll
    for (int map = 0; map < kHeadwiseMaps; ++map) dy[map] += kBatch * p.dy[map].time;
  }
  store_sums(in.shape, sums, sums_of_runs + place.row * in.shape.all_sums(), run.feature / kUsualBlock);
}

}  // namespace

cudaError_t headwise_bwd_usual(const HeadwiseBackwardParams<void, float>& p, float* sums, cudaStream_t stream) {
  const HeadwiseShape& shape = p.forward.shape;
  const int64_t runs = headwise_runs(shape, kHeadwiseGradTokens), F = shape.blocks * kUsualBlock;
  const ColumnLaunch l = column_launch("headwise_linear bwd", runs, F, kUsualBlock, stream);
  if (l.refused != cudaSuccess) return l.refused;
  const bool fit =
      block_packs_fit(p.forward.x) && block_packs_fit(p.dx) && block_packs_fit(p.dy[0]) && block_packs_fit(p.dy[1]);
  const bool whole = fit || XLSTM_MUTANT("headwise_linear_bwd: whole packs in rows that are not aligned");
  switch (p.forward.x.type) {
    case Type::bf16:
      return launch(l.launch, headwise_bwd<__nv_bfloat16>, p, sums, l.across, whole);
    case Type::f16:
      return launch(l.launch, headwise_bwd<__half>, p, sums, l.across, whole);
    case Type::f32:
      return launch(l.launch, headwise_bwd<float>, p, sums, l.across, whole);
    case Type::f64:
      return cudaErrorInvalidValue;
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
