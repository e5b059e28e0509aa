// The forward walk of walk.h on compute capability 9.0, bfloat16 (docs/kernels/mlstm.md).
//
// A block has a head of a sequence and 64 or 128 columns of its state: one or two consumer warpgroups with 64 columns
// each, which keep them transposed, as accumulators of rows b and columns a, and a producer. Of every span of tokens
//
//   out   = (C^T Q^T) b_bar + V^T P^T       P by the warpgroups in turn, a span ahead of the others' need
//   C^T   = g_bar C^T + (a_bar V)^T K
//   h     = out scale / den                 transposed on its way to memory
//
// C^T in bfloat16 and V^T are operands in registers; Q, K and P lie in shared memory as they are. n has no place among
// the accumulators: whoever computes P advances it by ordinary arithmetic.
#include "cuda/mlstm_chunkwise/walk_consumer.h"
#include "cuda/mlstm_chunkwise/walk_launch.h"

namespace xlstm::cuda {
namespace {

template <int kDepth, int kGroups>
__global__ void __launch_bounds__(kThreads<kGroups>, kResident<kGroups>)
    walk_wgmma(const __grid_constant__ Maps maps, const __grid_constant__ MlstmWalkParams p, int slices) {
#if XLSTM_SM90A
  using S = WalkShared<kDepth, kGroups>;
  XLSTM_SHARED(S, s);
  walk_block<OutputKind::h, Consumer<S>, Spans>(s, maps, p, slices);
#endif
}

}  // namespace

bool walk_takes(const MlstmShape& shape) {
  return shape.head_dim_qk <= kMaxDepth && shape.head_dim_v % 8 == 0;
}

WalkCost walk_cost(const MlstmShape& shape) {
  return with_instance<OutputKind::h>(
      shape, [&]<int kDepth, int kGroups>() { return cost_of<OutputKind::h, WalkShared<kDepth, kGroups>>(shape); });
}

cudaError_t mlstm_walk(const MlstmWalkParams& p, cudaStream_t stream) {
  if (!walk_takes(p.states.shape)) return cudaErrorInvalidValue;
  const cudaError_t error = mlstm_segment_states(p.states, stream);
  if (error != cudaSuccess) return error;
  return with_instance<OutputKind::h>(p.states.shape, [&]<int kDepth, int kGroups>() {
    return launch_walk<OutputKind::h, WalkShared<kDepth, kGroups>>(walk_wgmma<kDepth, kGroups>, p, p.q, p.states.rows,
                                                                   p.states.columns, "mlstm walk", stream);
  });
}

}  // namespace xlstm::cuda
