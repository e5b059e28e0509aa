#pragma once
// The one header that a kernel includes: shared memory, launches and one wrapper per PTX instruction, each with its
// device and its host definition side by side.
#include "cuda/device/barrier.h"
#include "cuda/device/cluster.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/grid.h"
#include "cuda/device/launch.h"
#include "cuda/device/math.h"
#include "cuda/device/matrix.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/platform.h"
#include "cuda/device/shared.h"
#include "cuda/device/tensor_map.h"
#include "cuda/device/tma.h"
#include "cuda/device/wgmma.h"
