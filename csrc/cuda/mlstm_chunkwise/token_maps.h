#pragma once
// Tensor maps of tokens in bfloat16, by host code.
#include "cuda/device/tensor_map.h"
#include "cuda/mlstm_chunkwise/hopper_tiles.h"
#include "cuda/mlstm_chunkwise/tma_strides.h"

namespace xlstm::cuda {

// (B, H, S, columns) in boxes of 64 columns and so many tokens. False where TMA cannot read it.
inline bool map_tokens(CUtensorMap& map, const AnyView& x, const MlstmShape& shape, int64_t columns, uint32_t rows) {
  const auto size = [](int64_t x) { return static_cast<uint64_t>(x); };
  device::TensorMapShape<4> in = {.size = {size(columns), size(shape.seqlen), size(shape.num_heads), size(shape.batch)},
                                  .stride = {},
                                  .box = {kSlabColumns, rows, 1, 1}};
  if (!tma_strides(x, shape, columns, in.stride)) return false;
  auto* data = static_cast<__nv_bfloat16*>(const_cast<void*>(x.data));
  return device::make_tensor_map(&map, data, in, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_SUCCESS;
}

}  // namespace xlstm::cuda
