#include "ops/backends/device.h"

#include <stdexcept>

#include "cuda/refusal.h"

namespace xlstm::ops {

cuda::Allocator DeviceSession::allocator() {
  return {[](void* context, size_t bytes) { return static_cast<DeviceSession*>(context)->workspace(bytes); }, this};
}

void DeviceSession::check(cudaError_t error) const {
  if (error == cudaErrorLaunchOutOfResources) {
    refuse(cuda::refusal() + ": use smaller head dimensions or backend='reference'");
  }
  if (error != cudaSuccess) refuse(text(error));
}

void DeviceSession::refuse(const std::string& problem) const {
  throw std::runtime_error(std::string(op()) + ": " + problem);
}

}  // namespace xlstm::ops
