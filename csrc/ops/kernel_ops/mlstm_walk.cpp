// mlstm_walk: the forward pass of the chunkwise mLSTM in one walk, by itself, for tests and for whoever studies the
// kernel.
#include "cuda/mlstm_chunkwise/walk.h"
#include "ops/kernel_ops/mlstm_vectors.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kOp = "mlstm_walk";

struct Outputs {
  Tensor h, r, C, n, states, normalisers;

  Outputs(const Tensor& v, const MlstmShape& s, int64_t slots) {
    const int64_t B = s.batch, H = s.num_heads, N = s.num_sequences, Dqk = s.head_dim_qk, Dv = s.head_dim_v;
    h = empty(v, {B, H, s.seqlen, Dv}, v.scalar_type());
    r = empty(v, {B, H, s.seqlen}, ScalarType::Float);
    C = empty(v, {N, H, Dqk, Dv}, ScalarType::Float), n = empty(v, {N, H, Dqk}, ScalarType::Float);
    states = empty(v, {B, H, slots, Dqk, Dv}, v.scalar_type());
    normalisers = empty(v, {B, H, slots, Dqk}, ScalarType::Float);
  }
};

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// C, n: the initial state. keep: states that enter chunks are stored; else
// they stay as they were allocated. All in bfloat16 but the states, which are float32, and the gates.
Result mlstm_walk(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& i, const Tensor& f,
                  OptionalTensor initial_m, OptionalTensor cu_seqlens, OptionalTensor reset, OptionalTensor C,
                  OptionalTensor n, bool sigmoid_gate, bool normalize, double scale, double eps, int64_t chunk_size,
                  int64_t segments, bool keep) {
  NoGrad guard;
  STD_TORCH_CHECK(q.dim() == 4 && v.dim() == 4, kOp, ": q and v have 4 dimensions");
  const int L = static_cast<int>(chunk_size);
  const GateInputs in = {i,
                         f,
                         as_contiguous(initial_m, ScalarType::Float),
                         as_contiguous(cu_seqlens, ScalarType::Int),
                         as_contiguous(reset, ScalarType::Bool),
                         sigmoid_gate,
                         L};
  const MlstmShape shape = in.shape(q.size(3), v.size(3));
  check_shape(kOp, "k", k, {shape.batch, shape.num_heads, shape.seqlen, shape.head_dim_qk});
  const Outputs out(v, shape, cuda::chunk_slots(shape, L));

  DeviceSession session(kOp, q);
  const cuda::MlstmGatesParams<float> gates = gate_params<float>(session, in, shape);
  session.check(cuda::mlstm_gates(gates, session.stream()));
  cuda::MlstmWalkParams p;
  cuda::MlstmStatesParams<float>& states = p.states;
  states.shape = gates.shape, states.scale = scale, states.product = cuda::Product::bf16;
  states.chunk_size = L, states.gates = gates.out;
  states.rows = view_of<void>(session.in(k), k), states.columns = view_of<void>(session.in(v), v);
  const OptionalTensor initial_C = as_contiguous(C, ScalarType::Float), initial_n = as_contiguous(n, ScalarType::Float);
  states.start = {in_as<float>(session, initial_C), in_as<float>(session, initial_n), nullptr};
  states.end = {out_as<float>(session, out.C), out_as<float>(session, out.n), nullptr};
  void* const kept_states = session.out(out.states);
  auto* const kept_normalisers = out_as<float>(session, out.normalisers);
  if (keep) states.states = kept_states, states.normalisers = kept_normalisers;
  p.options.sigmoid_gate = sigmoid_gate, p.options.normalize = normalize;
  p.options.scale = scale, p.options.eps = eps;
  p.q = view_of<void>(session.in(q), q);
  p.h = view_of<void>(session.out(out.h), out.h);
  p.r = out_as<float>(session, out.r);
  cut_into_segments(states, static_cast<int>(segments), [&](int64_t count) { return allocate<float>(session, count); });
  session.check(cuda::mlstm_walk(p, session.stream()));
  session.finish();
  return {out.h, out.r, out.C, out.n, out.states, out.normalisers};
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def(
      "mlstm_walk(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor? initial_m, Tensor? cu_seqlens, "
      "Tensor? reset, Tensor? C, Tensor? n, bool sigmoid_gate, bool normalize, float scale, float eps, int chunk_size, "
      "int segments, bool keep) -> (Tensor h, Tensor r, Tensor C, Tensor n, Tensor states, Tensor normalisers)");
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_walk", TORCH_BOX(&mlstm_walk));
}

}  // namespace xlstm::ops
