#pragma once
// The session of an op on CUDA kernels: they take data in the dtypes of the caller. On a device (cuda.cpp) in the
// tensors' own memory; on the host executor (simt.cpp) in copies between guard pages, with poisoned outputs.
#include <driver_types.h>

#include <forward_list>
#include <memory>

#include "cuda/launchers.h"
#include "ops/backends/session.h"
#include "ops/checks.h"

namespace xlstm::ops {

class DeviceSession {
 public:
  static constexpr int64_t kMaxDim = kMaxDeviceDim;
  static constexpr bool kStepRoundsH = true;

  DeviceSession(const char* op, const Tensor& like);  // every tensor must be on the device of `like`
  ~DeviceSession();
  DeviceSession(const DeviceSession&) = delete;

  // As those of CpuSession.
  template <class F>
  auto with_types(F f) {
    return arithmetic_ == ScalarType::Double ? f(Of<void>{}, double{}) : f(Of<void>{}, float{});
  }
  ScalarType dtype_for(const Tensor& x) const { return x.scalar_type(); }
  ScalarType state_dtype_for(const Tensor& x) const { return x.scalar_type(); }
  const Tensor& keep(Tensor x) { return kept_.emplace_front(std::move(x)); }

  // Memory with the strides of the tensor, valid until the session ends.
  const void* in(const Tensor& x);
  void* out(const Tensor& x);
  void* inout(const Tensor& x);
  void* workspace(size_t bytes);

  template <class Params>
  size_t kept_bytes(const Params& params) const {
    return cuda::kept_bytes(params);
  }

  template <class Params>
  void run(const Params& params) {
    check(cuda::run(params, allocator(), stream()));
  }
  void finish();  // the results are in the tensors that out and inout were given

  // For ops that launch single kernels.
  cuda::Allocator allocator();
  cudaStream_t stream() const;
  void check(cudaError_t error) const;  // of a launcher; raises one sentence

 private:
  [[noreturn]] void refuse(const std::string& problem) const;
  std::string text(cudaError_t error) const;
  const char* op() const;

  struct State;
  ScalarType arithmetic_;
  std::unique_ptr<State> state_;    // of the device, for as long as tensors are kept
  std::forward_list<Tensor> kept_;  // until the launches are made: memory given back earlier could be given out again
};

}  // namespace xlstm::ops
