#pragma once
// Parameters of the gated activation y = act(gate) x, and without x of y = act(gate), on every backend.
#include "core/view.h"

namespace xlstm {

// The ops take these numbers, but for soft_cap, which has ops of its own (xlstm_cuda/_ops.py). Formulas: activation.h.
enum class Activation { silu, gelu, gelu_tanh, sigmoid, relu, relu_squared, soft_cap };
constexpr int kGateActivations = 6;  // those of a gate

struct GatedShape {
  int64_t batch, seqlen, features;

  XLSTM_HOST_DEVICE int64_t tokens() const { return batch * seqlen; }
};

// Views are (B, S, F), of one type. No output may overlap an input. The head of a view is 0.
struct GatedForwardParams {
  GatedShape shape;
  Activation activation;
  double cap = 1, inverse_cap = 1;  // of soft_cap
  AnyView gate, x;                  // x: or null
  AnyView y;                        // written
};

struct GatedBackwardParams {
  GatedForwardParams forward;  // as it was, without y
  AnyView dy;
  AnyView dgate, dx;  // written; dx is null where x is
};

}  // namespace xlstm
