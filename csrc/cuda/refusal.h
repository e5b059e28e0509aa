#pragma once
// Why a launcher returned cudaErrorLaunchOutOfResources. The code alone does not say what the device lacks.
#include <driver_types.h>

#include <string>
#include <utility>

namespace xlstm::cuda {

// Of the last such return in this thread: a sentence without its end.
inline std::string& refusal() {
  static thread_local std::string reason;
  return reason;
}

// What a launcher returns then. The caller may try another plan.
inline cudaError_t refused(std::string reason) {
  refusal() = std::move(reason);
  return cudaErrorLaunchOutOfResources;
}

inline cudaError_t refused_shared_memory(const char* kernel, size_t needed, size_t most) {
  return refused(std::string("kernel '") + kernel + "' needs " + std::to_string(needed) +
                 " bytes of shared memory for a block, this GPU has " + std::to_string(most));
}

}  // namespace xlstm::cuda
