#pragma once
// The kernels of resident_bwd_kernel.h: each product is a source of its own. `padded_draw`: dh_by_gather.h, for
// Variant::grid.
#include "cuda/recurrent/plan.h"
#include "cuda/recurrent/scan.h"

namespace xlstm::cuda {

cudaError_t resident_bwd_bf16(const RecurrentBackwardParams<void>&, const RecurrentPlan&, void* padded_draw,
                              cudaStream_t);
cudaError_t resident_bwd_f16(const RecurrentBackwardParams<void>&, const RecurrentPlan&, void* padded_draw,
                             cudaStream_t);
cudaError_t resident_bwd_tf32(const RecurrentBackwardParams<void>&, const RecurrentPlan&, void* padded_draw,
                              cudaStream_t);
cudaError_t resident_bwd_tf32x3(const RecurrentBackwardParams<void>&, const RecurrentPlan&, void* padded_draw,
                                cudaStream_t);
cudaError_t resident_bwd_f64(const RecurrentBackwardParams<void>&, const RecurrentPlan&, void* padded_draw,
                             cudaStream_t);

}  // namespace xlstm::cuda
