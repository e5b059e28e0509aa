// Which instance of resident_fwd_kernel.h runs a plan.
#include "cuda/recurrent/resident_fwd_instances.h"

namespace xlstm::cuda {
namespace {

int64_t element_size(Type type) {
  return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2;
}

// Width of the buffer in which blocks of a grid pass h on, in rows of whole 16 bytes. It is the output if its rows fit.
int64_t slot_width(const RecurrentFwdArguments& p) {
  const int64_t packet = 16 / element_size(p.type);
  return (p.shape.head_dim + packet - 1) / packet * packet;
}

bool in_output(const RecurrentFwdArguments& p) {
  return slot_width(p) == p.shape.head_dim && reinterpret_cast<uintptr_t>(p.h) % 16 == 0;
}

}  // namespace

size_t resident_fwd_workspace(const RecurrentFwdArguments& p, const RecurrentPlan& plan) {
  if (plan.variant != Variant::grid || in_output(p)) return 0;
  const int64_t rows = p.shape.batch * p.shape.seqlen * p.shape.num_heads;
  return static_cast<size_t>(rows * slot_width(p) * element_size(p.type));
}

cudaError_t resident_fwd(const RecurrentFwdArguments& p, const RecurrentPlan& plan, void* workspace,
                         cudaStream_t stream) {
  void* const slots = in_output(p) ? p.h : workspace;
  const int64_t width = slot_width(p);
  switch (p.type) {
    case Type::bf16:
      return resident_fwd_bf16(p, plan, slots, width, stream);
    case Type::f16:
      return resident_fwd_f16(p, plan, slots, width, stream);
    case Type::f32:
      return p.allow_tf32 ? resident_fwd_tf32(p, plan, slots, width, stream)
                          : resident_fwd_tf32x3(p, plan, slots, width, stream);
    default:
      return resident_fwd_f64(p, plan, slots, width, stream);
  }
}

}  // namespace xlstm::cuda
