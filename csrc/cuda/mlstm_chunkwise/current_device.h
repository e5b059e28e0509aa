#pragma once
#include "cuda/mlstm_chunkwise/plan.h"

namespace xlstm::cuda {

MlstmDevice mlstm_device();  // the current one

bool compiled_for_wgmma();  // as the current device runs the kernels of outputs_wgmma.cu

}  // namespace xlstm::cuda
