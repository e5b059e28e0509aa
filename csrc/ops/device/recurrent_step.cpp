// recurrent_step on CUDA kernels. Nothing is read back: on a device a negative n is not an error.
#include "cuda/recurrent/step.h"
#include "ops/device/session.h"
#include "ops/library.h"
#include "ops/recurrent.h"

namespace xlstm::ops {
namespace {

// The kernel rounds h itself where it comes in the type of the arithmetic, as a step returns it.
OptionalTensor rounded_here(const Tensor& h, const Tensor& x, ScalarType type) {
  return h.scalar_type() == type ? OptionalTensor(h) : rounded(h, x);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_step(const Tensor& x, const Tensor& R, OptionalTensor b,
                                                          const Tensor& h, const Tensor& c, OptionalTensor n,
                                                          OptionalTensor m, int64_t cell_number) {
  NoGrad guard;
  const RecurrentStepCall call(x, R, b, h, c, n, m, cell_number);
  check_sizes("recurrent", kMaxDeviceDim, {{call.shape.batch}});
  const Tensor x_c = as(x, x.scalar_type()), R_c = as_weights(R, R.scalar_type());
  const OptionalTensor b_c = b ? as_contiguous(b, b->scalar_type()) : b;
  const State state(rounded_here(h, x, call.type), c, n, m, call.type, call.shape, call.slstm);
  const NewState next(x, call.type, call.shape, call.slstm);
  if (x.is_cpu()) check_normaliser(state.n);
  Session session("recurrent_step", x);
  const cuda::RecurrentStepArguments arguments = {
      call.shape,
      call.cell,
      type_of(x),
      token_view(session.in(x_c), x_c),
      weight_view(session.in(R_c), R_c),
      {session.in(b_c), b_c ? type_of(*b_c) : cuda::Type::f32},
      {session.in(state.h), session.in(state.c), session.in(state.n), session.in(state.m)},
      {session.out(next.h), session.out(next.c), call.slstm ? session.out(next.n) : nullptr,
       call.slstm ? session.out(next.m) : nullptr}};
  session.check(cuda::recurrent_step(arguments, session.stream()));
  session.finish();
  return {next.h, next.c, next.n, next.m};
}

}  // namespace

XLSTM_DEVICE_LIBRARY_IMPL(m) {
  m.impl("recurrent_step", TORCH_BOX(&recurrent_step));
}

}  // namespace xlstm::ops
