// Which instance of resident_fwd_kernel.h runs a plan.
#include "cuda/recurrent/resident_fwd_instances.h"

namespace xlstm::cuda {
namespace {

// Width of the buffer in which blocks of a grid pass h on, in rows of whole 16 bytes. It is the output if its rows fit.
int64_t padded_width(const RecurrentForwardParams<void>& p) {
  const int64_t packet = 16 / bytes_of(p.type);
  return (p.shape.head_dim + packet - 1) / packet * packet;
}

bool in_output(const RecurrentForwardParams<void>& p) {
  return padded_width(p) == p.shape.head_dim && reinterpret_cast<uintptr_t>(p.h) % 16 == 0;
}

}  // namespace

size_t resident_fwd_workspace(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan) {
  if (plan.variant != Variant::grid || in_output(p)) return 0;
  const int64_t rows = p.shape.batch * p.shape.seqlen * p.shape.num_heads;
  return static_cast<size_t>(rows * padded_width(p) * bytes_of(p.type));
}

cudaError_t resident_fwd(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* workspace,
                         cudaStream_t stream) {
  void* const padded_h = in_output(p) ? p.h : workspace;
  const int64_t width = padded_width(p);
  switch (p.type) {
    case Type::bf16:
      return resident_fwd_bf16(p, plan, padded_h, width, stream);
    case Type::f16:
      return resident_fwd_f16(p, plan, padded_h, width, stream);
    case Type::f32:
      return p.allow_tf32 ? resident_fwd_tf32(p, plan, padded_h, width, stream)
                          : resident_fwd_tf32x3(p, plan, padded_h, width, stream);
    case Type::f64:
      return resident_fwd_f64(p, plan, padded_h, width, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace xlstm::cuda
