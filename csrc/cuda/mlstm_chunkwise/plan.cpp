#include "cuda/mlstm_chunkwise/plan.h"

#include <algorithm>

#include "cuda/mlstm_chunkwise/chunks.h"
#include "cuda/mlstm_chunkwise/outputs.h"
#include "cuda/mlstm_chunkwise/segments.h"
#include "cuda/mlstm_chunkwise/states.h"
#include "cuda/mlstm_chunkwise/walk.h"
#include "cuda/mlstm_chunkwise/walk_grads.h"

namespace xlstm::cuda {
namespace {

constexpr int kChunkSizes[] = {64, 128, 256};

// Longer chunks have more pairs of tokens, shorter ones more states (docs/kernels/mlstm.md).
constexpr int64_t kBestChunkSize = 128;

constexpr size_t kReservedSharedBytes = 1024;  // of each block, by CUDA

class Planner {
 public:
  Planner(const MlstmCall& call_, const MlstmDevice& device_, const MlstmRequest& request_)
      : call(call_),
        shape(call_.shape),
        device(device_),
        request(request_),
        chunk_size(mlstm_chunk_size(call_.shape, call_.chunk_size)) {}

  std::optional<MlstmPlan> plan() const {
    const auto& tma = call.tma;
    MlstmPlan plan{};
    plan.chunk_size = chunk_size;
    const bool walks = request.walk.value_or(request.by != TensorCores::mma);
    if (walks && can_walk()) plan.walk = walk_segments();
    if (walks && can_walk_grads()) plan.grad_walks = grad_walks();
    plan.states = states(tma.k && tma.v);
    plan.state_grads = states(tma.q && tma.dh);
    plan.h = output(OutputKind::h, tma.q && tma.k && tma.v);
    const bool backward = tma.q && tma.k && tma.v && tma.dh;
    plan.dq = output(OutputKind::dq, backward);
    plan.dk = output(OutputKind::dk, backward);
    plan.dv = output(OutputKind::dv, tma.q && tma.k && tma.dh);
    return meets_request(plan) ? std::optional(plan) : std::nullopt;
  }

 private:
  const MlstmCall& call;
  const MlstmShape& shape;
  const MlstmDevice& device;
  const MlstmRequest& request;
  const int chunk_size;

  bool meets_request(const MlstmPlan& plan) const {
    if (request.walk == true && !plan.walk) return false;
    const auto other = [&](TensorCores by) { return request.by && by != *request.by; };
    const bool grads = !other(plan.state_grads.by) && !other(plan.dq) && !other(plan.dk) && !other(plan.dv);
    return (plan.walk || !other(plan.h)) && (plan.grad_walks || grads) && !other(plan.states.by);
  }

  // Kernels that multiply by wgmma can run on it. They count tokens in 32 bits, to the end of a chunk that is not full.
  bool has_wgmma() const {
    return device.wgmma && call.product == Product::bf16 && 0 < shape.seqlen && shape.seqlen <= INT32_MAX - 256 &&
           shape.batch > 0 && shape.num_heads > 0;
  }

  // blocks: of a head of a sequence. room: blocks that the device holds.
  int segments(int64_t blocks, int64_t room) const {
    if (request.segments) return std::min(request.segments, kMaxSegments);
    const int64_t walks = shape.num_sequences * shape.num_heads;
    const int64_t sequences = shape.cu_seqlens ? shape.num_sequences : 1;  // of a batch row
    return walks == 0 ? 1 : choose_segments(walks * blocks, room, chunk_slots(shape, chunk_size) / sequences);
  }

  // That the device holds of those with so much shared memory, `most` of them on a multiprocessor.
  int64_t room(int most, size_t shared_bytes) const {
    const size_t fit = (device.shared_bytes + kReservedSharedBytes) / (shared_bytes + kReservedSharedBytes);
    return static_cast<int64_t>(std::min<size_t>(fit, static_cast<size_t>(most))) * device.multiprocessors;
  }

  bool can_walk() const {
    return has_wgmma() && walk_takes(shape) && walk_cost(shape).shared_bytes <= device.shared_bytes && call.tma.q &&
           call.tma.k && call.tma.v && call.tma.h;
  }
  int walk_segments() const {
    const WalkCost cost = walk_cost(shape);
    return segments(cost.blocks, room(cost.resident, cost.shared_bytes));
  }

  bool can_walk_grads() const {
    const auto fits = [this](OutputKind kind) {
      return walk_grads_takes(kind, shape) && walk_grads_cost(kind, shape).shared_bytes <= device.shared_bytes;
    };
    const auto& tma = call.tma;
    return has_wgmma() && fits(OutputKind::dq) && fits(OutputKind::dk) && fits(OutputKind::dv) && tma.q && tma.k &&
           tma.v && tma.dh && tma.dq && tma.dk && tma.dv;
  }
  GradWalks grad_walks() const {
    const WalkCost dq = walk_grads_cost(OutputKind::dq, shape), dk = walk_grads_cost(OutputKind::dk, shape),
                   dv = walk_grads_cost(OutputKind::dv, shape);
    const WalkCost& fewer = dk.blocks < dv.blocks ? dk : dv;
    return {segments(dq.blocks, room(dq.resident, dq.shared_bytes)),
            segments(fewer.blocks, room(fewer.resident, fewer.shared_bytes))};
  }

  // readable: by TMA. With 64 rows of C one of two warpgroups would have nothing to do.
  StatesPlan states(bool readable) const {
    const bool fits = states_cost(call.product, TensorCores::wgmma, shape).shared_bytes <= device.shared_bytes;
    const bool can = has_wgmma() && readable && fits;
    const bool wanted = request.by ? *request.by == TensorCores::wgmma : shape.head_dim_qk > kStatesRows;
    const TensorCores by = can && wanted ? TensorCores::wgmma : TensorCores::mma;
    const StatesCost cost = states_cost(call.product, by, shape);
    return {by, segments(cost.blocks, room(cost.resident, cost.shared_bytes))};
  }

  // With chunks of 64 tokens half of the warpgroups would have no rows.
  TensorCores output(OutputKind kind, bool readable) const {
    const bool can = has_wgmma() && readable && outputs_wgmma_takes(kind, shape, device.shared_bytes);
    const bool wanted = request.by ? *request.by == TensorCores::wgmma : chunk_size > kChunkSizes[0];
    return can && wanted ? TensorCores::wgmma : TensorCores::mma;
  }
};

}  // namespace

int mlstm_chunk_size(const MlstmShape& shape, int64_t asked) {
  if (asked == 0) asked = kBestChunkSize;
  int best = kChunkSizes[0];
  for (int size : kChunkSizes) {
    const bool needed = size / 2 < shape.seqlen;
    if (needed && size <= asked) best = size;
  }
  return best;
}

std::optional<MlstmPlan> mlstm_plan(const MlstmCall& call, const MlstmDevice& device, const MlstmRequest& request) {
  return Planner(call, device, request).plan();
}

const char* name_of(TensorCores by) {
  return by == TensorCores::mma ? "mma" : "wgmma";
}

}  // namespace xlstm::cuda
