#pragma once
// Parameters of y = x W^T + b, or of that plus another tensor, for few rows of x. On a CPU only: elsewhere libraries
// read the weights as fast as memory.
#include "core/view.h"

namespace xlstm {

constexpr int64_t kFewRows = 16;  // at most

// A row of x, weight or y is a time of its view; all three have elements of one type.
struct FewRowsLinearParams {
  int64_t rows, in, out;  // y (rows, out)
  AnyView x{}, weight{};  // (rows, in), (out, in)
  Any bias{};             // (out), or null; of the same type
  AnyView y{};            // written
  AnyView added{};        // (rows, out), or null: y = x W^T + b + added
};

}  // namespace xlstm
