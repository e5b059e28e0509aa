#include "ops/device/session.h"

#include <stdexcept>

namespace xlstm::ops {

void Session::check(cudaError_t error) const {
  if (error == cudaErrorLaunchOutOfResources) {
    refuse("a kernel needs more shared memory than this GPU has: use smaller head dimensions or backend='reference'");
  }
  if (error != cudaSuccess) refuse(text(error));
}

void Session::refuse(const std::string& problem) const {
  throw std::runtime_error(std::string(op()) + ": " + problem);
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
