// mlstm_fwd and mlstm_bwd: the mLSTM over whole sequences.
#include "ops/mlstm.h"

#include "ops/library.h"

namespace xlstm::ops {
namespace {

// C, n and m, written.
struct NewState {
  Tensor C, n, m;

  explicit NewState(const MlstmCall& call)
      : C(empty(call.in.q, call.C_shape(), call.type)),
        n(empty(call.in.q, call.n_shape(), call.type)),
        m(empty(call.in.q, call.m_shape(), call.type)) {}

  template <class A, class Session>
  MlstmState<A> params(Session& session) const {
    return {out_as<A>(session, C), out_as<A>(session, n), out_as<A>(session, m)};
  }
};

// A state that is given, or the gradients of one.
template <class A, class Session>
MlstmState<const A> state_in(Session& session, const MlstmCall& call, const OptionalTensor& C, const OptionalTensor& n,
                             const OptionalTensor& m) {
  return {contiguous_in<A>(session, C, call.type), contiguous_in<A>(session, n, call.type),
          contiguous_in<A>(session, m, call.type)};
}

// All but the outputs.
template <class T, class A, class Session>
MlstmForwardParams<T, A> forward_params(Session& session, const MlstmCall& call, const MlstmOptions& options) {
  const MlstmTensors& in = call.in;
  MlstmForwardParams<T, A> p{};
  p.shape = call.shape;
  p.shape.cu_seqlens = contiguous_in<int32_t>(session, in.cu_seqlens, ScalarType::Int);
  p.options = options;
  p.q = rows_in<T>(session, in.q), p.k = rows_in<T>(session, in.k), p.v = rows_in<T>(session, in.v);
  p.i = gates_in<T>(session, in.i), p.f = gates_in<T>(session, in.f);
  p.reset = flags_in(session, in.reset);
  p.initial_state = state_in<A>(session, call, in.initial_C, in.initial_n, in.initial_m);
  return p;
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_fwd(Arguments& arguments) {
  const MlstmTensors in(arguments);
  const MlstmOptions options = mlstm_options(arguments);
  const bool keep = arguments.flag();
  const MlstmCall call(in, Session::kMaxDim);
  const Tensor &q = in.q, &v = in.v;
  Session session("mlstm", q);
  return session.with_types([&](auto data, auto zero) {
    using T = typename decltype(data)::Type;
    using A = decltype(zero);
    auto p = forward_params<T, A>(session, call, options);
    // After the inputs: the C library gives the end of the heap back to the system once it is free, and conversions of
    // large inputs at that end would need fresh pages in every call.
    const Output h(torch::stable::empty_like(v), session.dtype_for(v));
    const NewState final_state(call);
    const Tensor r = empty(q, call.gate_shape(), call.type);
    p.h = view_out<T>(session, h.computed());
    p.r = out_as<A>(session, r);
    p.final_state = final_state.params<A>(session);
    const Tensor kept = empty(q, {keep ? static_cast<int64_t>(session.kept_bytes(p)) : 0}, ScalarType::Byte);
    if (kept.numel() > 0) p.kept = session.out(kept);
    session.run(p);
    session.finish();
    return std::tuple(h.result(), final_state.C, final_state.n, final_state.m, r, kept);
  });
}

// The forward pass's final state and what it kept: all of them, or nothing.
struct Kept {
  OptionalTensor C, n, bytes;

  explicit Kept(Arguments& a) : C(a.optional()), n(a.optional()), bytes(a.optional()) {}

  bool is_empty() const { return !bytes || bytes->numel() == 0; }

  void check(const MlstmCall& call) const {
    check_shape("mlstm", "C", C, call.C_shape());
    check_shape("mlstm", "n", n, call.n_shape());
    STD_TORCH_CHECK(is_empty() || (C && n), "mlstm: what was kept needs the final state's C and n");
  }

  template <class T, class A, class Session>
  void into(MlstmBackwardParams<T, A>& p, Session& session, const MlstmCall& call) const {
    if (is_empty()) return;
    check_shape("mlstm", "kept", bytes, {static_cast<int64_t>(session.kept_bytes(p.forward))});
    p.kept = contiguous_in<char>(session, bytes, ScalarType::Byte);
    p.final_state = state_in<A>(session, call, C, n, {});
  }
};

// The gradients that come in, and what the forward pass has saved.
struct Gradients {
  Tensor dh;
  OptionalTensor dC, dn, dm;

  explicit Gradients(Arguments& a) : dh(a.tensor()), dC(a.optional()), dn(a.optional()), dm(a.optional()) {}

  void check(const MlstmCall& call, const Tensor& h, const Tensor& r) const {
    check_given("mlstm", {&dh, &h, &r});
    check_shape("mlstm", "dh", dh, call.h_shape());
    check_shape("mlstm", "h", h, call.h_shape());
    check_shape("mlstm", "r", r, call.gate_shape());
    check_shape("mlstm", "dC", dC, call.C_shape());
    check_shape("mlstm", "dn", dn, call.n_shape());
    check_shape("mlstm", "dm", dm, call.m_shape());
  }
};

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_bwd(Arguments& arguments) {
  const Gradients grads(arguments);
  const MlstmTensors in(arguments);
  const Tensor h = arguments.tensor(), r = arguments.tensor();
  const Kept kept(arguments);
  const MlstmOptions options = mlstm_options(arguments);
  const MlstmCall call(in, Session::kMaxDim);
  grads.check(call, h, r);
  kept.check(call);
  Session session("mlstm", in.q);
  const ScalarType dtype = in.v.scalar_type();
  return session.with_types([&](auto data, auto zero) {
    using T = typename decltype(data)::Type;
    using A = decltype(zero);
    MlstmBackwardParams<T, A> p{};
    p.forward = forward_params<T, A>(session, call, options);
    p.h = rows_in<T>(session, session.keep(as(h, dtype)));
    p.r = contiguous_in<A>(session, r, call.type);
    kept.into(p, session, call);
    p.dh = rows_in<T>(session, session.keep(as(grads.dh, dtype)));
    p.final_state_grad = state_in<A>(session, call, grads.dC, grads.dn, grads.dm);
    const auto output = [&](const Tensor& x) { return Output(torch::stable::empty_like(x), session.dtype_for(x)); };
    const Output dq = output(in.q), dk = output(in.k), dv = output(in.v), di = output(in.i), df = output(in.f);
    const NewState initial_state_grad(call);
    p.dq = view_out<T>(session, dq.computed()), p.dk = view_out<T>(session, dk.computed());
    p.dv = view_out<T>(session, dv.computed());
    p.di = view_out<T>(session, di.computed()), p.df = view_out<T>(session, df.computed());
    p.initial_state_grad = initial_state_grad.params<A>(session);
    session.run(p);
    session.finish();
    return std::tuple(dq.result(), dk.result(), dv.result(), di.result(), df.result(), initial_state_grad.C,
                      initial_state_grad.n, initial_state_grad.m);
  });
}

}  // namespace

MlstmTensors::MlstmTensors(Arguments& a)
    : q(a.tensor()),
      k(a.tensor()),
      v(a.tensor()),
      i(a.tensor()),
      f(a.tensor()),
      initial_C(a.optional()),
      initial_n(a.optional()),
      initial_m(a.optional()),
      cu_seqlens(a.optional()),
      reset(a.optional()) {}

void check_sizes(const char* op, const MlstmShape& s) {
  check_sizes(op, kMaxElements,
              {{s.batch, s.num_heads, s.seqlen, s.head_dim_qk},
               {s.batch, s.num_heads, s.seqlen, s.head_dim_v},
               {s.num_sequences, s.num_heads, s.head_dim_qk, s.head_dim_v}});
  check_sizes(op, kMaxWork, {{s.batch, s.num_heads, s.seqlen, s.head_dim_qk, s.head_dim_v}});
}

MlstmCall::MlstmCall(const MlstmTensors& in_, int64_t max_dim) : in(in_) {
  const auto& [q, k, v, i, f, initial_C, initial_n, initial_m, cu_seqlens, reset] = in;
  check_given("mlstm", {&q, &k, &v, &i, &f});
  type = compute_type(q);
  STD_TORCH_CHECK(q.dim() == 4 && v.dim() == 4, "mlstm: q and v must have 4 dimensions");
  for (const Tensor* x : {&q, &k, &v, &i, &f}) check_float("mlstm", "every input", *x);
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "mlstm: q, k, v must share a dtype");
  shape = {q.size(0), q.size(1), q.size(2), q.size(3), v.size(3)};
  STD_TORCH_CHECK(!cu_seqlens || (cu_seqlens->dim() == 1 && cu_seqlens->size(0) >= 1 && shape.batch == 1),
                  "mlstm: cu_seqlens must have shape (N + 1,), with batch 1");
  shape.num_sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : shape.batch;
  const int64_t B = shape.batch, H = shape.num_heads, S = shape.seqlen;
  check_dims("mlstm", {H, shape.head_dim_qk, shape.head_dim_v});
  check_sizes("mlstm", shape);
  check_sizes("mlstm", max_dim, {{S}, {shape.head_dim_qk}, {shape.head_dim_v}});
  check_shape("mlstm", "k", k, {B, H, S, shape.head_dim_qk});
  check_shape("mlstm", "v", v, h_shape());
  check_shape("mlstm", "i", i, gate_shape());
  check_shape("mlstm", "f", f, gate_shape());
  check_shape("mlstm", "reset", reset, {B, S});
  check_initial_state();
  check_sequences();
}

void MlstmCall::check_initial_state() const {
  check_shape("mlstm", "initial_C", in.initial_C, C_shape());
  check_shape("mlstm", "initial_n", in.initial_n, n_shape());
  check_shape("mlstm", "initial_m", in.initial_m, m_shape());
  STD_TORCH_CHECK(
      in.initial_C.has_value() == in.initial_n.has_value() && in.initial_n.has_value() == in.initial_m.has_value(),
      "mlstm: the initial state must have all of C, n and m");
}

void MlstmCall::check_sequences() const {
  if (!in.cu_seqlens || !in.cu_seqlens->is_cpu()) return;
  const Tensor values = as_contiguous(*in.cu_seqlens, ScalarType::Int);
  const int32_t* cu = pointer<int32_t>(values);
  bool good = cu[0] == 0 && cu[shape.num_sequences] == shape.seqlen;
  for (int64_t n = 0; n < shape.num_sequences; ++n) good = good && cu[n] <= cu[n + 1];
  STD_TORCH_CHECK(good, "mlstm: cu_seqlens must rise from 0 to S");
}

// keep: whether CUDA kernels keep what mlstm_bwd needs again (xlstm_cuda/_kept.py says how much that is).
XLSTM_OP(mlstm_fwd, XLSTM_MLSTM_TENSORS ", " XLSTM_MLSTM_OPTIONS ", bool keep=False",
         "(Tensor h, Tensor C, Tensor n, Tensor m, Tensor r, Tensor kept)")
XLSTM_OP(mlstm_bwd,
         "Tensor dh, Tensor? dC, Tensor? dn, Tensor? dm, " XLSTM_MLSTM_TENSORS
         ", Tensor h, Tensor r, Tensor? CT, Tensor? nT, Tensor? kept, " XLSTM_MLSTM_OPTIONS,
         "(Tensor dq, Tensor dk, Tensor dv, Tensor di, Tensor df, Tensor dC0, Tensor dn0, Tensor dm0)")

}  // namespace xlstm::ops
