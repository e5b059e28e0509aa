#pragma once
// A CUDA runtime without a device: it does what a test tells it, and keeps the rules that launches depend on.
#include <cuda_runtime_api.h>

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace fake {

// Of a kernel on a device.
struct Kernel {
  bool loaded = false;  // at its first use, as CUDA does it
  size_t shared_limit = 48 << 10;
  bool large_clusters = false;
};

struct Runtime {
  int major = 9, minor = 0, multiprocessors = 132, max_shared_bytes = 232448;
  size_t static_shared_bytes = 0;     // of every kernel
  int ptx_version = 90;               // likewise
  int clusters = 8, blocks_each = 1;  // room for so many clusters, and blocks on a multiprocessor
  bool allows_large_clusters = true;
  std::map<std::string, cudaError_t> errors;               // what a function returns, by its name
  std::map<std::string, std::function<void()>> meanwhile;  // what another thread does before it, once

  bool capturing = false;        // a stream of any thread: what may allocate is forbidden, and ends the capture
  bool capture_is_over = false;  // by such a call
  cudaError_t last = cudaSuccess;
  std::map<std::string, int> calls;  // by function
  std::map<std::pair<const void*, int>, Kernel> kernels;
  std::recursive_mutex mutex;
};

Runtime& runtime();                      // one test is a process
cudaStreamCaptureMode mode_of_thread();  // towards captures

}  // namespace fake
