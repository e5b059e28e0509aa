// Sessions on the host executor: tensors are on the CPU, kernels see copies of them between guard pages.
#include <cstring>

#include "ops/backends/architecture.h"
#include "ops/backends/device.h"
#include "simt/executor.h"

namespace xlstm::ops {
namespace {

constexpr size_t kVectorBytes = 16;  // the widest access of a kernel: copies are aligned to it where the tensor was

// Bytes from the first element to the end of the last one.
size_t extent(const Tensor& x) {
  int64_t last = 0;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) == 0) return 0;
    last += (x.size(d) - 1) * x.stride(d);
  }
  return static_cast<size_t>(last + 1) * x.element_size();
}

}  // namespace

struct DeviceSession::State {
  struct Result {
    void* tensor;
    const uint8_t* copy;
    size_t bytes;
    std::vector<uint8_t> before;  // of what is read too; empty where all is written

    // Only what the kernel changed: another tensor may lie between the rows of this one.
    void write_back() const {
      auto* to = static_cast<uint8_t*>(tensor);
      if (before.empty()) {
        if (bytes) std::memcpy(to, copy, bytes);
        return;
      }
      for (size_t i = 0; i < bytes; ++i) {
        if (copy[i] != before[i]) to[i] = copy[i];
      }
    }
  };

  const char* op;
  std::unique_lock<std::recursive_mutex> lock = simt::hold();
  std::vector<Result> results;

  uint8_t* stage(const void* tensor, size_t bytes) {
    const size_t lead = reinterpret_cast<uintptr_t>(tensor) % kVectorBytes;
    return static_cast<uint8_t*>(simt::allocate(lead + bytes)) + lead;
  }
  uint8_t* copy(const void* tensor, size_t bytes) {
    uint8_t* memory = stage(tensor, bytes);
    if (bytes) std::memcpy(memory, tensor, bytes);
    simt::mark_written(memory, bytes);
    return memory;
  }
};

DeviceSession::DeviceSession(const char* op, const Tensor& like)
    : arithmetic_(compute_type(like)), state_(new State{op}) {
  const std::string problem =
      unsupported_device(static_cast<int>(simt::options().compute_capability), {"80", "90a", "100", "120"});
  if (!problem.empty()) refuse(problem);
}

DeviceSession::~DeviceSession() {
  simt::release_all();
}

const void* DeviceSession::in(const Tensor& x) {
  return state_->copy(x.const_data_ptr(), extent(x));
}

void* DeviceSession::out(const Tensor& x) {
  void* tensor = x.mutable_data_ptr();
  const size_t bytes = extent(x);
  uint8_t* memory = state_->stage(tensor, bytes);
  state_->results.push_back({tensor, memory, bytes, {}});
  return memory;
}

void* DeviceSession::inout(const Tensor& x) {
  void* tensor = x.mutable_data_ptr();
  const size_t bytes = extent(x);
  uint8_t* memory = state_->copy(tensor, bytes);
  state_->results.push_back({tensor, memory, bytes, {memory, memory + bytes}});
  return memory;
}

void* DeviceSession::workspace(size_t bytes) {
  return simt::allocate(bytes);
}

cudaStream_t DeviceSession::stream() const {
  return nullptr;
}

std::string DeviceSession::text(cudaError_t error) const {
  return "CUDA error " + std::to_string(static_cast<int>(error));
}

const char* DeviceSession::op() const {
  return state_->op;
}

void DeviceSession::finish() {
  for (const State::Result& result : state_->results) result.write_back();
}

}  // namespace xlstm::ops
