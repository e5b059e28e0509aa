// mlstm_normaliser, mlstm_gate_grads: two kernels of the chunkwise mLSTM's backward pass by themselves, for tests and
// for whoever studies the kernels.
#include "cuda/mlstm_chunkwise/gate_grads.h"
#include "cuda/mlstm_chunkwise/normaliser.h"
#include "ops/kernel_ops/mlstm_vectors.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> mlstm_normaliser(const Tensor& h, const Tensor& dh, const Tensor& r, const Tensor& m,
                                                    bool sigmoid_gate, bool normalize, bool norm_grad, double eps) {
  NoGrad guard;
  const ScalarType type = compute_type(h);
  const Shape tokens = {h.size(0), h.size(1), h.size(2)};
  check_shape("mlstm_normaliser", "r", r, tokens);
  check_shape("mlstm_normaliser", "m", m, tokens);
  const Tensor iota = empty(h, tokens, type), rho = empty(h, tokens, type), kappa = empty(h, tokens, type);
  const Tensor r_rows = as_contiguous(r, type), m_rows = as_contiguous(m, type);
  with_compute_type(type, [&](auto zero) {
    using A = decltype(zero);
    DeviceSession session("mlstm_normaliser", h);
    cuda::MlstmNormaliserParams<A> p;
    p.shape = {tokens[0], tokens[1], tokens[2], 1, h.size(3)};
    p.options = {.sigmoid_gate = sigmoid_gate, .normalize = normalize, .eps = eps, .norm_grad = norm_grad};
    p.h = view_of<void>(session.in(h), h);
    p.dh = view_of<void>(session.in(dh), dh);
    p.r = in_as<A>(session, r_rows), p.m = in_as<A>(session, m_rows);
    p.iota = out_as<A>(session, iota), p.rho = out_as<A>(session, rho), p.kappa = out_as<A>(session, kappa);
    session.check(cuda::mlstm_normaliser(p, session.stream()));
    session.finish();
  });
  return {iota, rho, kappa};
}

// Row sums (B, H, parts, S), chunk_dots (B, H, slots, parts), start_dots (N, H, parts), all of the compute type. Writes
// di and df, of any type and strides; returns d_initial_m.
Tensor mlstm_gate_grads(const Tensor& i, const Tensor& f, OptionalTensor initial_m, OptionalTensor cu_seqlens,
                        OptionalTensor reset, const Tensor& q_dq, const Tensor& k_dk, const Tensor& kappa,
                        const Tensor& chunk_dots, OptionalTensor start_dots, OptionalTensor dm, Tensor di, Tensor df,
                        bool sigmoid_gate, int64_t chunk_size) {
  NoGrad guard;
  const ScalarType type = compute_type(q_dq);
  const GateInputs in = {i,
                         f,
                         as_contiguous(initial_m, type),
                         as_contiguous(cu_seqlens, ScalarType::Int),
                         as_contiguous(reset, ScalarType::Bool),
                         sigmoid_gate,
                         static_cast<int>(chunk_size)};
  const MlstmShape shape = in.shape(1, 1);
  const int64_t slots = cuda::chunk_slots(shape, in.chunk_size);
  check_shape("mlstm_gate_grads", "q_dq", q_dq, {shape.batch, shape.num_heads, q_dq.size(2), shape.seqlen});
  check_shape("mlstm_gate_grads", "k_dk", k_dk, {shape.batch, shape.num_heads, q_dq.size(2), shape.seqlen});
  check_shape("mlstm_gate_grads", "kappa", kappa, {shape.batch, shape.num_heads, shape.seqlen});
  check_shape("mlstm_gate_grads", "chunk_dots", chunk_dots, {shape.batch, shape.num_heads, slots, chunk_dots.size(3)});
  check_shape("mlstm_gate_grads", "start_dots", start_dots, {shape.num_sequences, shape.num_heads, chunk_dots.size(3)});
  const Tensor d_initial_m = empty(q_dq, {shape.num_sequences, shape.num_heads}, type);
  const Tensor rows[] = {as_contiguous(q_dq, type), as_contiguous(k_dk, type), as_contiguous(kappa, type),
                         as_contiguous(chunk_dots, type)};
  const OptionalTensor starts = as_contiguous(start_dots, type), final = as_contiguous(dm, type);
  with_compute_type(type, [&](auto zero) {
    using A = decltype(zero);
    DeviceSession session("mlstm_gate_grads", i);
    const cuda::MlstmGatesParams<A> gates = gate_params<A>(session, in, shape);
    session.check(cuda::mlstm_gates(gates, session.stream()));
    cuda::MlstmGateGradsParams<A> p;
    p.shape = gates.shape, p.sigmoid_gate = sigmoid_gate, p.chunk_size = gates.chunk_size;
    p.i = gates.i, p.f = gates.f, p.reset = gates.reset, p.gates = gates.out;
    p.q_dq = in_as<A>(session, rows[0]), p.k_dk = in_as<A>(session, rows[1]), p.row_tiles = q_dq.size(2);
    p.kappa = in_as<A>(session, rows[2]);
    p.chunk_dots = in_as<A>(session, rows[3]), p.start_dots = in_as<A>(session, starts);
    p.dot_tiles = chunk_dots.size(3);
    p.dm = in_as<A>(session, final);
    p.di = view_of<void>(session.inout(di), di);
    p.df = view_of<void>(session.inout(df), df);
    p.d_initial_m = out_as<A>(session, d_initial_m);
    session.check(cuda::mlstm_gate_grads(p, session.stream()));
    session.finish();
  });
  return d_initial_m;
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def(
      "mlstm_normaliser(Tensor h, Tensor dh, Tensor r, Tensor m, bool sigmoid_gate, bool normalize, bool norm_grad, "
      "float eps) -> (Tensor iota, Tensor rho, Tensor kappa)");
  m.def(
      "mlstm_gate_grads(Tensor i, Tensor f, Tensor? initial_m, Tensor? cu_seqlens, Tensor? reset, Tensor q_dq, "
      "Tensor k_dk, Tensor kappa, Tensor chunk_dots, Tensor? start_dots, Tensor? dm, Tensor(a!) di, Tensor(b!) df, "
      "bool sigmoid_gate, int chunk_size) -> Tensor d_initial_m");
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_normaliser", TORCH_BOX(&mlstm_normaliser));
  m.impl("mlstm_gate_grads", TORCH_BOX(&mlstm_gate_grads));
}

}  // namespace xlstm::ops
