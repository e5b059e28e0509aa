#pragma once
// The arguments of mlstm_fwd and mlstm_bwd, checked: the same for every backend.
#include "core/mlstm_chunkwise.h"
#include "ops/common.h"

namespace xlstm::ops {

void check_sizes(const char* op, const MlstmShape& shape);

// Inputs as they came; the initial state in the compute type, cu_seqlens and reset contiguous.
struct MlstmCall {
  Tensor q, k, v, i, f;
  OptionalTensor C0, n0, m0, cu_seqlens, reset;
  MlstmShape shape;  // without cu_seqlens: kernels get the pointer of their own memory
  MlstmOptions options;
  ScalarType type;  // of the arithmetic and of states

  MlstmCall(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& i, const Tensor& f,
            const OptionalTensor& C0, const OptionalTensor& n0, const OptionalTensor& m0,
            const OptionalTensor& cu_seqlens, const OptionalTensor& reset, const MlstmOptions& options);

  Shape C_shape() const { return {shape.num_sequences, shape.num_heads, shape.head_dim_qk, shape.head_dim_v}; }
  Shape n_shape() const { return {shape.num_sequences, shape.num_heads, shape.head_dim_qk}; }
  Shape m_shape() const { return {shape.num_sequences, shape.num_heads}; }
  Shape h_shape() const { return {shape.batch, shape.num_heads, shape.seqlen, shape.head_dim_v}; }
  Shape gate_shape() const { return {shape.batch, shape.num_heads, shape.seqlen}; }

  void check_gradients(const Tensor& dh, const OptionalTensor& dC, const OptionalTensor& dn, const OptionalTensor& dm,
                       const Tensor& h, const Tensor& r) const;
  // That cu_seqlens rises from 0 to S. Reads its values: for CPU tensors.
  void check_sequences() const;
};

}  // namespace xlstm::ops
