#pragma once
// Launch of a kernel in place of <<<>>>: the same call on a device and on the host executor.
#include <type_traits>
#include <utility>

#include "cuda/device/platform.h"
#include "cuda/refusal.h"

namespace xlstm::device {

constexpr int64_t kMaxGridX = 0x7fffffff;  // blocks; y and z have 65,535, so kernels use x alone

struct Launch {
  dim3 grid{1}, block{1};
  size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks per cluster, along x
  bool cooperative = false;  // the whole grid is resident: grid_sync()
  const char* name = "kernel";
  cudaStream_t stream = nullptr;
};

// Of the current device; zeros where it cannot be asked.
struct DeviceProperties {
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int max_cluster;  // blocks; 1 where there are no clusters
};

#if XLSTM_SIMT

// Of a block on the current device.
inline size_t max_shared_bytes() {
  return simt::options().max_shared_bytes;
}

inline DeviceProperties device_properties() {
  const simt::Options& device = simt::options();
  const int capability = static_cast<int>(device.compute_capability);
  return {capability, static_cast<int>(device.multiprocessors),
          static_cast<int>(capability < 90 ? 1 : device.max_cluster)};
}

// The compute capability that a kernel was compiled for, 90 for 9.0.
template <class... P>
int compiled_for(void (*)(P...)) {
  return device_properties().compute_capability;
}

// Runs to the end before it returns; a fault is thrown as std::runtime_error.
// On either side, more than the device has room for: cudaErrorLaunchOutOfResources, and cuda::refusal() says of what.
template <class... P, class... A>
cudaError_t launch(const Launch& l, void (*kernel)(P...), A&&... arguments) {
  if (l.shared_bytes > max_shared_bytes()) {
    return cuda::refused_shared_memory(l.name, l.shared_bytes, max_shared_bytes());
  }
  const simt::LaunchConfig config{l.grid, l.block, l.shared_bytes, l.cluster, l.cooperative, l.name};
  simt::launch(config, kernel, std::forward<A>(arguments)...);
  return cudaSuccess;
}

#else

// In launch.cu.
size_t max_shared_bytes();
DeviceProperties device_properties();
cudaError_t launch_kernel(const Launch&, const void* kernel, void** arguments);
int kernel_capability(const void* kernel);

// The compute capability that a kernel was compiled for, 90 for 9.0; 0 where it cannot be loaded. Not always that of
// the device: a driver may compile older PTX, in which the bodies of newer kernels are empty.
template <class... P>
int compiled_for(void (*kernel)(P...)) {
  return kernel_capability(reinterpret_cast<const void*>(kernel));
}

template <class... P>
cudaError_t launch(const Launch& l, void (*kernel)(P...), std::type_identity_t<P>... arguments) {
  void* addresses[] = {&arguments..., nullptr};
  return launch_kernel(l, reinterpret_cast<const void*>(kernel), addresses);
}

#endif

}  // namespace xlstm::device
