#pragma once
// The session of an op on the CPU kernels: they take float or double, in the memory of tensors.
#include <forward_list>

#include "core/runtime.h"
#include "cpu/kernels.h"
#include "ops/backends/session.h"
#include "ops/checks.h"

namespace xlstm::ops {

// Threads and scratch memory of the CPU kernels.
const Runtime& cpu_runtime();

class CpuSession {
 public:
  static constexpr int64_t kMaxDim = kMaxElements;  // of a dimension that kernels count
  static constexpr bool kStepRoundsH = false;       // whether the kernel of recurrent_step rounds the h before it

  CpuSession(const char*, const Tensor& like) : arithmetic_(compute_type(like)) {}

  // Calls f(T{}, A{}): the types of data and of arithmetic, as the parameters of kernels have them.
  template <class F>
  auto with_types(F f) {
    return arithmetic_ == ScalarType::Double ? f(Of<double>{}, double{}) : f(Of<float>{}, float{});
  }

  // The dtype in which kernels take and give data that the caller has in the dtype of x.
  ScalarType dtype_for(const Tensor&) const { return arithmetic_; }

  // The same of a state.
  ScalarType state_dtype_for(const Tensor&) const { return arithmetic_; }

  // Keeps a tensor until the session ends.
  const Tensor& keep(Tensor x) { return kept_.emplace_front(std::move(x)); }

  const void* in(const Tensor& x) { return x.const_data_ptr(); }
  void* out(const Tensor& x) { return x.mutable_data_ptr(); }
  void* inout(const Tensor& x) { return x.mutable_data_ptr(); }

  // Of what a forward pass keeps for the backward pass besides its results: nothing.
  template <class Params>
  size_t kept_bytes(const Params&) const {
    return 0;
  }

  template <class Params>
  void run(const Params& params) {
    cpu::run(params, cpu_runtime());
  }
  void finish() {}

 private:
  ScalarType arithmetic_;
  std::forward_list<Tensor> kept_;
};

}  // namespace xlstm::ops
