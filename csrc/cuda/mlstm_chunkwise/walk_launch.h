#pragma once
// The kernel of a walk, but for what its warpgroups do, and its launch. O says which walk: its shape is as in
// outputs.h.
#include "cuda/mlstm_chunkwise/outputs_block.h"
#include "cuda/mlstm_chunkwise/walk.h"
#include "cuda/mlstm_chunkwise/walk_block.h"

namespace xlstm::cuda {
namespace {

// For so many consumer warpgroups of a block. What a launch gives to each thread, its warpgroups share out anew.
constexpr int kProducerRegisters = 40;
template <int kGroups>
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
template <int kGroups>
constexpr int kResident = kGroups == 1 ? 2 : 1;
template <int kGroups>
constexpr int kLaunchRegisters = 65536 / (kThreads<kGroups> * kResident<kGroups>) / 8 * 8;
template <int kGroups>
constexpr int kConsumerRegisters = ((kGroups + 1) * kLaunchRegisters<kGroups> - kProducerRegisters) / kGroups / 8 * 8;

// Where the warpgroups are: side by side among the columns of C, or among its rows, of which each has a tile of its
// own.
template <OutputKind O, class S>
XLSTM_DEVICE void place(S& s, const MlstmStatesParams<float>& p, int state, int slice, int slices) {
  s.first_column = slice * S::kGroups * kSlabColumns;
  const int row_tiles = tiles(static_cast<int>(p.shape.head_dim_qk), kTileRows);
  for (int group = 0; group < S::kGroups; ++group) {
    s.blocks[group] = kStateTransposed<O> ? locate<S::kGroups * kSlabColumns>(p, state, slice, slices, slices)
                                          : locate<S::kDepth>(p, state, slice * S::kGroups + group, row_tiles, 1);
  }
}

template <OutputKind O, class Consumer, class Spans, class S, class Params>
XLSTM_DEVICE void walk_block(S& s, const Maps& maps, const Params& p, int slices) {
  constexpr int kGroups = S::kGroups;
  const int role = uniform(threadIdx.x / kGroupThreads), slice = static_cast<int>(blockIdx.x) % slices;
  const int left = static_cast<int>(columns_of<O>(p.states.shape)) - slice * kGroups * kSlabColumns;
  const int groups = kGroups == 1 || left <= kSlabColumns ? 1 : kGroups;
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&maps.x, &maps.y, &maps.z}) tma_prefetch_map(map);
    place<O>(s, p.states, static_cast<int>(blockIdx.x) / slices, slice, slices);
    s.groups = groups;
    s.init_mbarriers();
  }
  __syncthreads();
  if (role == kGroups) {
    set_max_registers_dec<kProducerRegisters>();
    if (threadIdx.x >= kGroups * kGroupThreads + 32) return;
    Spans spans(p.states, s);
    Producer<S, Spans>{maps, s}.run(spans);
  } else if (role < groups) {
    set_max_registers_inc<kConsumerRegisters<kGroups>>();
    Consumer(p, s, role).run();
  }
}

// f<kDepth, kGroups>() of the instance for a shape.
template <OutputKind O, class F>
auto with_instance(const MlstmShape& shape, F f) {
  const int64_t depth = depth_of<O>(shape), columns = columns_of<O>(shape);
  if (depth <= 64 && columns <= 64) return f.template operator()<64, 1>();
  if (depth <= 64) return f.template operator()<64, 2>();
  if (depth <= 128) return f.template operator()<128, 2>();
  return f.template operator()<256, 2>();
}

// Blocks of a head, which share out the columns of Z.
template <OutputKind O, int kGroups>
int64_t slices_of(const MlstmShape& shape) {
  return tiles_across(columns_of<O>(shape), kGroups * kSlabColumns);
}

template <OutputKind O, class S>
WalkCost cost_of(const MlstmShape& shape) {
  return {slices_of<O, S::kGroups>(shape), kResident<S::kGroups>, S::bytes()};
}

template <OutputKind O, class S, class Params>
cudaError_t launch_walk(void (*kernel)(Maps, Params, int), const Params& p, const AnyView& x, const AnyView& y,
                        const AnyView& z, const char* name, cudaStream_t stream) {
  const MlstmShape& shape = p.states.shape;
  const int64_t slices = slices_of<O, S::kGroups>(shape), blocks = shape.num_sequences * shape.num_heads * slices;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  Maps maps;
  const bool good = map_tokens(maps.x, x, shape, depth_of<O>(shape), kSpan) &&
                    map_tokens(maps.y, y, shape, depth_of<O>(shape), kSpan) &&
                    map_tokens(maps.z, z, shape, columns_of<O>(shape), kSpan);
  if (!good) return cudaErrorInvalidValue;
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.states.segments));
  l.block = dim3(kThreads<S::kGroups>);
  l.shared_bytes = S::bytes();
  l.name = name;
  l.stream = stream;
  return launch(l, kernel, maps, p, static_cast<int>(slices));
}

}  // namespace
}  // namespace xlstm::cuda
