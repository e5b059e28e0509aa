#pragma once
// Parameters of y = x W^T + b, or of that plus another tensor, for few rows of x. On a CPU only: elsewhere libraries
// read the weights as fast as memory.
#include "core/view.h"

namespace xlstm {

constexpr int64_t kFewRows = 16;  // at most
constexpr int kJoinedMaps = 6;    // of the same x

// A row of weight or y is a time of its view.
struct FewRowsMap {
  int64_t out = 0;
  AnyView weight{};  // (out, in)
  Any bias{};        // (out), or null
  AnyView y{};       // (rows, out), written
  AnyView added{};   // (rows, out), or null: y = x W^T + b + added
};

// All elements have one type. Maps that are not there have no outputs.
struct FewRowsLinearParams {
  int64_t rows, in;
  AnyView x{};  // (rows, in)
  FewRowsMap maps[kJoinedMaps]{};
};

}  // namespace xlstm
