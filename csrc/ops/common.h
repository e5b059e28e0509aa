#pragma once
// Helpers of the op bodies: the only layer that knows torch (stable ABI, torch >= 2.11).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime.h"
#include "core/view.h"

namespace xlstm::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// Autograd is live in an op body: without this, conversions of an input that requires grad would be recorded.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;

 private:
  bool before_;
};

// Threads and scratch memory of the CPU kernels.
const Runtime& cpu_runtime();

std::string shape_string(const Shape& shape);
std::string shape_string(const Tensor& x);

// The last line of defence: Python has checked before and says it better.
void check_shape(const char* op, const char* name, const Tensor& x, const Shape& expected);
void check_shape(const char* op, const char* name, const OptionalTensor& x, const Shape& expected);

void check_float(const char* op, const char* name, const Tensor& x);

// torch lets None pass for a tensor that is not optional.
void check_given(const char* op, std::initializer_list<const Tensor*> tensors);

// Every feature dimension must have at least one element.
void check_dims(const char* op, std::initializer_list<int64_t> dims);

// The one guard against products of sizes that overflow. Below an op every such product (offsets, bytes of scratch and
// workspaces, blocks of a grid, work items) is at most 2^14 times one that was checked here, so none needs a guard of
// its own. Sizes count as 1 where they are 0: an empty batch may come with any other sizes.
constexpr int64_t kMaxElements = int64_t{1} << 48;   // of a tensor: more than any address space holds
constexpr int64_t kMaxWork = int64_t{1} << 56;       // of a loop, or of the states of all chunks
constexpr int64_t kMaxDeviceDim = int64_t{1} << 30;  // of a dimension that CUDA kernels count in int32
using Sizes = std::initializer_list<int64_t>;
void check_sizes(const char* op, int64_t limit, std::initializer_list<Sizes> products);

// Tensors that an op overwrites: every element has memory of its own, and no two of them share any.
void check_own_memory(const char* op, std::initializer_list<std::pair<const char*, const Tensor*>> tensors);

Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype);

// x as dtype, last dimension contiguous; x itself where it already is.
Tensor as(const Tensor& x, ScalarType dtype);
Tensor as_contiguous(const Tensor& x, ScalarType dtype);
OptionalTensor as_contiguous(const OptionalTensor& x, ScalarType dtype);

// Writes y into x as an op does that only has x's memory: torch's own copy_ refuses a tensor made under inference_mode
// outside of it, and would do so after the op has changed other tensors.
void overwrite(const Tensor& x, const Tensor& y);

// Compute and state type: double for double tensors, else float.
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f(T{}) with the compute type.
template <class F>
auto with_compute_type(ScalarType type, F f) {
  return type == ScalarType::Double ? f(double{}) : f(float{});
}

template <class T>
const T* pointer(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
const T* pointer(const OptionalTensor& x) {
  return x ? pointer<T>(*x) : nullptr;
}
template <class T>
T* mutable_pointer(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// (B, H, S, D) or (B, H, S)
template <class T>
View<const T> view(const Tensor& x) {
  return {pointer<T>(x), x.stride(0), x.stride(1), x.stride(2)};
}
template <class T>
View<T> mutable_view(const Tensor& x) {
  return {mutable_pointer<T>(x), x.stride(0), x.stride(1), x.stride(2)};
}

inline Flags flags(const OptionalTensor& x) {
  if (!x) return {};
  return {pointer<bool>(*x), x->stride(0), x->stride(1)};
}

// An output that a kernel computes in `type` and the caller gets in the dtype, and with the strides, of `like`.
class Output {
 public:
  Output(const Tensor& like, ScalarType type);
  const Tensor& computed() const { return computed_; }
  Tensor result() const;

 private:
  Tensor result_, computed_;
};

}  // namespace xlstm::ops
