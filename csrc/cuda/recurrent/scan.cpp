#include "cuda/recurrent/scan.h"

#include <atomic>

#include "cuda/recurrent/device.h"
#include "cuda/recurrent/resident.h"
#include "cuda/recurrent/stepwise.h"
#include "cuda/recurrent/weight_grad.h"

namespace xlstm::cuda {
namespace {

constexpr int kAny = -1;
std::atomic<int> only{kAny};  // a Variant

// Launches the first plan that the device has room for. launch(plan) asks for memory and launches.
template <class Launch>
cudaError_t run_plans(const RecurrentShape& shape, Type type, Launch launch) {
  cudaError_t error = cudaErrorInvalidConfiguration;  // of a variant that was asked for and does not fit
  for (const RecurrentPlan& plan : recurrent_plans(shape, type, recurrent_device())) {
    if (only != kAny && static_cast<int>(plan.variant) != only) continue;
    error = launch(plan);
    if (error != cudaErrorLaunchOutOfResources) break;
  }
  return error;
}

}  // namespace

std::optional<Variant> only_variant(std::optional<Variant> variant) {
  const int before = only.exchange(variant ? static_cast<int>(*variant) : kAny);
  return before == kAny ? std::nullopt : std::optional(static_cast<Variant>(before));
}

cudaError_t run(const RecurrentForwardParams<void>& p, const Allocator& memory, cudaStream_t stream) {
  if (p.shape.batch == 0) return cudaSuccess;
  return run_plans(p.shape, p.type, [&](const RecurrentPlan& plan) {
    if (plan.variant == Variant::launch) return stepwise_fwd(p, memory.bytes(stepwise_fwd_workspace(p)), stream);
    return resident_fwd(p, plan, memory.bytes(resident_fwd_workspace(p, plan)), stream);
  });
}

cudaError_t run(const RecurrentBackwardParams<void>& p, const Allocator& memory, cudaStream_t stream) {
  if (p.shape.batch > 0) {
    const cudaError_t error = run_plans(p.shape, p.type, [&](const RecurrentPlan& plan) {
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
