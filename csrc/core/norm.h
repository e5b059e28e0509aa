#pragma once
// Parameters of the norm over each head with weight, skip and output gate, on every backend.
//
//   n = (h - mean) / sqrt(var + eps), or h / sqrt(mean(h^2) + eps), over the dimension D of a head
//   p = n (weight_offset + weight) + bias + skip_weight skip;   y = p act(gate), act: silu or sigmoid
//
// What is not given is left out: without weight p is n + .., without skip_weight the skip is added as it is.
#include "core/view.h"

namespace xlstm {

struct NormShape {
  int64_t batch, seqlen, heads, dim;

  XLSTM_HOST_DEVICE int64_t tokens() const { return batch * seqlen; }
  XLSTM_HOST_DEVICE int64_t features() const { return heads * dim; }
};

struct NormOptions {
  bool rms = false;      // no mean
  bool sigmoid = false;  // the gate's function; silu where it is false
  double eps = 0, weight_offset = 0;
};

// Sums over tokens have one row for each in the partial sums of a backward pass.
enum NormSum { kWeightSum, kBiasSum, kSkipWeightSum, kNormSums };

// Views are (B, H, S, D), of one type. No output may overlap an input. T: of the weights, float or double, or void for
// any type.
template <class T>
struct NormForwardParams {
  NormShape shape;
  NormOptions options;
  AnyView h;
  PointerOf<const T> weight, bias;  // (H D,) contiguous, or null
  AnyView gate, skip;               // or null
  PointerOf<const T> skip_weight;   // (H D,) contiguous, or null
  AnyView y;                        // written
};

// A: float or double, the type of the arithmetic. What belongs to an input that was not given is null.
template <class T, class A = T>
struct NormBackwardParams {
  NormForwardParams<T> forward;  // as it was, without y
  AnyView dy;
  AnyView dh, dgate, dskip;        // written
  A* sums[kNormSums] = {nullptr};  // dweight, dbias, dskip_weight (H D,), written
};

}  // namespace xlstm
