#pragma once
// The arguments of the mLSTM's ops, checked: the same for every backend.
#include "core/mlstm_chunkwise.h"
#include "ops/arguments.h"
#include "ops/checks.h"

namespace xlstm::ops {

inline MlstmOptions mlstm_options(Arguments& arguments) {
  MlstmOptions options;
  options.each([&](auto& option) { arguments.read(option); });
  return options;
}

void check_sizes(const char* op, const MlstmShape& shape);

// The tensors that mlstm_fwd takes, and mlstm_bwd too: C0, n0 and m0 are the initial state. torch.export saves a
// program with the names of the arguments, so that these stay.
#define XLSTM_MLSTM_TENSORS                                                                \
  "Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor? C0, Tensor? n0, Tensor? m0, " \
  "Tensor? cu_seqlens, Tensor? reset"

struct MlstmTensors {
  Tensor q, k, v, i, f;
  OptionalTensor initial_C, initial_n, initial_m, cu_seqlens, reset;

  explicit MlstmTensors(Arguments& arguments);
};

struct MlstmCall {
  const MlstmTensors& in;
  MlstmShape shape;  // without cu_seqlens: kernels get the pointer of their own memory
  ScalarType type;   // of the arithmetic and of states

  // max_dim: of a dimension that the kernels count.
  MlstmCall(const MlstmTensors& in, int64_t max_dim);

  Shape C_shape() const { return {shape.num_sequences, shape.num_heads, shape.head_dim_qk, shape.head_dim_v}; }
  Shape n_shape() const { return {shape.num_sequences, shape.num_heads, shape.head_dim_qk}; }
  Shape m_shape() const { return {shape.num_sequences, shape.num_heads}; }
  Shape h_shape() const { return {shape.batch, shape.num_heads, shape.seqlen, shape.head_dim_v}; }
  Shape gate_shape() const { return {shape.batch, shape.num_heads, shape.seqlen}; }

 private:
  void check_initial_state() const;
  void check_sequences() const;  // that cu_seqlens rises from 0 to S, where its values are on the CPU
};

}  // namespace xlstm::ops
