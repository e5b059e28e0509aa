#include "ops/backends/cuda_device.h"

#include <cuda_runtime_api.h>

#include <atomic>

#include "ops/backends/architecture.h"

// Of torch's CUDA library. Null where that is not loaded: this library also runs on a CPU build of torch.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace xlstm::ops {
namespace {

constexpr int kMaxDevices = 64;

cudaError_t ask_capability(int device, int& capability) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) cudaGetLastError();  // or a later query would find it
  capability = 10 * major + minor;
  return error;
}

// Asked once for each device, and again after an error.
cudaError_t capability_of(int device, int& capability) {
  static std::atomic<int> known[kMaxDevices];
  capability = device < kMaxDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (capability != 0) return cudaSuccess;
  const cudaError_t error = ask_capability(device, capability);
  if (error == cudaSuccess && device < kMaxDevices) known[device].store(capability, std::memory_order_relaxed);
  return error;
}

}  // namespace

std::string problem_of_device(int device, const std::vector<std::string>& archs) {
  int capability = 0;
  const cudaError_t error = capability_of(device, capability);
  if (error == cudaSuccess) return unsupported_device(capability, archs);
  return "cuda:" + std::to_string(device) + " does not tell its compute capability: " + cudaGetErrorString(error);
}

std::string find_stream(int device, void** stream) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    return "torch's CUDA library (libtorch_cuda) is not loaded, and has no stream to run on: install a PyTorch that is "
           "built for CUDA";
  }
  const bool found = aoti_torch_get_current_cuda_stream(device, stream) == 0;
  return found ? "" : "torch gave no CUDA stream of cuda:" + std::to_string(device);
}

}  // namespace xlstm::ops
