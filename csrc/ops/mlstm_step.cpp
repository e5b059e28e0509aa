// mlstm_step, mlstm_step_ and mlstm_step_out_: the mLSTM on up to 16 tokens, with the state as an explicit argument.
#include "core/mlstm_step.h"

#include "ops/library.h"
#include "ops/mlstm.h"

namespace xlstm::ops {
namespace {

struct MlstmTokens {
  Tensor q, k, v, i, f;

  explicit MlstmTokens(Arguments& a) : q(a.tensor()), k(a.tensor()), v(a.tensor()), i(a.tensor()), f(a.tensor()) {}
};

struct StepTensors {
  Tensor C, n, m;

  StepTensors(Tensor C_, Tensor n_, Tensor m_) : C(std::move(C_)), n(std::move(n_)), m(std::move(m_)) {}
  explicit StepTensors(Arguments& a) : C(a.tensor()), n(a.tensor()), m(a.tensor()) {}

  StepTensors in_dtype(ScalarType type) const { return {as(C, type), as(n, type), as(m, type)}; }
};

// One call, checked.
struct MlstmStepCall {
  const MlstmTokens& in;
  MlstmShape shape;
  ScalarType type;  // of the arithmetic and of a new state
  bool has_time;    // (B, H, S, D) and (B, H, S), or for one token (B, H, D) and (B, H)

  MlstmStepCall(const MlstmTokens& in, int64_t max_dim);

  // (B, H[, S]) and what follows.
  template <class... D>
  Shape tokens(D... dims) const {
    return has_time ? Shape{shape.batch, shape.num_heads, shape.seqlen, dims...}
                    : Shape{shape.batch, shape.num_heads, dims...};
  }

  void check_state(const StepTensors& state, int64_t rows) const;
  // Also that it can be overwritten. C may be bfloat16: half the memory traffic, rounded after every call.
  void check_inplace_state(const StepTensors& state, const OptionalTensor& slots) const;
  // Also that it can be written while `state` is read.
  void check_out(const StepTensors& out, const StepTensors& state) const;

