#pragma once
// The device that a call runs on, as plan.h asks for it.
#include "cuda/recurrent/plan.h"

namespace xlstm::cuda {

RecurrentDevice recurrent_device();  // the current one

}  // namespace xlstm::cuda
