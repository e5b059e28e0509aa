#pragma once
// The kernels of one SIMD level.
#include "cpu/simd/vec.h"
#include "cpu/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

template <class T>
void mlstm_fwd(const MlstmForwardParams<T>&, const Runtime&);
template <class T>
void mlstm_bwd(const MlstmBackwardParams<T>&, const Runtime&);
template <class T>
void mlstm_step(const MlstmStepParams<T>&, const Runtime&);
template <class T>
void recurrent_fwd(const RecurrentForwardParams<T>&, const Runtime&);
template <class T>
void recurrent_bwd(const RecurrentBackwardParams<T>&, const Runtime&);
template <class T>
void recurrent_step(const RecurrentStepParams<T>&, const Runtime&);
template <class T>
void conv_fwd(const ConvForwardParams<T>&, const Runtime&);
template <class T>
void conv_bwd(const ConvBackwardParams<T>&, const Runtime&);
template <class T>
void norm_fwd(const NormForwardParams<T>&, const Runtime&);
template <class T>
void norm_bwd(const NormBackwardParams<T>&, const Runtime&);
template <class T>
void headwise_fwd(const HeadwiseForwardParams<T>&, const Runtime&);
template <class T>
void headwise_bwd(const HeadwiseBackwardParams<T>&, const Runtime&);
void gated_fwd(const GatedForwardParams&, const Runtime&);
void gated_bwd(const GatedBackwardParams&, const Runtime&);
void few_rows_linear(const FewRowsLinearParams&, const Runtime&);

extern const KernelTable kTable;

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
