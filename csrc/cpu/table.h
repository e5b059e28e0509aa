#pragma once
// The CPU kernels of one SIMD level: a table of functions.
#include "core/conv.h"
#include "core/gated.h"
#include "core/headwise.h"
#include "core/linear.h"
#include "core/mlstm_chunkwise.h"
#include "core/mlstm_step.h"
#include "core/norm.h"
#include "core/recurrent.h"
#include "core/runtime.h"

namespace xlstm::cpu {

template <class T>
struct Kernels {
  void (*mlstm_fwd)(const MlstmForwardParams<T>&, const Runtime&);
  void (*mlstm_bwd)(const MlstmBackwardParams<T>&, const Runtime&);
  void (*mlstm_step)(const MlstmStepParams<T>&, const Runtime&);
  void (*recurrent_fwd)(const RecurrentForwardParams<T>&, const Runtime&);
  void (*recurrent_bwd)(const RecurrentBackwardParams<T>&, const Runtime&);
  void (*recurrent_step)(const RecurrentStepParams<T>&, const Runtime&);
  void (*conv_fwd)(const ConvForwardParams<T>&, const Runtime&);
  void (*conv_bwd)(const ConvBackwardParams<T>&, const Runtime&);
  void (*norm_fwd)(const NormForwardParams<T>&, const Runtime&);
  void (*norm_bwd)(const NormBackwardParams<T>&, const Runtime&);
  void (*headwise_fwd)(const HeadwiseForwardParams<T>&, const Runtime&);
  void (*headwise_bwd)(const HeadwiseBackwardParams<T>&, const Runtime&);
};

struct KernelTable {
  Kernels<float> f32;
  Kernels<double> f64;
  // For elements of any type.
  void (*gated_fwd)(const GatedForwardParams&, const Runtime&);
  void (*gated_bwd)(const GatedBackwardParams&, const Runtime&);
  void (*few_rows_linear)(const FewRowsLinearParams&, const Runtime&);
};

}  // namespace xlstm::cpu
