// Norm over heads with weight, skip and gate, backward, of rows that fit into registers (docs/kernels/norm.md). With p
// the sum before the gate,
//
//   dp = dy act(gate)        dgate = dy p act'(gate)        dskip = dp skip_weight        dn = dp weight
//   dh = (dn - mean(dn) - n mean(dn n)) / sqrt(var + eps), without mean(dn) in the norm that has no mean
//
// A thread keeps its part of the sums for the weights until its team has walked the run.
#include "cuda/norm/row.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kResidentBlocks = 2;

// Those of one run, of all its teams.
XLSTM_DEVICE void store_sums(const NormBackwardParams<void, float>& p, const NormWalk& walk,
                             NormValues (&sums)[kNormSums], float* to) {
  const NormShape& shape = p.forward.shape;
  const bool half = XLSTM_MUTANT("multihead_norm_gate_bwd: half of the teams of a run");
#pragma unroll
  for (int which = 0; which < kNormSums; ++which) {
    if (p.sums[which] == nullptr) continue;
#pragma unroll
    for (int k = 0; k < kNormPacks; ++k) {
      NormPack<float> pack;
#pragma unroll
      for (int c = 0; c < kNormPack; ++c) {
        pack.x[c] = sums[which][k][c];
        for (int step = walk.team; step < (half ? 16 : 32); step *= 2) {
          pack.x[c] += __shfl_xor_sync(~0u, pack.x[c], step);
        }
      }
      const int feature = walk.feature(k), count = walk.dim - feature;
      if (count <= 0 || walk.turn != 0 || walk.run >= norm_runs(shape)) continue;
      float* row = to + (walk.run * kNormSums + which) * shape.features() + int64_t{walk.head} * walk.dim;
      store_pack(row + feature, pack, count, walk.dim % kNormPack == 0);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kNormThreads, kResidentBlocks)
    norm_bwd(NormBackwardParams<void, float> p, float* sums_of_runs, int team, bool whole) {
  XLSTM_SHARED(NormShared<float>, s);
  const NormForwardParams<void>& in = p.forward;
  const NormWalk walk(in.shape, team);
  const NormWeights weights(in, walk);
  NormValues sums[kNormSums] = {};
  int place = 0;
#pragma unroll 1
  for (int round = 0; round < walk.rounds; ++round) {
    const NormPlace at(in.shape, walk.token(round));
    const NormRaw<T> h = load_row<T>(in.h, walk, at, whole), dy = load_row<T>(p.dy, walk, at, whole),
                     gate = load_row<T>(in.gate, walk, at, whole), skip = load_row<T>(in.skip, walk, at, whole);
    NormValues n, dn;
    const float rstd = normalise(n, h, in.options, walk, s, place);
    float means[2] = {0, 0};  // of dn and dn n
#pragma unroll
    for (int k = 0; k < kNormPacks; ++k) {
      float dgate[kNormPack], dskip[kNormPack];
#pragma unroll
      for (int c = 0; c < kNormPack; ++c) {
        const NormGate act = in.gate.data ? norm_gate(gate.pack[k].x[c], in.options) : NormGate{};
        const float grad = widen<float>(dy.pack[k].x[c]), skipped = widen<float>(skip.pack[k].x[c]);
        float before = n[k][c] * weights.weight[k][c] + weights.bias[k][c];
        if (in.skip.data) before += weights.skip[k][c] * skipped;
        const float dp = grad * act.value;
        dgate[c] = grad * before * act.slope;
        dskip[c] = dp * weights.skip[k][c];
        // What lies outside must not meet a NaN of the weights, nor one of a norm of nothing.
        const bool inside = at.inside && walk.feature(k) + c < walk.dim;
        dn[k][c] = inside ? dp * weights.weight[k][c] : 0.f;
        if (inside) {
          sums[kWeightSum][k][c] += dp * n[k][c];
          sums[kBiasSum][k][c] += dp;
          sums[kSkipWeightSum][k][c] += dp * skipped;
        }
        means[0] += dn[k][c];
        means[1] += dn[k][c] * n[k][c];
      }
      if (at.inside && p.dgate.data) store_row_pack<T>(p.dgate, walk, at, k, dgate, whole);
      if (at.inside && p.dskip.data) store_row_pack<T>(p.dskip, walk, at, k, dskip, whole);
    }
    add_over_team(means, walk.team, s, place);
    if (!at.inside) continue;
    const bool no_mean = in.options.rms || XLSTM_MUTANT("multihead_norm_gate_bwd: the mean has no gradient");
    const float mean = no_mean ? 0.f : mean_of(means[0], walk.dim), mean_n = mean_of(means[1], walk.dim);
#pragma unroll
    for (int k = 0; k < kNormPacks; ++k) {
      float dh[kNormPack];
#pragma unroll
      for (int c = 0; c < kNormPack; ++c) dh[c] = rstd * (dn[k][c] - mean - n[k][c] * mean_n);
      store_row_pack<T>(p.dh, walk, at, k, dh, whole);
    }
  }
  store_sums(p, walk, sums, sums_of_runs);
}

}  // namespace

cudaError_t norm_bwd_registers(const NormBackwardParams<void, float>& p, float* sums, cudaStream_t stream) {
  const NormForwardParams<void>& in = p.forward;
  const int64_t dim = in.shape.dim;
  const NormLaunch l = norm_launch("multihead_norm_gate bwd", in.shape, stream);
  if (!l.fits) return cudaErrorInvalidConfiguration;
  bool whole = norm_packs_fit(p.dy, dim) && norm_packs_fit(p.dh, dim);
  for (const AnyView* x : {&in.h, &in.gate, &in.skip, &p.dgate, &p.dskip}) whole = whole && norm_packs_fit(*x, dim);
  switch (in.h.type) {
    case Type::bf16:
      return launch(l.launch, norm_bwd<__nv_bfloat16>, p, sums, l.team, whole);
    case Type::f16:
      return launch(l.launch, norm_bwd<__half>, p, sums, l.team, whole);
    case Type::f32:
      return launch(l.launch, norm_bwd<float>, p, sums, l.team, whole);
    case Type::f64:
      return cudaErrorInvalidValue;
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
