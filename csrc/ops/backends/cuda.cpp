// Sessions on a device: the tensors' own memory, torch's current stream.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <type_traits>

#include "ops/backends/cuda_device.h"
#include "ops/backends/device.h"

namespace xlstm::ops {
namespace {

// As cuda_device.cpp declares torch's function.
static_assert(std::is_same_v<AOTITorchError, int32_t> && AOTI_TORCH_SUCCESS == 0);

const std::vector<std::string>& built_archs() {
  static const std::vector<std::string> archs = [] {
    std::vector<std::string> list(1);
    for (char c : std::string(XLSTM_CUDA_ARCHS)) {
      if (c == ',') list.emplace_back();
      if (c != ',') list.back() += c;
    }
    return list;
  }();
  return archs;
}

}  // namespace

struct DeviceSession::State {
  const char* op;
  int device;
  torch::stable::accelerator::DeviceGuard guard;
  const Tensor& like;
  cudaStream_t stream = nullptr;

  State(const char* op_, const Tensor& like_) : op(op_), device(like_.get_device_index()), guard(device), like(like_) {}

  void check_device(const Tensor& x) const {
    if (x.is_cuda() && x.get_device_index() == device) return;
    throw std::runtime_error(std::string(op) + ": all tensors must be on cuda:" + std::to_string(device));
  }
};

DeviceSession::DeviceSession(const char* op, const Tensor& like)
    : arithmetic_(compute_type(like)), state_(new State(op, like)) {
  void* stream = nullptr;
  std::string problem = problem_of_device(state_->device, built_archs());
  if (problem.empty()) problem = find_stream(state_->device, &stream);
  if (!problem.empty()) refuse(problem);
  state_->stream = static_cast<cudaStream_t>(stream);
}

DeviceSession::~DeviceSession() = default;

const void* DeviceSession::in(const Tensor& x) {
  state_->check_device(x);
  return x.const_data_ptr();
}

void* DeviceSession::out(const Tensor& x) {
  state_->check_device(x);
  return x.mutable_data_ptr();
}

void* DeviceSession::inout(const Tensor& x) {
  return out(x);
}

void* DeviceSession::workspace(size_t bytes) {
  return keep(empty(state_->like, {static_cast<int64_t>(bytes)}, ScalarType::Byte)).mutable_data_ptr();
}

cudaStream_t DeviceSession::stream() const {
  return state_->stream;
}

std::string DeviceSession::text(cudaError_t error) const {
  return cudaGetErrorString(error);
}

const char* DeviceSession::op() const {
  return state_->op;
}

void DeviceSession::finish() {}

}  // namespace xlstm::ops
