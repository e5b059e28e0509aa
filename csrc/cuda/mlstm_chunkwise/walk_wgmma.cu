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

namespace xlstm::cuda {
namespace {

// ---- the kernel ----

constexpr int kProducerRegisters = 40;

// For so many consumer warpgroups of a block. What a launch gives to each thread, its warpgroups share out anew.
template <int kGroups>
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
template <int kGroups>
constexpr int kResident = kGroups == 1 ? 2 : 1;
template <int kGroups>
constexpr int kLaunchRegisters = 65536 / (kThreads<kGroups> * kResident<kGroups>) / 8 * 8;
template <int kGroups>
constexpr int kConsumerRegisters = ((kGroups + 1) * kLaunchRegisters<kGroups> - kProducerRegisters) / kGroups / 8 * 8;

template <int kDepth, int kGroups>
__global__ void __launch_bounds__(kThreads<kGroups>, kResident<kGroups>)
    walk_wgmma(const __grid_constant__ Maps maps, const __grid_constant__ MlstmWalkParams p, int slices) {
#if XLSTM_SM90A
  using S = Shared<kDepth, kGroups>;
  XLSTM_SHARED(S, s);
  const int role = uniform(threadIdx.x / kGroupThreads), slice = static_cast<int>(blockIdx.x) % slices;
  const int left = static_cast<int>(p.states.shape.head_dim_v) - slice * kGroups * kSlabColumns;
  const int groups = kGroups == 1 || left <= kSlabColumns ? 1 : kGroups;
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&maps.q, &maps.k, &maps.v}) tma_prefetch_map(map);
    const int state = static_cast<int>(blockIdx.x) / slices;
    s.block = locate<kGroups * kSlabColumns>(p.states, state, slice, slices, slices);
    for (int stage = 0; stage < S::kStages; ++stage) {
      mbarrier_init(shared_address(&s.full[stage]), 2);  // bytes of TMA, and the gates
      mbarrier_init(shared_address(&s.empty[stage]), groups * kGroupThreads / 32);
    }
    for (uint64_t& full : s.scores_full) mbarrier_init(shared_address(&full), kGroupThreads / 32);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (role == kGroups) {
    set_max_registers_dec<kProducerRegisters>();
    if (threadIdx.x < kGroups * kGroupThreads + 32) Producer<kDepth, kGroups>{maps, s.block, s, groups}.run(p.states);
  } else if (role < groups) {
    set_max_registers_inc<kConsumerRegisters<kGroups>>();
    Consumer<kDepth, kGroups>(p, s.block, s, role, groups).run();
  }
#endif
}

// ---- launch ----

// f<kDepth, kGroups>() of the instance for a shape.
template <class F>
auto with_instance(const MlstmShape& shape, F f) {
  if (shape.head_dim_qk <= 64 && shape.head_dim_v <= 64) return f.template operator()<64, 1>();
  if (shape.head_dim_qk <= 64) return f.template operator()<64, 2>();
  if (shape.head_dim_qk <= 128) return f.template operator()<128, 2>();
  return f.template operator()<256, 2>();
}

template <int kGroups>
int64_t slices_of(const MlstmShape& shape) {
  return tiles_across(shape.head_dim_v, kGroups * kSlabColumns);
}

template <int kDepth, int kGroups>
cudaError_t launch_walk(const MlstmWalkParams& p, cudaStream_t stream) {
  const MlstmShape& shape = p.states.shape;
  const int64_t slices = slices_of<kGroups>(shape), blocks = shape.num_sequences * shape.num_heads * slices;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  Maps maps;
  const bool good = map_tokens(maps.q, p.q, shape, shape.head_dim_qk, kSpan) &&
                    map_tokens(maps.k, p.states.rows, shape, shape.head_dim_qk, kSpan) &&
                    map_tokens(maps.v, p.states.columns, shape, shape.head_dim_v, kSpan);
  if (!good) return cudaErrorInvalidValue;
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.states.segments));
  l.block = dim3(kThreads<kGroups>);
  l.shared_bytes = kSharedBytes<kDepth, kGroups>;
  l.name = "mlstm walk";
  l.stream = stream;
  return launch(l, walk_wgmma<kDepth, kGroups>, maps, p, static_cast<int>(slices));
}

}  // namespace

bool walk_takes(const MlstmShape& shape) {
  return shape.head_dim_qk <= kMaxDepth && shape.head_dim_v % 8 == 0;
}

WalkCost walk_cost(const MlstmShape& shape) {
  return with_instance(shape, [&]<int kDepth, int kGroups>() {
    return WalkCost{slices_of<kGroups>(shape), kResident<kGroups>, kSharedBytes<kDepth, kGroups>};
  });
}

cudaError_t mlstm_walk(const MlstmWalkParams& p, cudaStream_t stream) {
  if (!walk_takes(p.states.shape)) return cudaErrorInvalidValue;
  const cudaError_t error = mlstm_segment_states(p.states, stream);
  if (error != cudaSuccess) return error;
  return with_instance(p.states.shape,
                       [&]<int kDepth, int kGroups>() { return launch_walk<kDepth, kGroups>(p, stream); });
}

}  // namespace xlstm::cuda
