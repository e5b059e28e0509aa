#include "ops/checks.h"

#include <algorithm>

namespace xlstm::ops {

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

// Where a tensor lies, in bytes. page: from one row of its first dimension to the next, 0 where there is one row. row:
// from the first to the last element of a row.
struct Extent {
  const char *begin, *end;
  int64_t page, row;
};

// Where the strides of every dimension pass over all that lies within it, elements cannot meet. `extent`: of x.
bool meets_itself(const Tensor& x, Extent* extent) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  int64_t row = 1;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) != 1) dims.emplace_back(x.stride(d), x.size(d));
    if (d) row += x.stride(d) * (x.size(d) - 1);
  }
  std::sort(dims.begin(), dims.end());
  int64_t last = 0;
  bool meets = false;
  for (const auto& [stride, size] : dims) {
    meets = meets || stride <= last;
    last += stride * (size - 1);
  }
  const char* begin = static_cast<const char*>(x.const_data_ptr());
  const int64_t bytes = static_cast<int64_t>(x.element_size());
  const int64_t page = x.dim() && x.size(0) > 1 ? x.stride(0) : 0;
  *extent = {begin, begin + (last + 1) * bytes, page * bytes, row * bytes};
  return meets;
}

// One behind the other, or row by row in the pages of one table.
bool are_apart(const Extent& x, const Extent& y) {
  if (x.end <= y.begin || y.end <= x.begin) return true;
  if (x.page != y.page || x.page <= 0) return false;
  const int64_t offset = ((y.begin - x.begin) % x.page + x.page) % x.page;
  return x.row <= offset && y.row <= x.page - offset;
}

void check_apart(const char* op, const char* name, const Extent& own, const char* other, const Extent& extent) {
  STD_TORCH_CHECK(are_apart(own, extent), op, ": ", name, " and ", other, " must not lie in one range of memory");
}

}  // namespace

void check_own_memory(const char* op, Named tensors) {
  std::vector<std::pair<const char*, Extent>> seen;
  for (const auto& [name, x] : tensors) {
    if (x->numel() == 0) continue;
    Extent own;
    STD_TORCH_CHECK(!meets_itself(*x, &own), op, ": ", name, " must not be expanded, nor overlap itself in memory");
    for (const auto& [other, extent] : seen) check_apart(op, name, own, other, extent);
    seen.emplace_back(name, own);
  }
}

void check_apart(const char* op, Named written, Named read) {
  for (const auto& [name, x] : written) {
    for (const auto& [other, y] : read) {
      if (x->numel() == 0 || y->numel() == 0) continue;
      Extent own, extent;
      meets_itself(*x, &own), meets_itself(*y, &extent);
      check_apart(op, name, own, other, extent);
    }
  }
}

}  // namespace xlstm::ops
