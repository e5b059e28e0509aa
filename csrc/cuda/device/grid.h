#pragma once
// Barrier of a whole grid, for kernels launched with Launch::cooperative.
#include "cuda/device/platform.h"

#if !XLSTM_SIMT
#define _CG_LIMIT_INCLUDED_DEPENDENCIES  // without the C++ library of CUDA, which takes longer to read than a kernel
#include <cooperative_groups.h>
#endif

namespace xlstm::device {

XLSTM_DEVICE void grid_sync([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::grid_sync(where);
#else
  cooperative_groups::this_grid().sync();
#endif
}

}  // namespace xlstm::device
