// Launches through the CUDA runtime. Whatever a device may refuse is asked before the launch: one that fails would end
// the capture of a CUDA graph.
#include <map>
#include <mutex>
#include <string>

#include "cuda/device/launch.h"

namespace xlstm::device {
namespace {

constexpr size_t kDefaultSharedBytes = 48 << 10;  // a kernel must opt in to more
constexpr int kMaxCluster = 16;                   // with an opt-in; whether there is room is asked at the launch
constexpr int kFirstWithClusters = 90;            // compute capability

// The runtime forgets an error that this file deals with, so that a later query does not find it.
cudaError_t taken(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

cudaError_t attribute(int& value, cudaDeviceAttr which, int device) {
  return taken(cudaDeviceGetAttribute(&value, which, device));
}

cudaError_t current_device(int& device) {
  return taken(cudaGetDevice(&device));
}

cudaError_t shared_bytes_of(int device, size_t& most) {
  int bytes = 0;
  const cudaError_t error = attribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  most = static_cast<size_t>(bytes);
  return error;
}

// ---- once for each kernel and device ----

// The first use of a kernel loads it, which may allocate memory: not allowed to a thread that captures a CUDA graph,
// nor to others meanwhile, unless they say that they know.
class AllowedInCapture {
 public:
  AllowedInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~AllowedInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  AllowedInCapture(const AllowedInCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// What a kernel was compiled from, as 90 for 9.0: a driver may compile older PTX for a newer device.
struct Loaded {
  int ptx_version = 0;
};

// Loads a kernel and lets it use whatever the device has. Never less, although this launch may need less: the limits
// belong to the kernel, and another thread may be about to launch it with more.
cudaError_t load(const void* kernel, int device, Loaded& loaded) {
  const AllowedInCapture allowed;
  cudaFuncAttributes attributes{};
  if (const cudaError_t error = taken(cudaFuncGetAttributes(&attributes, kernel))) return error;
  loaded.ptx_version = attributes.ptxVersion;
  size_t most = 0;
  if (const cudaError_t error = shared_bytes_of(device, most)) return error;
  if (most > kDefaultSharedBytes) {
    const int bytes = static_cast<int>(most - attributes.sharedSizeBytes);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (taken(error) != cudaSuccess) return error;
  }
  // Larger clusters than the 8 blocks that every device takes. Where that is refused, room for one will be refused too.
  taken(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  return cudaSuccess;
}

// Two threads may both find a kernel missing: what they do twice is the same. The map lives as long as the process,
// whose threads may launch until its end.
cudaError_t prepare(const void* kernel, int device, Loaded& loaded) {
  static std::mutex mutex;
  static auto& prepared = *new std::map<std::pair<const void*, int>, Loaded>;
  {
    const std::lock_guard lock(mutex);
    if (const auto found = prepared.find({kernel, device}); found != prepared.end()) {
      loaded = found->second;
      return cudaSuccess;
    }
  }
  const cudaError_t error = load(kernel, device, loaded);
  if (error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  prepared.insert({{kernel, device}, loaded});
  return cudaSuccess;
}

// ---- room ----

std::string named(const Launch& l) {
  return std::string("kernel '") + l.name + "'";
}

std::string text(cudaError_t error) {
  return cudaGetErrorString(error);
}

// Blocks of a cluster wait for each other: all must find room. Kernels for clusters are empty where they are compiled
// for a capability without them.
cudaError_t require_clusters(const Launch& l, const void* kernel, const Loaded& loaded,
                             const cudaLaunchConfig_t& config) {
  if (loaded.ptx_version < kFirstWithClusters) {
    return cuda::refused(named(l) + " runs in clusters of blocks, and was compiled for compute capability " +
                         std::to_string(loaded.ptx_version / 10) + "." + std::to_string(loaded.ptx_version % 10) +
                         ", which has none");
  }
  int clusters = 0;
  const cudaError_t error = taken(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  if (error == cudaSuccess && clusters > 0) return cudaSuccess;
  const std::string why = error == cudaSuccess ? "" : " (" + text(error) + ")";
  return cuda::refused(named(l) + " runs in clusters of " + std::to_string(l.cluster) + " blocks with " +
                       std::to_string(l.shared_bytes) + " bytes of shared memory each, for which this GPU has no room" +
                       why);
}

// So must all blocks of a cooperative grid.
cudaError_t require_whole_grid(const Launch& l, const void* kernel, int device) {
  const int threads = static_cast<int>(l.block.x * l.block.y * l.block.z);
  int each = 0, multiprocessors = 0;
  cudaError_t error = attribute(multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = taken(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, l.shared_bytes));
  }
  const int64_t blocks = int64_t{l.grid.x} * l.grid.y * l.grid.z, room = int64_t{each} * multiprocessors;
  if (error == cudaSuccess && blocks <= room) return cudaSuccess;
  const std::string why = error == cudaSuccess ? std::to_string(room) : "none (" + text(error) + ")";
  return cuda::refused(named(l) + " runs in " + std::to_string(blocks) + " blocks at once, this GPU has room for " +
                       why);
}

// Errors of a launch that mean that the device has no room, or nothing of that kind.
bool is_refusal(cudaError_t error) {
  return error == cudaErrorLaunchOutOfResources || error == cudaErrorCooperativeLaunchTooLarge ||
         error == cudaErrorNotSupported || error == cudaErrorInvalidClusterSize;
}

}  // namespace

size_t max_shared_bytes() {
  int device = 0;
  size_t most = 0;
  return current_device(device) == cudaSuccess && shared_bytes_of(device, most) == cudaSuccess ? most : 0;
}

DeviceProperties device_properties() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0;
  const bool known = current_device(device) == cudaSuccess &&
                     attribute(major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     attribute(minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
                     attribute(multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  if (!known) return {};
  const int capability = 10 * major + minor;
  return {capability, multiprocessors, capability < kFirstWithClusters ? 1 : kMaxCluster};
}

int kernel_capability(const void* kernel) {
  int device = 0;
  Loaded loaded;
  const bool known = current_device(device) == cudaSuccess && prepare(kernel, device, loaded) == cudaSuccess;
  return known ? loaded.ptx_version : 0;
}

cudaError_t launch_kernel(const Launch& l, const void* kernel, void** arguments) {
  int device = 0;
  size_t most = 0;
  if (const cudaError_t error = current_device(device)) return error;
  if (const cudaError_t error = shared_bytes_of(device, most)) return error;
  if (l.shared_bytes > most) return cuda::refused_shared_memory(l.name, l.shared_bytes, most);
  Loaded loaded;
  if (const cudaError_t error = prepare(kernel, device, loaded)) return error;

  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid;
  config.blockDim = l.block;
  config.dynamicSmemBytes = l.shared_bytes;
  config.stream = l.stream;
  config.attrs = attributes;
  if (l.cluster > 1) {
    cudaLaunchAttribute& of_clusters = attributes[config.numAttrs++];
    of_clusters.id = cudaLaunchAttributeClusterDimension;
    of_clusters.val.clusterDim.x = l.cluster;
    of_clusters.val.clusterDim.y = of_clusters.val.clusterDim.z = 1;
    if (const cudaError_t error = require_clusters(l, kernel, loaded, config)) return error;
  }
  if (l.cooperative) {
    cudaLaunchAttribute& of_grid = attributes[config.numAttrs++];
    of_grid.id = cudaLaunchAttributeCooperative;
    of_grid.val.cooperative = 1;
    if (const cudaError_t error = require_whole_grid(l, kernel, device)) return error;
  }
  const cudaError_t error = taken(cudaLaunchKernelExC(&config, kernel, arguments));
  return is_refusal(error) ? cuda::refused(named(l) + ": " + text(error)) : error;
}

}  // namespace xlstm::device
