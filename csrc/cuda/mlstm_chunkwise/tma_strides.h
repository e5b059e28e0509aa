#pragma once
// Which tensors TMA can read: those in bfloat16 whose rows, heads and batch rows begin at multiples of 16 bytes.
#include "core/mlstm_chunkwise.h"
#include "cuda/types.h"

namespace xlstm::cuda {

// Strides as a tensor map has them, in elements: time, head, batch row. False where TMA cannot read them.
inline bool tma_strides(const AnyView& x, const MlstmShape& shape, int64_t columns, uint64_t (&strides)[3]) {
  constexpr int64_t kMultiple = 16 / 2;
  const int64_t size[] = {shape.seqlen, shape.num_heads, shape.batch}, stride[] = {x.time, x.head, x.batch};
  int64_t inside = (columns + kMultiple - 1) / kMultiple * kMultiple;  // of what one step of a dimension spans
  for (int d = 0; d < 3; ++d) {
    const int64_t used = size[d] == 1 ? inside : stride[d];  // with one of them it may be anything
    if (used <= 0 || used % kMultiple != 0) return false;
    strides[d] = static_cast<uint64_t>(used);
    inside = size[d] * used;
  }
  return x.type == Type::bf16 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

inline bool tma_reads(const AnyView& x, const MlstmShape& shape) {
  uint64_t strides[3];
  return tma_strides(x, shape, 1, strides);
}

}  // namespace xlstm::cuda
