#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

template <class T>
constexpr Kernels<T> kKernels = {mlstm_fwd<T>,     mlstm_bwd<T>,      mlstm_step<T>,   recurrent_fwd<T>,
                                 recurrent_bwd<T>, recurrent_step<T>, conv_fwd<T>,     conv_bwd<T>,
                                 norm_fwd<T>,      norm_bwd<T>,       headwise_fwd<T>, headwise_bwd<T>};

const KernelTable kTable = {kKernels<float>, kKernels<double>, gated_fwd, gated_bwd, few_rows_linear};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
