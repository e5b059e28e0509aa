#pragma once
// The CPU kernels in use: the table of one SIMD level, chosen once when the library is loaded.
#include <string>
#include <vector>

#include "cpu/table.h"

namespace xlstm::cpu {

// The level in use: the best that this processor runs, or the one named by the environment variable XLSTM_SIMD.
// Throws std::invalid_argument where that names an unknown level or one that this processor lacks.
const char* simd_level();
std::vector<std::string> simd_levels();  // all that this processor runs, best first

const KernelTable& kernel_table();

template <class T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels<float>() {
  return kernel_table().f32;
}
template <>
inline const Kernels<double>& kernels<double>() {
  return kernel_table().f64;
}

// The kernel of these parameters.
template <class T>
void run(const MlstmForwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().mlstm_fwd(params, runtime);
}
template <class T>
void run(const MlstmBackwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().mlstm_bwd(params, runtime);
}
template <class T>
void run(const MlstmStepParams<T>& params, const Runtime& runtime) {
  kernels<T>().mlstm_step(params, runtime);
}
template <class T>
void run(const RecurrentForwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().recurrent_fwd(params, runtime);
}
template <class T>
void run(const RecurrentBackwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().recurrent_bwd(params, runtime);
}
template <class T>
void run(const RecurrentStepParams<T>& params, const Runtime& runtime) {
  kernels<T>().recurrent_step(params, runtime);
}
template <class T>
void run(const ConvForwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().conv_fwd(params, runtime);
}
template <class T>
void run(const ConvBackwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().conv_bwd(params, runtime);
}
template <class T>
void run(const NormForwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().norm_fwd(params, runtime);
}
template <class T>
void run(const NormBackwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().norm_bwd(params, runtime);
}
template <class T>
void run(const HeadwiseForwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().headwise_fwd(params, runtime);
}
template <class T>
void run(const HeadwiseBackwardParams<T>& params, const Runtime& runtime) {
  kernels<T>().headwise_bwd(params, runtime);
}
inline void run(const GatedForwardParams& params, const Runtime& runtime) {
  kernel_table().gated_fwd(params, runtime);
}
inline void run(const GatedBackwardParams& params, const Runtime& runtime) {
  kernel_table().gated_bwd(params, runtime);
}
inline void run(const FewRowsLinearParams& params, const Runtime& runtime) {
  kernel_table().few_rows_linear(params, runtime);
}

}  // namespace xlstm::cpu
