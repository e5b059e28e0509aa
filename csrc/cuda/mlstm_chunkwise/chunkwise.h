#pragma once
// The chunkwise mLSTM on CUDA devices: which kernels run, in which order, on which intermediate results.
#include "core/mlstm_chunkwise.h"
#include "cuda/mlstm_chunkwise/product.h"

namespace xlstm::cuda {

// Memory for intermediate results, kept until the launches are made; from the stream-ordered allocator of the caller.
struct Allocator {
  void* (*allocate)(void* context, size_t bytes);
  void* context;

  template <class T>
  T* get(int64_t count) const {
    return static_cast<T*>(allocate(context, static_cast<size_t>(count) * sizeof(T)));
  }
};

// A: float, or double for f64 data.
template <class A>
struct MlstmForwardArguments {
  MlstmShape shape;      // cu_seqlens on the device
  MlstmOptions options;  // chunk_size: the caller's wish, 0 for none
  Product product;
  AnyView q, k, v, i, f;  // q, k, v of one type
  Flags reset;
  MlstmState<const A> initial;  // (N, H, ...) contiguous, or null
  AnyView h;                    // written
  A* r;                         // (B, H, S), written: q.n, saved for the backward pass
  MlstmState<A> final;          // written
};

template <class A>
struct MlstmBackwardArguments {
  MlstmForwardArguments<A> forward;  // as it was; r and h are read, final is not
  AnyView dh;
  MlstmState<const A> final_grad;  // any pointer may be null: zero
  AnyView dq, dk, dv, di, df;      // written
  MlstmState<A> initial_grad;      // written
};

template <class A>
cudaError_t mlstm_forward(const MlstmForwardArguments<A>& arguments, const Allocator& memory, cudaStream_t stream);
template <class A>
cudaError_t mlstm_backward(const MlstmBackwardArguments<A>& arguments, const Allocator& memory, cudaStream_t stream);

}  // namespace xlstm::cuda
