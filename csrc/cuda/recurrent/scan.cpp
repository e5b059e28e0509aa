#include "cuda/recurrent/scan.h"

#include <mutex>
#include <utility>

#include "cuda/recurrent/device.h"
#include "cuda/recurrent/resident.h"
#include "cuda/recurrent/stepwise.h"
#include "cuda/recurrent/weight_grad.h"

namespace xlstm::cuda {
namespace {

// A request of one thread holds for all: backward passes run on threads of their own.
std::mutex mutex;
PlanRequest requested;

PlanRequest current_request() {
  const std::lock_guard lock(mutex);
  return requested;
}

// Launches the first plan that the device has room for. launch(plan) asks for memory and launches.
template <class Launch>
cudaError_t run_plans(const RecurrentShape& shape, Type type, Direction direction, Launch launch) {
  cudaError_t error = cudaErrorInvalidConfiguration;  // where what was asked for does not fit
  const auto plans = recurrent_plans(shape, type, recurrent_device(), direction, current_request());
  for (const RecurrentPlan& plan : plans) {
    error = launch(plan);
    if (error != cudaErrorLaunchOutOfResources) break;
  }
  return error;
}

}  // namespace

PlanRequest request_plans(const PlanRequest& request) {
  const std::lock_guard lock(mutex);
  return std::exchange(requested, request);
}

cudaError_t run(const RecurrentForwardParams<void>& p, const Allocator& memory, cudaStream_t stream) {
  if (p.shape.batch == 0) return cudaSuccess;
  return run_plans(p.shape, p.type, Direction::forward, [&](const RecurrentPlan& plan) {
    if (plan.variant == Variant::launch) return stepwise_fwd(p, memory.bytes(stepwise_fwd_workspace(p)), stream);
    return resident_fwd(p, plan, memory.bytes(resident_fwd_workspace(p, plan)), stream);
  });
}

cudaError_t run(const RecurrentBackwardParams<void>& p, const Allocator& memory, cudaStream_t stream) {
  if (p.shape.batch > 0) {
    const cudaError_t error = run_plans(p.shape, p.type, Direction::backward, [&](const RecurrentPlan& plan) {
      if (plan.variant == Variant::launch) return stepwise_bwd(p, memory.bytes(stepwise_bwd_workspace(p)), stream);
      return resident_bwd(p, plan, memory.bytes(resident_bwd_workspace(p, plan)), stream);
    });
    if (error != cudaSuccess) return error;
  }
  const RecurrentWeightGradParams weights = {p.shape,           p.type,    p.allow_tf32, p.dx, p.h,
                                             p.initial_state.h, p.lengths, p.reset,      p.dR, p.db};
  return recurrent_weight_grad(weights, memory.bytes(recurrent_weight_grad_workspace(weights)), stream);
}

}  // namespace xlstm::cuda
