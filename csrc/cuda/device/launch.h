#pragma once
// Launch of a kernel in place of <<<>>>: the same call on a device and on the host executor.
#include <type_traits>
#include <utility>

#include "cuda/device/platform.h"

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

#if XLSTM_SIMT

// Of a block on the current device.
inline size_t max_shared_bytes() {
  return simt::options().max_shared_bytes;
}

// Runs to the end before it returns; a fault is thrown as std::runtime_error.
// On either side, more shared memory than the device has: cudaErrorLaunchOutOfResources.
template <class... P, class... A>
cudaError_t launch(const Launch& l, void (*kernel)(P...), A&&... arguments) {
  if (l.shared_bytes > max_shared_bytes()) return cudaErrorLaunchOutOfResources;
  const simt::LaunchConfig config{l.grid, l.block, l.shared_bytes, l.cluster, l.cooperative, l.name};
  simt::launch(config, kernel, std::forward<A>(arguments)...);
  return cudaSuccess;
}

#else

constexpr size_t kDefaultSharedBytes = 48 << 10;  // a kernel must opt in to more
constexpr unsigned kPortableCluster = 8;          // a kernel must opt in to more

// Of a block on the current device; 0 where it cannot be asked.
inline size_t max_shared_bytes() {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  return static_cast<size_t>(most);
}

inline cudaError_t allow_resources(const Launch& l, const void* kernel) {
  if (l.shared_bytes > kDefaultSharedBytes) {
    if (l.shared_bytes > max_shared_bytes()) return cudaErrorLaunchOutOfResources;
    const int bytes = static_cast<int>(l.shared_bytes);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
  }
  if (l.cluster > kPortableCluster) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t launch(const Launch& l, void (*kernel)(P...), A&&... arguments) {
  const cudaError_t error = allow_resources(l, reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid;
  config.blockDim = l.block;
  config.dynamicSmemBytes = l.shared_bytes;
  config.stream = l.stream;
  config.attrs = attributes;
  if (l.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = l.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (l.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(arguments))...);
}

#endif

}  // namespace xlstm::device
