#include "ops/device/session.h"

namespace xlstm::ops {

void Session::check(cudaError_t error) const {
  STD_TORCH_CHECK(error != cudaErrorLaunchOutOfResources, op(),
                  ": a kernel needs more shared memory than this GPU has: use smaller head dimensions or "
                  "backend='reference'");
  STD_TORCH_CHECK(error == cudaSuccess, op(), ": ", text(error));
}

cuda::Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16:
      return cuda::Type::bf16;
    case ScalarType::Half:
      return cuda::Type::f16;
    case ScalarType::Float:
      return cuda::Type::f32;
    default:
      return cuda::Type::f64;
  }
}

}  // namespace xlstm::ops
