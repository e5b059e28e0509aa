#include "ops/common.h"

#include <algorithm>
#include <cstdlib>

namespace xlstm::ops {
namespace {

// The words by which training tools tell that a smaller batch may help; torch's own error stays behind its C interface.
[[noreturn]] void out_of_memory(bool cpu, double bytes, const std::string& what) {
  STD_TORCH_CHECK(false, "xlstm_cuda: ", cpu ? "DefaultCPUAllocator: can't allocate memory." : "CUDA out of memory.",
                  " Tried to allocate ", static_cast<int64_t>(bytes), " bytes for ", what);
  std::abort();
}

// Scratch memory of one thread, kept between calls up to a limit: fresh pages cost more than small kernels.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  void* get(size_t bytes) {
    if (bytes > size_ || (size_ > kKept && bytes <= kKept)) {
      std::free(data_);
      size_ = 0;
      data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
      if (data_ == nullptr) out_of_memory(true, static_cast<double>(bytes), "scratch");
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

void check_given(const char* op, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* x : tensors) STD_TORCH_CHECK(x->defined(), op, ": a tensor that must be given is None");
}

void check_shape(const char* op, const char* name, const Tensor& x, const Shape& expected) {
  check_given(op, {&x});
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

void check_sizes(const char* op, int64_t limit, std::initializer_list<Sizes> products) {
  for (const Sizes& sizes : products) {
    int64_t product = 1;
    bool overflows = false;
    for (int64_t size : sizes) overflows |= __builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product);
    STD_TORCH_CHECK(!overflows && product < limit, op, ": the product of the sizes ", shape_string(Shape(sizes)),
                    " must be less than ", limit, ", where 0 counts as 1");
  }
}

namespace {

using Extent = std::pair<const char*, const char*>;  // first byte, and the one behind the last

Extent extent_of(const Tensor& x, int64_t elements) {
  const char* begin = static_cast<const char*>(x.const_data_ptr());
  return {begin, begin + elements * static_cast<int64_t>(x.element_size())};
}

// Where the strides of every dimension pass over all that lies within it, elements cannot meet. `extent`: of x.
bool meets_itself(const Tensor& x, Extent* extent) {
  if (x.is_contiguous()) {
    *extent = extent_of(x, x.numel());
    return false;
  }
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) != 1) dims.emplace_back(x.stride(d), x.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t last = 0;
  bool meets = false;
  for (const auto& [stride, size] : dims) {
    meets = meets || stride <= last;
    last += stride * (size - 1);
  }
  *extent = extent_of(x, last + 1);
  return meets;
}

}  // namespace

void check_own_memory(const char* op, std::initializer_list<std::pair<const char*, const Tensor*>> tensors) {
  std::vector<std::pair<const char*, Extent>> seen;
  for (const auto& [name, x] : tensors) {
    if (x->numel() == 0) continue;
    Extent own;
    STD_TORCH_CHECK(!meets_itself(*x, &own), op, ": ", name, " must not be expanded, nor overlap itself in memory");
    for (const auto& [other, extent] : seen) {
      STD_TORCH_CHECK(own.second <= extent.first || extent.second <= own.first, op, ": ", name, " and ", other,
                      " must not lie in one range of memory");
    }
    seen.emplace_back(name, own);
  }
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
