// Linear maps of blocks of four features, forward (docs/kernels/headwise.md): a thread walks a run of tokens with one
// block.
#include "cuda/headwise/block.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kBatch = 4;  // tokens whose loads are in flight together

template <class T>
XLSTM_DEVICE BlockPack<T> mapped(const BlockPack<T>& x, const float (&w)[kUsualBlock][kUsualBlock],
                                 const float (&bias)[kUsualBlock]) {
  BlockPack<T> y;
#pragma unroll
  for (int o = 0; o < kUsualBlock; ++o) {
    float sum = bias[o];
#pragma unroll
    for (int i = 0; i < kUsualBlock; ++i) sum += w[o][i] * widen<float>(x.x[i]);
    y.x[o] = narrow<T>(sum);
  }
  return y;
}

template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    headwise_fwd(HeadwiseForwardParams<void> p, unsigned across, bool whole) {
  const BlockRun run = block_run<kHeadwiseTokens>(p.shape, column_place(across, kUsualBlock));
  if (run.feature >= p.shape.blocks * kUsualBlock) return;
  const BlockWeights weights = load_weights(p, run.feature / kUsualBlock);
  float bias[kHeadwiseMaps][kUsualBlock] = {};
  T* y[kHeadwiseMaps];
#pragma unroll
  for (int map = 0; map < kHeadwiseMaps; ++map) {
    y[map] = static_cast<T*>(const_cast<void*>(p.y[map].data)) + run.start(p.y[map]);
    if (p.bias[map].data) load_any(bias[map], p.bias[map].data, p.bias[map].type, run.feature, 1);
  }
  const T* x = static_cast<const T*>(p.x.data) + run.start(p.x);
  const int64_t last = run.last - XLSTM_MUTANT("headwise_linear_fwd: the last token of a run is left out");
#pragma unroll 1
  for (int64_t t = run.first; t < last; t += kBatch) {
    BlockPack<T> inputs[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      inputs[i] = t + i < last ? load_pack<BlockPack<T>>(x + i * p.x.time, kUsualBlock, whole) : BlockPack<T>{};
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (t + i >= last) break;
#pragma unroll
      for (int map = 0; map < kHeadwiseMaps; ++map) {
        if (map >= p.shape.maps) continue;
        const BlockPack<T> out = mapped(inputs[i], weights.w[map], bias[map]);
        store_pack(y[map] + i * p.y[map].time, out, kUsualBlock, whole);
      }
    }
    x += kBatch * p.x.time;
#pragma unroll
    for (int map = 0; map < kHeadwiseMaps; ++map) y[map] += kBatch * p.y[map].time;
  }
}

}  // namespace

cudaError_t headwise_fwd_usual(const HeadwiseForwardParams<void>& p, cudaStream_t stream) {
  const int64_t runs = headwise_runs(p.shape, kHeadwiseTokens), F = p.shape.blocks * kUsualBlock;
  const ColumnLaunch l = column_launch("headwise_linear fwd", runs, F, kUsualBlock, stream);
  if (l.refused != cudaSuccess) return l.refused;
  const bool fit = block_packs_fit(p.x) && block_packs_fit(p.y[0]) && block_packs_fit(p.y[1]);
  const bool whole = fit || XLSTM_MUTANT("headwise_linear_fwd: whole packs in rows that are not aligned");
  switch (p.x.type) {
    case Type::bf16:
      return launch(l.launch, headwise_fwd<__nv_bfloat16>, p, l.across, whole);
    case Type::f16:
      return launch(l.launch, headwise_fwd<__half>, p, l.across, whole);
    case Type::f32:
      return launch(l.launch, headwise_fwd<float>, p, l.across, whole);
    case Type::f64:
      return cudaErrorInvalidValue;
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
