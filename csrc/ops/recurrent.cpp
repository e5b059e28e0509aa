// recurrent_fwd and recurrent_bwd: LSTM and sLSTM over whole sequences.
#include "ops/recurrent.h"

#include "ops/library.h"

namespace xlstm::ops {
namespace {

// The options as a schema lists them, and as they come: RecurrentOptions in xlstm_cuda/functional/_recurrent.py.
#define XLSTM_RECURRENT_OPTIONS "int cell, int reversed_heads, bool allow_tf32"

struct Options {
  Cell cell;
  int64_t reversed_heads;
  bool allow_tf32;

  explicit Options(Arguments& a) : cell(cell_of(a.integer())), reversed_heads(a.integer()), allow_tf32(a.flag()) {}
};

struct InitialState {
  OptionalTensor h, c, n, m;

  explicit InitialState(Arguments& a) : h(a.optional()), c(a.optional()), n(a.optional()), m(a.optional()) {}

  // like: of the dtype of x.
  State in(const Tensor& like, const RecurrentShape& shape, bool slstm) const {
    return {rounded(h, like), c, n, m, compute_type(like), shape, slstm};
  }
};

// x (B, S, 4, H, D), the last dimension contiguous.
template <class T, class Session>
GateView<const T> gate_rows_in(Session& session, const Tensor& x) {
  const Tensor& rows = kept(session, x, as(x, session.dtype_for(x)));
  const T* data = static_cast<const T*>(session.in(rows));
  return {data, rows.stride(0), rows.stride(1), rows.stride(2), rows.stride(3)};
}

RecurrentShape forward_shape(const Tensor& x, const Tensor& R, const OptionalTensor& b, const OptionalTensor& reset,
                             int64_t reversed_heads, int64_t max_dim) {
  check_given("recurrent", {&x, &R});
  for (const Tensor* t : {&x, &R}) check_float("recurrent", "every input", *t);
  STD_TORCH_CHECK(x.dim() == 5 && x.size(2) == kGates, "recurrent: x must have shape (B, S, 4, H, D), got ",
                  shape_string(x));
  const RecurrentShape shape = {x.size(0), x.size(1), x.size(3), x.size(4), reversed_heads};
  check_weights(R, b, shape, max_dim);
  STD_TORCH_CHECK(R.scalar_type() == x.scalar_type(), "recurrent: x and R must share a dtype");
  check_shape("recurrent", "reset", reset, {shape.batch, shape.seqlen});
  return shape;
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_fwd(Arguments& arguments) {
  const Tensor x = arguments.tensor(), R = arguments.tensor();
  const OptionalTensor b = arguments.optional();
  const InitialState given(arguments);
  const OptionalTensor lengths = arguments.optional(), reset = arguments.optional();
  const Options options(arguments);
  const bool save = arguments.flag(), slstm = has_normaliser(options.cell);
  const RecurrentShape s = forward_shape(x, R, b, reset, options.reversed_heads, Session::kMaxDim);
  const OptionalTensor longs = checked_lengths(lengths, s);
  const State initial_state = given.in(x, s, slstm);
  const NewState final_state(x, compute_type(x), s, slstm);
  Session session("recurrent_fwd", x);
  const ScalarType dtype = session.dtype_for(x);
  const Tensor h = empty(x, {s.batch, s.seqlen, s.num_heads, s.head_dim}, dtype);
  const Tensor saved = empty(x, save ? Shape{s.batch, s.seqlen, kSaved, s.num_heads, s.head_dim} : Shape{0}, dtype);
  if (s.batch > 0) {
    session.with_types([&](auto data, auto) {
      using T = typename decltype(data)::Type;
      RecurrentForwardParams<T> p{};
      p.shape = s, p.cell = options.cell, p.type = type_of(x), p.allow_tf32 = options.allow_tf32;
      p.x = gate_rows_in<T>(session, x), p.R = weights_in<T>(session, R), p.b = bias_in<T>(session, b);
      p.lengths = in_as<int64_t>(session, longs), p.reset = flags_in(session, reset);
      p.initial_state = initial_state.params<T>(session);
      p.h = out_as<T>(session, h), p.final_state = final_state.params<T>(session);
      p.saved = save ? out_as<T>(session, saved) : nullptr;
      session.run(p);
    });
  }
  session.finish();
  return {as(h, x.scalar_type()), final_state.h, final_state.c, final_state.n, final_state.m, saved};
}

RecurrentShape backward_shape(const Tensor& dh, const Tensor& R, const Tensor& h, const Tensor& saved,
                              const OptionalTensor& reset, int64_t reversed_heads, int64_t max_dim) {
  check_given("recurrent", {&dh, &R, &h, &saved});
  for (const Tensor* t : {&dh, &R, &h, &saved}) check_float("recurrent", "every input", *t);
  STD_TORCH_CHECK(h.dim() == 4, "recurrent: h must have shape (B, S, H, D), got ", shape_string(h));
  const RecurrentShape shape = {h.size(0), h.size(1), h.size(2), h.size(3), reversed_heads};
  check_weights(R, {}, shape, max_dim);
  STD_TORCH_CHECK(R.scalar_type() == h.scalar_type(), "recurrent: h and R must share a dtype");
  check_shape("recurrent", "dh", dh, {shape.batch, shape.seqlen, shape.num_heads, shape.head_dim});
  check_shape("recurrent", "saved", saved, {shape.batch, shape.seqlen, kSaved, shape.num_heads, shape.head_dim});
  check_shape("recurrent", "reset", reset, {shape.batch, shape.seqlen});
  return shape;
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_bwd(Arguments& arguments) {
  const Tensor dh = arguments.tensor();
  const OptionalTensor dhT = arguments.optional(), dcT = arguments.optional(), dnT = arguments.optional();
  const OptionalTensor dmT = arguments.optional();
  const Tensor R = arguments.tensor(), h = arguments.tensor();
  const InitialState given(arguments);
  const Tensor cT = arguments.tensor(), nT = arguments.tensor(), saved = arguments.tensor();
  const OptionalTensor lengths = arguments.optional(), reset = arguments.optional();
  const Options options(arguments);
  const bool slstm = has_normaliser(options.cell);
  const RecurrentShape s = backward_shape(dh, R, h, saved, reset, options.reversed_heads, Session::kMaxDim);
  const ScalarType type = compute_type(h);
  const OptionalTensor longs = checked_lengths(lengths, s), n_final = slstm ? OptionalTensor(nT) : std::nullopt;
  const State initial_state = given.in(h, s, slstm), final_state({}, cT, n_final, {}, type, s, slstm);
  const State final_state_grad(dhT, dcT, dnT, dmT, type, s, slstm);
  const NewState initial_state_grad(h, type, s, slstm);
  Session session("recurrent_bwd", h);
  const ScalarType dtype = session.dtype_for(h);
  const Tensor dx = empty(h, {s.batch, s.seqlen, kGates, s.num_heads, s.head_dim}, dtype);
  const Tensor dR = empty(h, {kGates, s.num_heads, s.head_dim, s.head_dim}, dtype);
  const Tensor db = empty(h, {kGates, s.num_heads, s.head_dim}, type);
  session.with_types([&](auto data, auto) {
    using T = typename decltype(data)::Type;
    RecurrentBackwardParams<T> p{};
    p.shape = s, p.cell = options.cell, p.type = type_of(h), p.allow_tf32 = options.allow_tf32;
    p.R = weights_in<T>(session, R);
    p.dh = contiguous_in<T>(session, dh, dtype), p.saved = contiguous_in<T>(session, saved, dtype);
    p.lengths = in_as<int64_t>(session, longs), p.reset = flags_in(session, reset);
    p.initial_state = initial_state.params<T>(session), p.final_state = final_state.params<T>(session);
    p.final_state_grad = final_state_grad.params<T>(session);
    p.dx = out_as<T>(session, dx), p.initial_state_grad = initial_state_grad.params<T>(session);
    p.h = contiguous_in<T>(session, h, dtype);
    p.dR = out_as<T>(session, dR), p.db = out_as<T>(session, db);
    session.run(p);
  });
  session.finish();
  return {as(dx, h.scalar_type()), as(dR, R.scalar_type()), db, initial_state_grad.h, initial_state_grad.c,
          initial_state_grad.n,    initial_state_grad.m};
}

}  // namespace

#define XLSTM_INITIAL_STATE "Tensor? h0, Tensor? c0, Tensor? n0, Tensor? m0, "

XLSTM_OP(recurrent_fwd,
         "Tensor x, Tensor R, Tensor? b, " XLSTM_INITIAL_STATE
         "Tensor? lengths, Tensor? reset, " XLSTM_RECURRENT_OPTIONS ", bool save",
         "(Tensor h, Tensor hT, Tensor cT, Tensor nT, Tensor mT, Tensor saved)")
XLSTM_OP(recurrent_bwd,
         "Tensor dh, Tensor? dhT, Tensor? dcT, Tensor? dnT, Tensor? dmT, Tensor R, Tensor h, " XLSTM_INITIAL_STATE
         "Tensor cT, Tensor nT, Tensor saved, Tensor? lengths, Tensor? reset, " XLSTM_RECURRENT_OPTIONS,
         "(Tensor dx, Tensor dR, Tensor db, Tensor dh0, Tensor dc0, Tensor dn0, Tensor dm0)")

}  // namespace xlstm::ops
