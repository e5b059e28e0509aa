#pragma once
// The checks of the ops: the last line of defence. Python has checked before and says it better.
#include <initializer_list>
#include <utility>

#include "ops/tensors.h"

namespace xlstm::ops {

std::string shape_string(const Shape& shape);
std::string shape_string(const Tensor& x);

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
using Named = std::initializer_list<std::pair<const char*, const Tensor*>>;
void check_own_memory(const char* op, Named tensors);

// Tensors that an op writes while it reads others: none of the first shares memory with one of the second.
void check_apart(const char* op, Named written, Named read);

}  // namespace xlstm::ops
