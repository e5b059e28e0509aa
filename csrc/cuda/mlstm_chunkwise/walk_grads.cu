// The walks of walk_grads.h on compute capability 9.0, bfloat16 (docs/kernels/mlstm.md): blocks as in walk_wgmma.cu,
// with rows of C (dq, dk) or columns of C (dv) shared out among them.
#include "cuda/mlstm_chunkwise/walk_grads_consumer.h"
#include "cuda/mlstm_chunkwise/walk_launch.h"

namespace xlstm::cuda {
namespace {

template <OutputKind O, int kDepth, int kGroups>
__global__ void __launch_bounds__(kThreads<kGroups>, kResident<kGroups>)
    walk_grads_wgmma(const __grid_constant__ Maps maps, const __grid_constant__ MlstmWalkGradsParams p, int slices) {
#if XLSTM_SM90A
  using S = WalkGradsShared<kDepth, kGroups>;
  XLSTM_SHARED(S, s);
  walk_block<O, GradsConsumer<O, S>, GradSpans<O>>(s, maps, p, slices);
#endif
}

template <OutputKind O>
cudaError_t launch_of(const MlstmWalkGradsParams& p, cudaStream_t stream) {
  return with_instance<O>(p.states.shape, [&]<int kDepth, int kGroups>() {
    return launch_walk<O, WalkGradsShared<kDepth, kGroups>>(walk_grads_wgmma<O, kDepth, kGroups>, p, p.X, p.Y, p.Z,
                                                            "mlstm walk grads", stream);
  });
}

// f<O>() of a walk.
template <class F>
auto with_output(OutputKind output, F f) {
  switch (output) {
    case OutputKind::h:  // has a walk of its own
    case OutputKind::dq:
      return f.template operator()<OutputKind::dq>();
    case OutputKind::dk:
      return f.template operator()<OutputKind::dk>();
    case OutputKind::dv:
      return f.template operator()<OutputKind::dv>();
  }
  XLSTM_UNREACHABLE;
}

}  // namespace

bool walk_grads_takes(OutputKind output, const MlstmShape& shape) {
  const bool whole = shape.head_dim_qk % 8 == 0 && shape.head_dim_v % 8 == 0;
  return whole && with_output(output, [&]<OutputKind O>() { return depth_of<O>(shape) <= kMaxDepth; });
}

WalkCost walk_grads_cost(OutputKind output, const MlstmShape& shape) {
  return with_output(output, [&]<OutputKind O>() {
    return with_instance<O>(
        shape, [&]<int kDepth, int kGroups>() { return cost_of<O, WalkGradsShared<kDepth, kGroups>>(shape); });
  });
}

cudaError_t mlstm_walk_grads(const MlstmWalkGradsParams& p, cudaStream_t stream) {
  if (p.output == OutputKind::h || !walk_grads_takes(p.output, p.states.shape)) return cudaErrorInvalidValue;
  return with_output(p.output, [&]<OutputKind O>() { return launch_of<O>(p, stream); });
}

}  // namespace xlstm::cuda
