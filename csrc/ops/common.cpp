#include "ops/common.h"

#include <cstdlib>
#include <new>

namespace xlstm::ops {
namespace {

// Scratch memory of one thread, kept between calls up to a limit: fresh pages cost more than small kernels.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  void* get(size_t bytes) {
    if (bytes > size_ || (size_ > kKept && bytes <= kKept)) {
      std::free(data_);
      size_ = 0;
      data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return data_;
  }

 private:
  static constexpr size_t kKept = size_t{64} << 20;
  void* data_ = nullptr;
  size_t size_ = 0;
};

void* thread_scratch(int slot, size_t bytes) {
  static thread_local Scratch slots[2];
  return slots[slot].get(bytes);
}

void run(int64_t count, int64_t grain, const void* context, Runtime::Body body) {
  if (count <= grain || torch::stable::get_num_threads() == 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace

const Runtime& cpu_runtime() {
  static const Runtime runtime = {run, thread_scratch,
                                  [] { return static_cast<int>(torch::stable::get_num_threads()); }};
  return runtime;
}

std::string shape_string(const Shape& shape) {
  std::string text = "(";
  for (size_t d = 0; d < shape.size(); ++d) text += (d > 0 ? ", " : "") + std::to_string(shape[d]);
  return text + ")";
}

std::string shape_string(const Tensor& x) {
  return shape_string(Shape(x.sizes().begin(), x.sizes().end()));
}

void check_float(const char* op, const char* name, const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  op, ": ", name, " must be bfloat16, float16, float32 or float64");
}

void check_shape(const char* op, const char* name, const Tensor& x, const Shape& expected) {
  bool same = x.dim() == static_cast<int64_t>(expected.size());
  for (size_t d = 0; same && d < expected.size(); ++d) same = x.size(static_cast<int64_t>(d)) == expected[d];
  STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", shape_string(expected), ", got ", shape_string(x));
}

void check_shape(const char* op, const char* name, const OptionalTensor& x, const Shape& expected) {
  if (x) check_shape(op, name, *x, expected);
}

void check_dims(const char* op, std::initializer_list<int64_t> dims) {
  for (int64_t dim : dims) STD_TORCH_CHECK(dim > 0, op, ": heads and head dimensions must not be 0");
}

Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype) {
  return torch::stable::empty(shape, dtype, torch::headeronly::Layout::Strided, like.device());
}

Tensor as(const Tensor& x, ScalarType dtype) {
  Tensor y = x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
  return y.dim() == 0 || y.size(-1) <= 1 || y.stride(-1) == 1 ? y : torch::stable::contiguous(y);
}

Tensor as_contiguous(const Tensor& x, ScalarType dtype) {
  return torch::stable::contiguous(as(x, dtype));
}

OptionalTensor as_contiguous(const OptionalTensor& x, ScalarType dtype) {
  return x ? OptionalTensor(as_contiguous(*x, dtype)) : std::nullopt;
}

Output::Output(const Tensor& like, ScalarType type) : result_(torch::stable::empty_like(like)), computed_(result_) {
  const bool rows = result_.dim() == 0 || result_.size(-1) <= 1 || result_.stride(-1) == 1;
  if (like.scalar_type() == type && rows) return;
  Shape shape(like.sizes().begin(), like.sizes().end());
  computed_ = empty(like, shape, type);
}

Tensor Output::result() const {
  Tensor out = result_;
  if (computed_.get() != result_.get()) torch::stable::copy_(out, computed_);
  return out;
}

}  // namespace xlstm::ops
