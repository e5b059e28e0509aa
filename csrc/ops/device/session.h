#pragma once
// One call of an op on CUDA kernels: where they find the memory of its tensors, their stream, and what went wrong.
// On a device the tensors' own memory; on the host executor copies between guard pages, with poisoned outputs.
#include <driver_types.h>

#include <memory>

#include "cuda/types.h"
#include "ops/common.h"

namespace xlstm::ops {

class Session {
 public:
  Session(const char* op, const Tensor& like);  // every tensor must be on the device of `like`
  ~Session();
  Session(const Session&) = delete;

  // Memory with the strides of the tensor, valid until the session ends.
  const void* in(const Tensor& x);
  const void* in(const OptionalTensor& x) { return x ? in(*x) : nullptr; }
  void* out(const Tensor& x);
  void* inout(const Tensor& x);
  void* workspace(size_t bytes);

  template <class T>
  const T* in_as(const OptionalTensor& x) {
    return static_cast<const T*>(in(x));
  }
  template <class T>
  T* out_as(const Tensor& x) {
    return static_cast<T*>(out(x));
  }

  cudaStream_t stream() const;
  void check(cudaError_t error) const;  // of a launcher; raises one sentence
  void finish();                        // the results are in the tensors that out and inout were given

 private:
  [[noreturn]] void refuse(const std::string& problem) const;
  std::string text(cudaError_t error) const;
  const char* op() const;

  struct State;
  std::unique_ptr<State> state_;
};

cuda::Type type_of(const Tensor& x);

}  // namespace xlstm::ops
