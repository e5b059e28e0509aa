// recurrent_step: one token of the LSTM or the sLSTM.
#include "ops/library.h"
#include "ops/recurrent.h"

namespace xlstm::ops {
namespace {

struct StepInputs {
  Tensor x, R;
  OptionalTensor b;
  Tensor h, c;
  OptionalTensor n, m;

  explicit StepInputs(Arguments& a)
      : x(a.tensor()), R(a.tensor()), b(a.optional()), h(a.tensor()), c(a.tensor()), n(a.optional()), m(a.optional()) {}
};

RecurrentShape checked_shape(const StepInputs& in, bool slstm, int64_t max_dim) {
  const auto& [x, R, b, h, c, n, m] = in;
  check_given("recurrent", {&x, &R, &h, &c});
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == kGates, "recurrent: x must have shape (B, 4, H, D), got ",
                  shape_string(x));
  const RecurrentShape shape = {x.size(0), 1, x.size(2), x.size(3)};
  check_weights(R, b, shape, max_dim);
  STD_TORCH_CHECK(!slstm || (n && m), "recurrent: the sLSTM state must have n and m");
  STD_TORCH_CHECK(R.scalar_type() == x.scalar_type(), "recurrent: x and R must share a dtype");
  for (const Tensor* t : {&x, &h, &c}) check_float("recurrent", "every input", *t);
  for (const OptionalTensor& t : {b, n, m}) {
    if (t) check_float("recurrent", "every input", *t);
  }
  return shape;
}

// The sLSTM divides by n. Looks at the values where they are on the CPU; on a device nothing is read back.
void check_normaliser(const OptionalTensor& n) {
  if (!n || !n->is_cpu()) return;
  with_compute_type(n->scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for (int64_t k = 0; k < n->numel(); ++k)
      STD_TORCH_CHECK(!(pointer<T>(*n)[k] < 0), "recurrent: n must not be negative");
  });
}

// x (B, 4, H, D), the last dimension contiguous.
template <class T, class Session>
GateView<const T> token_in(Session& session, const Tensor& x) {
  const Tensor& rows = kept(session, x, as(x, session.dtype_for(x)));
  const T* data = static_cast<const T*>(session.in(rows));
  return {data, rows.stride(0), 0, rows.stride(1), rows.stride(2)};
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_step(Arguments& arguments) {
  const StepInputs in(arguments);
  const Cell cell = cell_of(arguments.integer());
  const bool slstm = has_normaliser(cell);
  const RecurrentShape shape = checked_shape(in, slstm, Session::kMaxDim);
  const ScalarType type = compute_type(in.x);
  // A kernel that rounds h does so to the h that a step returns, which comes in the type of the arithmetic.
  const bool rounds = Session::kStepRoundsH && in.h.scalar_type() == type;
  const State state(rounds ? in.h : rounded(in.h, in.x), in.c, in.n, in.m, type, shape, slstm);
  const NewState next(in.x, type, shape, slstm);
  check_normaliser(state.n);
  if (shape.batch == 0) return {next.h, next.c, next.n, next.m};
  Session session("recurrent_step", in.x);
  session.with_types([&](auto data, auto) {
    using T = typename decltype(data)::Type;
    RecurrentStepParams<T> p{};
    p.shape = shape, p.cell = cell, p.type = type_of(in.x);
    p.x = token_in<T>(session, in.x), p.R = weights_in<T>(session, in.R), p.b = bias_in<T>(session, in.b);
    p.state = state.params<T>(session), p.next = next.params<T>(session);
    session.run(p);
  });
  session.finish();
  return {next.h, next.c, next.n, next.m};
}

}  // namespace

XLSTM_OP(recurrent_step, "Tensor x, Tensor R, Tensor? b, Tensor h, Tensor c, Tensor? n, Tensor? m, int cell",
         "(Tensor next_h, Tensor next_c, Tensor next_n, Tensor next_m)")

}  // namespace xlstm::ops
