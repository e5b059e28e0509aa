// Norm over heads with weight, skip and gate, forward, of rows that fit into registers (docs/kernels/norm.md).
#include "cuda/norm/row.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kResidentBlocks = 3;

template <class T>
__global__ void __launch_bounds__(kNormThreads, kResidentBlocks)
    norm_fwd(NormForwardParams<void> p, int team, bool whole) {
  XLSTM_SHARED(NormShared<float>, s);
  const NormWalk walk(p.shape, team);
  const NormWeights weights(p, walk);
  int place = 0;
#pragma unroll 1
  for (int round = 0; round < walk.rounds; ++round) {
    const NormPlace at(p.shape, walk.token(round));
    const NormRaw<T> h = load_row<T>(p.h, walk, at, whole), gate = load_row<T>(p.gate, walk, at, whole),
                     skip = load_row<T>(p.skip, walk, at, whole);
    NormValues n;
    normalise(n, h, p.options, walk, s, place);
    if (!at.inside) continue;
#pragma unroll
    for (int k = 0; k < kNormPacks; ++k) {
      float y[kNormPack];
#pragma unroll
      for (int c = 0; c < kNormPack; ++c) {
        y[c] = n[k][c] * weights.weight[k][c] + weights.bias[k][c];
        if (p.skip.data) y[c] += weights.skip[k][c] * widen<float>(skip.pack[k].x[c]);
        if (p.gate.data) y[c] *= norm_gate(gate.pack[k].x[c], p.options).value;
      }
      store_row_pack<T>(p.y, walk, at, k, y, whole);
    }
  }
}

}  // namespace

cudaError_t norm_fwd_registers(const NormForwardParams<void>& p, cudaStream_t stream) {
  const int64_t dim = p.shape.dim;
  const NormLaunch l = norm_launch("multihead_norm_gate fwd", p.shape, stream);
  if (!l.fits) return cudaErrorInvalidConfiguration;
  const bool fit = norm_packs_fit(p.h, dim) && norm_packs_fit(p.gate, dim) && norm_packs_fit(p.skip, dim) &&
                   norm_packs_fit(p.y, dim);
  const bool whole = fit || XLSTM_MUTANT("multihead_norm_gate: whole packs in rows that are not aligned");
  switch (p.h.type) {
    case Type::bf16:
      return launch(l.launch, norm_fwd<__nv_bfloat16>, p, l.team, whole);
    case Type::f16:
      return launch(l.launch, norm_fwd<__half>, p, l.team, whole);
    case Type::f32:
      return launch(l.launch, norm_fwd<float>, p, l.team, whole);
    case Type::f64:
      return cudaErrorInvalidValue;
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
