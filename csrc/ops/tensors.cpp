#include "ops/tensors.h"

#include <cstdlib>

#include "ops/checks.h"

namespace xlstm::ops {

void out_of_memory(bool cpu, double bytes, const std::string& what) {
  STD_TORCH_CHECK(false, "xlstm_cuda: ", cpu ? "DefaultCPUAllocator: can't allocate memory." : "CUDA out of memory.",
                  " Tried to allocate ", static_cast<int64_t>(bytes), " bytes for ", what);
  std::abort();
}

Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype) {
  const auto allocate = [&](const Shape& sizes) {
    return torch::stable::empty(sizes, dtype, torch::headeronly::Layout::Strided, like.device());
  };
  try {
    return allocate(shape);
  } catch (const std::exception&) {
    double bytes = static_cast<double>(allocate({0}).element_size());
    for (int64_t size : shape) bytes *= static_cast<double>(size);
    out_of_memory(like.is_cpu(), bytes, "a tensor of shape " + shape_string(shape));
  }
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

void overwrite(const Tensor& x, const Tensor& y) {
  Tensor memory = torch::stable::from_blob(x.mutable_data_ptr(), x.sizes(), x.strides(), x.device(), x.scalar_type());
  torch::stable::copy_(memory, y);
}

Output::Output(const Tensor& result, ScalarType computed_type) : result_(result), computed_(result) {
  const bool rows = result.dim() == 0 || result.size(-1) <= 1 || result.stride(-1) == 1;
  if (result.scalar_type() == computed_type && rows) return;
  computed_ = empty(result, Shape(result.sizes().begin(), result.sizes().end()), computed_type);
}

Tensor Output::result() const {
  Tensor out = result_;
  if (computed_.get() != result_.get()) torch::stable::copy_(out, computed_);
  return out;
}

Type type_of(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  if (type == ScalarType::BFloat16) return Type::bf16;
  if (type == ScalarType::Half) return Type::f16;
  if (type == ScalarType::Float) return Type::f32;
  STD_TORCH_CHECK(type == ScalarType::Double, "xlstm_cuda: kernels take bfloat16, float16, float32 and float64");
  return Type::f64;
}

}  // namespace xlstm::ops
