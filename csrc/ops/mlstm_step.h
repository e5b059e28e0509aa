#pragma once
// The arguments of mlstm_step and mlstm_step_, checked: the same for every backend.
#include "core/mlstm_step.h"
#include "ops/common.h"
#include "ops/mlstm_chunkwise.h"

namespace xlstm::ops {

struct StepCall {
  MlstmShape shape;
  ScalarType type;  // of the arithmetic and of a new state
  bool has_time;    // (B, H, S, D) and (B, H, S), or for one token (B, H, D) and (B, H)

  StepCall(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& i, const Tensor& f);

  // (B, H[, S]) and what follows.
  template <class... D>
  Shape tokens(D... dims) const {
    return has_time ? Shape{shape.batch, shape.num_heads, shape.seqlen, dims...}
                    : Shape{shape.batch, shape.num_heads, dims...};
  }

  void check_state(const Tensor& C, const Tensor& n, const Tensor& m, int64_t rows) const;
  // Also that it can be overwritten. C may be bfloat16: half the memory traffic, rounded after every call.
  void check_inplace_state(const Tensor& C, const Tensor& n, const Tensor& m, const OptionalTensor& slots) const;
};

// Every value names a row of the state, none twice. Reads the values: for CPU tensors.
void check_slots(const OptionalTensor& slots, int64_t rows);

}  // namespace xlstm::ops