 private:
  void check_writable(const StepTensors& state) const;
};

MlstmStepCall::MlstmStepCall(const MlstmTokens& in_, int64_t max_dim) : in(in_) {
  const auto& [q, k, v, i, f] = in;
  check_given("mlstm_step", {&q, &k, &v, &i, &f});
  type = compute_type(q), has_time = q.dim() == 4;
  STD_TORCH_CHECK(q.dim() == 3 || q.dim() == 4, "mlstm_step: q must have 3 or 4 dimensions");
  STD_TORCH_CHECK(v.dim() == q.dim(), "mlstm_step: v must have as many dimensions as q");
  const ScalarType data = q.scalar_type();
  STD_TORCH_CHECK(k.scalar_type() == data && v.scalar_type() == data, "mlstm_step: q, k, v must share a dtype");
  const int64_t S = has_time ? q.size(2) : 1;
  shape = {q.size(0), q.size(1), S, q.size(-1), v.size(-1)};
  shape.num_sequences = shape.batch;
  check_dims("mlstm_step", {shape.num_heads, shape.head_dim_qk, shape.head_dim_v});
  check_sizes("mlstm_step", shape);
  check_sizes("mlstm_step", max_dim, {{shape.head_dim_qk}, {shape.head_dim_v}});
  STD_TORCH_CHECK(S <= kMaxStepTokens, "mlstm_step: takes at most 16 tokens, got ", S);
  for (const Tensor* x : {&q, &i, &f}) check_float("mlstm_step", "every input", *x);
  check_shape("mlstm_step", "k", k, tokens(shape.head_dim_qk));
  check_shape("mlstm_step", "v", v, tokens(shape.head_dim_v));
  check_shape("mlstm_step", "i", i, tokens());
  check_shape("mlstm_step", "f", f, tokens());
}

void MlstmStepCall::check_state(const StepTensors& state, int64_t rows) const {
  const auto& [C, n, m] = state;
  check_given("mlstm_step", {&C, &n, &m});
  for (const Tensor* x : {&C, &n, &m}) check_float("mlstm_step", "the state", *x);
  check_shape("mlstm_step", "C", C, {rows, shape.num_heads, shape.head_dim_qk, shape.head_dim_v});
  check_shape("mlstm_step", "n", n, {rows, shape.num_heads, shape.head_dim_qk});
  check_shape("mlstm_step", "m", m, {rows, shape.num_heads});
}

// Every value names a row of the state, none twice. Reads the values.
void check_slots(const Tensor& slots, int64_t rows) {
  const Tensor values = as_contiguous(slots, ScalarType::Int);
  std::vector<bool> used(static_cast<size_t>(rows));
  for (int64_t b = 0; b < values.size(0); ++b) {
    const int32_t slot = pointer<int32_t>(values)[b];
    STD_TORCH_CHECK(slot >= 0 && slot < rows, "mlstm_step: slots[", b, "] = ", slot, " is not a row of the state");
    STD_TORCH_CHECK(!used[slot], "mlstm_step: slots names row ", slot, " twice");
    used[slot] = true;
  }
}

void MlstmStepCall::check_inplace_state(const StepTensors& state, const OptionalTensor& slots) const {
  const auto& [C, n, m] = state;
  check_given("mlstm_step", {&C});
  STD_TORCH_CHECK(C.dim() == 4, "mlstm_step: C must have 4 dimensions, got ", shape_string(C));
  check_state(state, slots ? C.size(0) : shape.batch);
  const bool half_C = C.scalar_type() == ScalarType::BFloat16 && type == ScalarType::Float;
  STD_TORCH_CHECK((C.scalar_type() == type || half_C) && n.scalar_type() == type && m.scalar_type() == type,
                  "mlstm_step: an in-place state must be of the compute dtype, or C of bfloat16");
  check_writable(state);
  check_shape("mlstm_step", "slots", slots, {shape.batch});
  if (slots && slots->is_cpu()) check_slots(*slots, C.size(0));
}

void MlstmStepCall::check_out(const StepTensors& out, const StepTensors& state) const {
  check_state(out, shape.batch);
  for (const Tensor* x : {&out.C, &out.n, &out.m}) {
    STD_TORCH_CHECK(x->scalar_type() == type, "mlstm_step: out must be of the compute dtype");
  }
  check_writable(out);
  check_apart("mlstm_step", {{"out.C", &out.C}, {"out.n", &out.n}, {"out.m", &out.m}},
              {{"C", &state.C}, {"n", &state.n}, {"m", &state.m}});
}

void MlstmStepCall::check_writable(const StepTensors& state) const {
  const auto& [C, n, m] = state;
  for (const Tensor* x : {&C, &n, &m}) {
    STD_TORCH_CHECK(x->size(-1) <= 1 || x->stride(-1) == 1,
                    "mlstm_step: a state that is written must have contiguous rows");
  }
  check_own_memory("mlstm_step", {{"C", &C}, {"n", &n}, {"m", &m}});
}

// A state at these addresses.
template <class T, class Pointer>
StepState<T> state_view(const StepTensors& state, Pointer C_data, Pointer n_data, Pointer m_data) {
  const auto& [C, n, m] = state;
  StepState<T> view;
  if constexpr (std::is_void_v<T>)
    view.C = {C_data, type_of(C)};
  else
    view.C = static_cast<T*>(C_data);
  view.C_batch = C.stride(0), view.C_head = C.stride(1), view.C_row = C.stride(2);
  view.n = static_cast<T*>(n_data), view.n_batch = n.stride(0), view.n_head = n.stride(1);
  view.m = static_cast<T*>(m_data), view.m_batch = m.stride(0), view.m_head = m.stride(1);
  return view;
}

// To be written as a whole: what lies between the rows of a tensor stays.
template <class Session>
void* written(Session& session, const Tensor& x) {
  return x.is_contiguous() ? session.out(x) : session.inout(x);
}

// h from `state` to `next`; without `next` the state is overwritten. All memory is taken before the state changes.
template <class Session>
Tensor step(Session& session, const MlstmStepCall& call, const MlstmOptions& options, const StepTensors& state,
            const StepTensors* next, const OptionalTensor& slots) {
  const MlstmTokens& in = call.in;
  const Output h(empty(in.q, call.tokens(call.shape.head_dim_v), in.q.scalar_type()), session.dtype_for(in.q));
  if (call.shape.seqlen == 0) return h.result();
  session.with_types([&](auto data, auto) {
    using T = typename decltype(data)::Type;
    MlstmStepParams<T> p{};
    p.shape = call.shape;
    p.options = options;
    p.q = rows_in<T>(session, in.q, call.has_time), p.k = rows_in<T>(session, in.k, call.has_time);
    p.v = rows_in<T>(session, in.v, call.has_time);
    p.i = gates_in<T>(session, in.i, call.has_time), p.f = gates_in<T>(session, in.f, call.has_time);
    p.h = view_out<T>(session, h.computed(), call.has_time);
    if (next) {
      p.state = state_view<const T>(state, session.in(state.C), session.in(state.n), session.in(state.m));
      p.next = state_view<T>(*next, written(session, next->C), written(session, next->n), written(session, next->m));
    } else {
      void *C = session.inout(state.C), *n = session.inout(state.n), *m = session.inout(state.m);
      p.state = state_view<const T>(state, C, n, m);
      p.next = state_view<T>(state, C, n, m);
    }
    p.slots = contiguous_in<int32_t>(session, slots, ScalarType::Int);
    p.state_rows = state.C.size(0);
    session.run(p);
  });
  session.finish();
  return h.result();
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor> mlstm_step(Arguments& arguments) {
  const MlstmTokens in(arguments);
  const StepTensors given(arguments);
  const MlstmOptions options = mlstm_options(arguments);
  const MlstmStepCall call(in, Session::kMaxDim);
  call.check_state(given, call.shape.batch);
  const StepTensors state = given.in_dtype(call.type);
  Session session("mlstm_step", in.q);
  if (call.shape.seqlen == 0) {
    const Tensor h = step(session, call, options, state, nullptr, {});
    return {h, torch::stable::clone(state.C), torch::stable::clone(state.n), torch::stable::clone(state.m)};
  }
  const auto like = [&](const Tensor& x) { return empty(in.q, Shape(x.sizes().begin(), x.sizes().end()), call.type); };
  const StepTensors next = {like(given.C), like(given.n), like(given.m)};
  const Tensor h = step(session, call, options, state, &next, {});
  return {h, next.C, next.n, next.m};
}

template <class Session>
Tensor mlstm_step_(Arguments& arguments) {
  const MlstmTokens in(arguments);
  const StepTensors given(arguments);
  const OptionalTensor slots = arguments.optional();
  const MlstmOptions options = mlstm_options(arguments);
  const MlstmStepCall call(in, Session::kMaxDim);
  call.check_inplace_state(given, slots);
  Session session("mlstm_step", in.q);
  const Tensor C = as(given.C, session.state_dtype_for(given.C));
  const Tensor h = step(session, call, options, {C, given.n, given.m}, nullptr, slots);
  if (C.get() != given.C.get()) overwrite(given.C, C);
  return h;
}

template <class Session>
Tensor mlstm_step_out_(Arguments& arguments) {
  const MlstmTokens in(arguments);
  const StepTensors given(arguments), out(arguments);
  const MlstmOptions options = mlstm_options(arguments);
  const MlstmStepCall call(in, Session::kMaxDim);
  call.check_state(given, call.shape.batch);
  call.check_out(out, given);
  const StepTensors state = given.in_dtype(call.type);
  Session session("mlstm_step", in.q);
  if (call.shape.seqlen == 0) overwrite(out.C, state.C), overwrite(out.n, state.n), overwrite(out.m, state.m);
  return step(session, call, options, state, &out, {});
}

}  // namespace

#define XLSTM_TOKENS "Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, "

XLSTM_OP(mlstm_step, XLSTM_TOKENS "Tensor C, Tensor n, Tensor m, " XLSTM_MLSTM_OPTIONS,
         "(Tensor h, Tensor next_C, Tensor next_n, Tensor next_m)")
XLSTM_OP(mlstm_step_, XLSTM_TOKENS "Tensor(a!) C, Tensor(b!) n, Tensor(c!) m, Tensor? slots, " XLSTM_MLSTM_OPTIONS,
         "Tensor")
XLSTM_OP(mlstm_step_out_,
         XLSTM_TOKENS
         "Tensor C, Tensor n, Tensor m, Tensor(a!) next_C, Tensor(b!) next_n, "
         "Tensor(c!) next_m, " XLSTM_MLSTM_OPTIONS,
         "Tensor")

}  // namespace xlstm::ops
