#pragma once
// Gate vectors in the memory of a session, for ops that run the gate scan and then kernels that use it.
#include "cuda/mlstm_chunkwise/gates.h"
#include "cuda/mlstm_chunkwise/product.h"
#include "ops/backends/device.h"

namespace xlstm::ops {

inline cuda::Product product_numbered(const char* op, int64_t number) {
  const bool known = number >= 0 && number <= static_cast<int64_t>(cuda::Product::f64);
  STD_TORCH_CHECK(known, op, ": product must be 0 (bf16), 1 (tf32), 2 (tf32x3) or 3 (f64), got ", number);
  return static_cast<cuda::Product>(number);
}

inline cuda::TensorCores tensor_cores_numbered(const char* op, int64_t number) {
  STD_TORCH_CHECK(number == 0 || number == 1, op, ": by must be 0 (mma) or 1 (wgmma), got ", number);
  return static_cast<cuda::TensorCores>(number);
}

template <class T>
T* allocate(DeviceSession& session, int64_t count) {
  return static_cast<T*>(session.workspace(sizeof(T) * static_cast<size_t>(count)));
}

template <class A>
cuda::GateVectors<A> allocate_gate_vectors(DeviceSession& session, const MlstmShape& shape, int chunk_size) {
  const int64_t rows = shape.batch * shape.num_heads, tokens = rows * shape.seqlen;
  const int64_t slots = rows * cuda::chunk_slots(shape, chunk_size);
  return {
      allocate<cuda::Pair<A>>(session, tokens), allocate<cuda::Pair<A>>(session, tokens), allocate<A>(session, tokens),
      allocate<int32_t>(session, tokens),       allocate<cuda::Pair<A>>(session, slots),  allocate<A>(session, slots)};
}

// What the gates of a sequence are computed from.
struct GateInputs {
  const Tensor &i, &f;
  OptionalTensor initial_m, cu_seqlens, reset;  // contiguous: of the compute type, int32, bool
  bool sigmoid_gate;
  int chunk_size;

  MlstmShape shape(int64_t head_dim_qk, int64_t head_dim_v) const {
    const int64_t sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : i.size(0);
    return {i.size(0), i.size(1), i.size(2), head_dim_qk, head_dim_v, pointer<int32_t>(cu_seqlens), sequences};
  }
};

// The parameters of the gate scan, with all tensors in the session; the final m is not kept.
template <class A>
cuda::MlstmGatesParams<A> gate_params(DeviceSession& session, const GateInputs& in, MlstmShape shape) {
  cuda::MlstmGatesParams<A> p;
  shape.cu_seqlens = in_as<int32_t>(session, in.cu_seqlens);
  p.shape = shape;
  p.sigmoid_gate = in.sigmoid_gate;
  p.chunk_size = in.chunk_size;
  p.i = view_of<void>(session.in(in.i), in.i);
  p.f = view_of<void>(session.in(in.f), in.f);
  if (in.reset) p.reset = {in_as<bool>(session, in.reset), in.reset->stride(0), in.reset->stride(1)};
  p.initial_m = in_as<A>(session, in.initial_m);
  p.out = allocate_gate_vectors<A>(session, shape, in.chunk_size);
  p.final_m = allocate<A>(session, shape.num_sequences * shape.num_heads);
  return p;
}

}  // namespace xlstm::ops
