#pragma once
// Parameters of the linear maps of small blocks of features, one or two of one input, on every backend.
//
//   y[.., n O + o] = bias[n O + o] + sum_i weight[n, o, i] x[.., n I + i]
#include "core/view.h"

namespace xlstm {

constexpr int kHeadwiseMaps = 2;    // of one input in one pass
constexpr int kHeadwiseBlock = 16;  // features in and out of a block, at most
constexpr int kUsualBlock = 4;      // in and out

// x (B, S, N I), y (B, S, N O).
struct HeadwiseShape {
  int64_t batch, seqlen, blocks, in;
  int maps = 1;
  int64_t out[kHeadwiseMaps] = {0};

  XLSTM_HOST_DEVICE int64_t tokens() const { return batch * seqlen; }
  // Sums over tokens of one map: dweight (N, O, I), then dbias (N, O).
  XLSTM_HOST_DEVICE int64_t sums(int map) const { return blocks * out[map] * (in + 1); }
  XLSTM_HOST_DEVICE int64_t all_sums() const { return sums(0) + (maps > 1 ? sums(1) : 0); }
};

// Views are (B, S, F), of one type. No output may overlap an input. The head of a view is 0. T: of the weights, float
// or double, or void for any type.
template <class T>
struct HeadwiseForwardParams {
  HeadwiseShape shape;
  AnyView x;
  PointerOf<const T> weight[kHeadwiseMaps];  // (N, O, I) contiguous
  PointerOf<const T> bias[kHeadwiseMaps];    // (N O,) contiguous, or null
  AnyView y[kHeadwiseMaps];                  // written
};

// A: float or double, the type of the arithmetic.
template <class T, class A = T>
struct HeadwiseBackwardParams {
  HeadwiseForwardParams<T> forward;  // as it was, without biases and y
  AnyView dy[kHeadwiseMaps];
  AnyView dx;                 // written
  A* dweight[kHeadwiseMaps];  // (N, O, I) contiguous, written
  A* dbias[kHeadwiseMaps];    // (N O,), written
};

}  // namespace xlstm
