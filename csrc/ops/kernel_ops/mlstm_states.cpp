// mlstm_states: the states between the chunks of the mLSTM by themselves, for tests and for whoever studies the kernel.
#include "cuda/mlstm_chunkwise/states.h"
#include "ops/kernel_ops/mlstm_vectors.h"
#include "ops/library.h"
#include "ops/mlstm.h"

namespace xlstm::ops {
namespace {

struct Outputs {
  Tensor states, normalisers, C, n, chunk_dots, start_dots;

  Outputs(const Tensor& like, cuda::Product product, cuda::TensorCores by, const MlstmShape& s, int64_t slots,
          bool backward) {
    const ScalarType A = product == cuda::Product::f64 ? ScalarType::Double : ScalarType::Float;
    const int64_t B = s.batch, H = s.num_heads, N = s.num_sequences, Dqk = s.head_dim_qk, Dv = s.head_dim_v;
    const int64_t tiles = backward ? cuda::states_cost(product, by, s).tiles : 0;
    states = empty(like, {B, H, slots, Dqk, Dv}, product == cuda::Product::bf16 ? ScalarType::BFloat16 : A);
    normalisers = empty(like, {B, H, slots, Dqk}, A);
    C = empty(like, {N, H, Dqk, Dv}, A), n = empty(like, {N, H, Dqk}, A);
    chunk_dots = empty(like, {B, H, slots, tiles}, A), start_dots = empty(like, {N, H, tiles}, A);
  }
};

// The forward pass's results, in the order in which mlstm_states returns them, and its initial state.
struct Forward {
  OptionalTensor states, normalisers, C, n, initial_C, initial_n;

  explicit operator bool() const { return states.has_value(); }
};

template <class A>
void run(const Tensor& rows, const Tensor& columns, const GateInputs& in, const OptionalTensor& iota,
         const OptionalTensor& rho, const OptionalTensor& C, const OptionalTensor& n, const Forward& forward,
         int segments, cuda::MlstmStatesParams<A> p, const Outputs& out) {
  DeviceSession session("mlstm_states", rows);
  const cuda::MlstmGatesParams<A> gates = gate_params<A>(session, in, p.shape);
  session.check(cuda::mlstm_gates(gates, session.stream()));
  p.shape = gates.shape, p.chunk_size = gates.chunk_size, p.gates = gates.out;
  p.rows = view_of<void>(session.in(rows), rows);
  p.columns = view_of<void>(session.in(columns), columns);
  p.iota = in_as<A>(session, iota), p.rho = in_as<A>(session, rho);
  p.start = {in_as<A>(session, C), in_as<A>(session, n), nullptr};
  p.end = {out_as<A>(session, out.C), out_as<A>(session, out.n), nullptr};
  p.states = session.out(out.states), p.normalisers = out_as<A>(session, out.normalisers);
  if (forward) {
    p.backward = true;
    p.forward_states = in_as<void>(session, forward.states);
    p.forward_normalisers = in_as<A>(session, forward.normalisers);
    p.initial_state = {in_as<A>(session, forward.initial_C), in_as<A>(session, forward.initial_n), nullptr};
    p.final_state = {in_as<A>(session, forward.C), in_as<A>(session, forward.n), nullptr};
    p.chunk_dots = out_as<A>(session, out.chunk_dots), p.start_dots = out_as<A>(session, out.start_dots);
  }
  cut_into_segments(p, segments, [&](int64_t count) { return allocate<A>(session, count); });
  session.check(cuda::mlstm_states(p, session.stream()));
  session.finish();
}

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Forward: rows, columns k, v and the initial state C, n. Backward, where the forward pass's results are given: q, dh
// and the gradients of the final state. All but i, f, rows and columns are
// contiguous and of the compute type.
Result mlstm_states(const Tensor& rows, const Tensor& columns, const Tensor& i, const Tensor& f,
                    OptionalTensor initial_m, OptionalTensor cu_seqlens, OptionalTensor reset, OptionalTensor C,
                    OptionalTensor n, OptionalTensor iota, OptionalTensor rho, OptionalTensor forward_states,
                    OptionalTensor forward_normalisers, OptionalTensor final_C, OptionalTensor final_n,
                    OptionalTensor initial_C, OptionalTensor initial_n, bool sigmoid_gate, double scale,
                    int64_t chunk_size, int64_t product, int64_t segments, int64_t by_) {
  NoGrad guard;
  const cuda::TensorCores by = tensor_cores_numbered("mlstm_states", by_);
  const cuda::Product P = product_numbered("mlstm_states", product);
  const ScalarType type = P == cuda::Product::f64 ? ScalarType::Double : ScalarType::Float;
  const GateInputs in = {i,
                         f,
                         as_contiguous(initial_m, type),
                         as_contiguous(cu_seqlens, ScalarType::Int),
                         as_contiguous(reset, ScalarType::Bool),
                         sigmoid_gate,
                         static_cast<int>(chunk_size)};
  const MlstmShape shape = in.shape(rows.size(3), columns.size(3));
  check_sizes("mlstm_states", shape);
  const int64_t slots = cuda::chunk_slots(shape, in.chunk_size);
  check_shape("mlstm_states", "rows", rows, {shape.batch, shape.num_heads, shape.seqlen, shape.head_dim_qk});
  check_shape("mlstm_states", "columns", columns, {shape.batch, shape.num_heads, shape.seqlen, shape.head_dim_v});
  const Forward forward = {forward_states, forward_normalisers, final_C, final_n, initial_C, initial_n};
  const Outputs out(rows, P, by, shape, slots, bool(forward));
  with_compute_type(type, [&](auto zero) {
    cuda::MlstmStatesParams<decltype(zero)> p;
    p.shape = shape, p.scale = scale, p.product = P, p.by = by;
    run(rows, columns, in, iota, rho, C, n, forward, static_cast<int>(segments), p, out);
  });
  return {out.states, out.normalisers, out.C, out.n, out.chunk_dots, out.start_dots};
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def(
      "mlstm_states(Tensor rows, Tensor columns, Tensor i, Tensor f, Tensor? initial_m, Tensor? cu_seqlens, "
      "Tensor? reset, Tensor? C, Tensor? n, Tensor? iota, Tensor? rho, Tensor? forward_states, "
      "Tensor? forward_normalisers, Tensor? final_C, Tensor? final_n, Tensor? initial_C, Tensor? initial_n, "
      "bool sigmoid_gate, float scale, int chunk_size, int product, int segments=1, int by=0) "
      "-> (Tensor states, Tensor normalisers, Tensor C, Tensor n, Tensor chunk_dots, Tensor start_dots)");
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_states", TORCH_BOX(&mlstm_states));
}

}  // namespace xlstm::ops
