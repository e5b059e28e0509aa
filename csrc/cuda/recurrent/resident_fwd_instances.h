#pragma once
// One source per kind of products: they compile side by side. `padded_h`: exchange.h, for Variant::grid.
#include "cuda/recurrent/resident.h"

namespace xlstm::cuda {

cudaError_t resident_fwd_bf16(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                              cudaStream_t stream);
cudaError_t resident_fwd_f16(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                             cudaStream_t stream);
cudaError_t resident_fwd_tf32(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                              cudaStream_t stream);
cudaError_t resident_fwd_tf32x3(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                                cudaStream_t stream);
cudaError_t resident_fwd_f64(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                             cudaStream_t stream);

}  // namespace xlstm::cuda
