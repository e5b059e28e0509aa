// mlstm_walk_grads: dq, dk or dv of the chunkwise mLSTM in one walk, by itself, for tests and for whoever studies the
// kernel.
#include "cuda/mlstm_chunkwise/walk_grads.h"
#include "ops/kernel_ops/mlstm_vectors.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kOp = "mlstm_walk_grads";

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// output: 1 (dq), 2 (dk), 3 (dv). q, k, v, dh in bfloat16; all else in float32 and contiguous, but i and f.
Result mlstm_walk_grads(int64_t output, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& dh,
                        const Tensor& i, const Tensor& f, OptionalTensor initial_m, OptionalTensor cu_seqlens,
                        OptionalTensor reset, const Tensor& iota, const Tensor& rho, OptionalTensor C, OptionalTensor n,
                        OptionalTensor forward_states, OptionalTensor forward_normalisers, OptionalTensor final_C,
                        OptionalTensor final_n, OptionalTensor initial_C, OptionalTensor initial_n, bool sigmoid_gate,
                        double scale, int64_t chunk_size, int64_t segments) {
  NoGrad guard;
  STD_TORCH_CHECK(output >= 1 && output <= 3, kOp, ": output must be 1 (dq), 2 (dk) or 3 (dv), got ", output);
  const auto kind = static_cast<cuda::OutputKind>(output);
  const int L = static_cast<int>(chunk_size);
  const GateInputs in = {i,
                         f,
                         as_contiguous(initial_m, ScalarType::Float),
                         as_contiguous(cu_seqlens, ScalarType::Int),
                         as_contiguous(reset, ScalarType::Bool),
                         sigmoid_gate,
                         L};
  const MlstmShape shape = in.shape(q.size(3), v.size(3));
  const bool sums = kind != cuda::OutputKind::dv;
  const int64_t slots = cuda::chunk_slots(shape, L), tiles = (shape.head_dim_qk + 63) / 64;
  const int64_t B = shape.batch, H = shape.num_heads, N = shape.num_sequences;
  const Tensor out = empty(v, {B, H, shape.seqlen, sums ? shape.head_dim_qk : shape.head_dim_v}, v.scalar_type());
  const Tensor row_sums = empty(v, {B, H, tiles, shape.seqlen}, ScalarType::Float);
  const Tensor end_C = empty(v, {N, H, shape.head_dim_qk, shape.head_dim_v}, ScalarType::Float);
  const Tensor end_n = empty(v, {N, H, shape.head_dim_qk}, ScalarType::Float);
  const Tensor chunk_dots = empty(v, {B, H, slots, tiles}, ScalarType::Float);
  const Tensor start_dots = empty(v, {N, H, tiles}, ScalarType::Float);

  DeviceSession session(kOp, q);
  const cuda::MlstmGatesParams<float> gates = gate_params<float>(session, in, shape);
  session.check(cuda::mlstm_gates(gates, session.stream()));
  const auto view = [&](const Tensor& x) { return view_of<void>(session.in(x), x); };
  const AnyView of_q = view(q), of_k = view(k), of_v = view(v), of_dh = view(dh);
  cuda::MlstmWalkGradsParams p;
  p.output = kind;
  cuda::MlstmStatesParams<float>& states = p.states;
  states.shape = gates.shape, states.scale = scale, states.product = cuda::Product::bf16;
  states.chunk_size = L, states.gates = gates.out;
  states.backward = kind != cuda::OutputKind::dq;
  states.rows = states.backward ? of_q : of_k, states.columns = states.backward ? of_dh : of_v;
  states.iota = in_as<float>(session, iota), states.rho = in_as<float>(session, rho);
  states.start = {in_as<float>(session, C), in_as<float>(session, n), nullptr};
  states.end = {out_as<float>(session, end_C), out_as<float>(session, end_n), nullptr};
  states.forward_states = in_as<void>(session, forward_states);
  states.forward_normalisers = in_as<float>(session, forward_normalisers);
  states.final_state = {in_as<float>(session, final_C), in_as<float>(session, final_n), nullptr};
  states.initial_state = {in_as<float>(session, initial_C), in_as<float>(session, initial_n), nullptr};
  states.chunk_dots = out_as<float>(session, chunk_dots), states.start_dots = out_as<float>(session, start_dots);
  switch (kind) {
    case cuda::OutputKind::dq:
      p.X = of_dh, p.Y = of_v, p.Z = of_k, p.factor = of_q;
      break;
    case cuda::OutputKind::dk:
      p.X = of_v, p.Y = of_dh, p.Z = of_q, p.factor = of_k;
      break;
    default:
      p.X = of_k, p.Y = of_q, p.Z = of_dh;
  }
  p.out = view_of<void>(session.out(out), out);
  p.row_sums = out_as<float>(session, row_sums);
  cut_into_segments(states, static_cast<int>(segments), [&](int64_t count) { return allocate<float>(session, count); });
  session.check(cuda::mlstm_segment_states(states, session.stream()));
  session.check(cuda::mlstm_walk_grads(p, session.stream()));
  session.finish();
  return {out, row_sums, end_C, end_n, chunk_dots, start_dots};
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def(
      "mlstm_walk_grads(int output, Tensor q, Tensor k, Tensor v, Tensor dh, Tensor i, Tensor f, Tensor? initial_m, "
      "Tensor? cu_seqlens, Tensor? reset, Tensor iota, Tensor rho, Tensor? C, Tensor? n, Tensor? forward_states, "
      "Tensor? forward_normalisers, Tensor? final_C, Tensor? final_n, Tensor? initial_C, Tensor? initial_n, "
      "bool sigmoid_gate, float scale, int chunk_size, int segments) -> (Tensor out, Tensor row_sums, Tensor C, "
      "Tensor n, Tensor chunk_dots, Tensor start_dots)");
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_walk_grads", TORCH_BOX(&mlstm_walk_grads));
}

}  // namespace xlstm::ops
