#include "fake_runtime.h"

namespace fake {
namespace {

thread_local int current_device = 0;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

cudaError_t done(cudaError_t error) {
  if (error != cudaSuccess) runtime().last = error;
  return error;
}

// Before a function does anything: the error that a test wants of it.
cudaError_t enter(const std::string& function) {
  std::function<void()> meanwhile;
  {
    const std::lock_guard lock(runtime().mutex);
    ++runtime().calls[function];
    std::swap(meanwhile, runtime().meanwhile[function]);
  }
  if (meanwhile) meanwhile();
  const std::lock_guard lock(runtime().mutex);
  const auto found = runtime().errors.find(function);
  return done(found == runtime().errors.end() ? cudaSuccess : found->second);
}

Kernel& kernel_of(const void* function) {
  return runtime().kernels[{function, current_device}];
}

// Every use of a kernel loads it.
cudaError_t enter(const std::string& function, const void* kernel) {
  if (const cudaError_t error = enter(function)) return error;
  const std::lock_guard lock(runtime().mutex);
  if (kernel_of(kernel).loaded) return cudaSuccess;
  if (runtime().capturing && capture_mode != cudaStreamCaptureModeRelaxed) {
    runtime().capture_is_over = true;
    return done(cudaErrorStreamCaptureUnsupported);
  }
  kernel_of(kernel).loaded = true;
  return cudaSuccess;
}

unsigned cluster_of(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) return config.attrs[i].val.clusterDim.x;
  }
  return 1;
}

cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  if (config.dynamicSmemBytes > kernel_of(kernel).shared_limit) return cudaErrorInvalidValue;
  return cluster_of(config) > 8 && !kernel_of(kernel).large_clusters ? cudaErrorInvalidClusterSize : cudaSuccess;
}

}  // namespace

Runtime& runtime() {
  static Runtime value;
  return value;
}

cudaStreamCaptureMode mode_of_thread() {
  return capture_mode;
}

}  // namespace fake

using namespace fake;

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return enter("cudaGetDevice");
}

cudaError_t cudaSetDevice(int device) {
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (const cudaError_t error = enter("cudaDeviceGetAttribute")) return error;
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? runtime().max_shared_bytes
           : attribute == cudaDevAttrComputeCapabilityMajor     ? runtime().major
           : attribute == cudaDevAttrComputeCapabilityMinor     ? runtime().minor
           : attribute == cudaDevAttrMultiProcessorCount        ? runtime().multiprocessors
                                                                : -1;
  return done(*value < 0 ? cudaErrorInvalidValue : cudaSuccess);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (const cudaError_t error = enter("cudaFuncGetAttributes", kernel)) return error;
  attributes->sharedSizeBytes = runtime().static_shared_bytes;
  attributes->ptxVersion = runtime().ptx_version;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const bool shared = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (const cudaError_t error = enter(shared ? "set shared bytes" : "set large clusters", kernel)) return error;
  const std::lock_guard lock(runtime().mutex);
  if (!shared) {
    if (!runtime().allows_large_clusters) return done(cudaErrorInvalidValue);
    kernel_of(kernel).large_clusters = value != 0;
    return cudaSuccess;
  }
  const auto most = runtime().max_shared_bytes - static_cast<int>(runtime().static_shared_bytes);
  if (value < 0 || value > most) return done(cudaErrorInvalidValue);
  kernel_of(kernel).shared_limit = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  if (const cudaError_t error = enter("cudaOccupancyMaxActiveClusters", kernel)) return error;
  const std::lock_guard lock(runtime().mutex);
  *clusters = runtime().clusters;
  return done(check(*config, kernel));
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int, size_t) {
  if (const cudaError_t error = enter("cudaOccupancyMaxActiveBlocksPerMultiprocessor", kernel)) return error;
  *blocks = runtime().blocks_each;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  if (const cudaError_t error = enter("cudaLaunchKernelExC", kernel)) return error;
  const std::lock_guard lock(runtime().mutex);
  if (const cudaError_t error = done(check(*config, kernel))) return error;
  // Every kernel of the tests takes these two.
  reinterpret_cast<void (*)(int*, int)>(const_cast<void*>(kernel))(*static_cast<int**>(arguments[0]),
                                                                   *static_cast<int*>(arguments[1]));
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const std::lock_guard lock(runtime().mutex);
  return std::exchange(runtime().last, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInsufficientDriver ? "the driver is too old"
         : error == cudaErrorNotSupported     ? "not supported here"
                                              : "some error";
}

}  // extern "C"
