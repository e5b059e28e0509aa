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
constexpr int kMaxCluster = 16;                   // with that; whether there is room is asked at the launch

// Of a block on the current device; 0 where it cannot be asked.
inline size_t max_shared_bytes() {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  return static_cast<size_t>(most);
}

inline DeviceProperties device_properties() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return {};
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int capability = 10 * major + minor;
  return {capability, multiprocessors, capability < 90 ? 1 : kMaxCluster};
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

// Whether all blocks of the grid can be resident at once.
inline bool has_room(const Launch& l, const void* kernel) {
  const int threads = static_cast<int>(l.block.x * l.block.y * l.block.z);
  int per_multiprocessor = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, l.shared_bytes);
  if (error != cudaSuccess) cudaGetLastError();
  const int64_t blocks = int64_t{l.grid.x} * l.grid.y * l.grid.z;
  return error == cudaSuccess && blocks <= int64_t{per_multiprocessor} * device_properties().multiprocessors;
}

// The error of a launch. The runtime forgets it, so that a later query does not find it. Several errors mean that the
// device has no room, or nothing of that kind.
inline cudaError_t taken(cudaError_t error) {
  if (error == cudaSuccess) return error;
  cudaGetLastError();
  const bool no_room = error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorNotSupported ||
                       error == cudaErrorInvalidClusterSize;
  return no_room ? cudaErrorLaunchOutOfResources : error;
}

template <class... P, class... A>
cudaError_t launch(const Launch& l, void (*kernel)(P...), A&&... arguments) {
  const cudaError_t error = allow_resources(l, reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) return taken(error);
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
  // Blocks that wait for each other must all find room. Asked before: a launch that fails would break a capture.
  int clusters = 0;
  if (l.cluster > 1 && (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess || clusters == 0)) {
    cudaGetLastError();  // or the next call would report it
    return cudaErrorLaunchOutOfResources;
  }
  if (l.cooperative && !has_room(l, reinterpret_cast<const void*>(kernel))) return cudaErrorLaunchOutOfResources;
  return taken(cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(arguments))...));
}

#endif

}  // namespace xlstm::device
