// mlstm_outputs: h, dq, dk or dv of the chunkwise mLSTM from the states at the borders of its chunks, by itself, for
// tests and for reading the kernels.
#include "cuda/mlstm_chunkwise/outputs.h"
#include "ops/kernel_ops/mlstm_vectors.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kOp = "mlstm_outputs";

cuda::OutputKind output_numbered(int64_t number) {
  const bool known = number >= 0 && number <= static_cast<int64_t>(cuda::OutputKind::dv);
  STD_TORCH_CHECK(known, kOp, ": output must be 0 (h), 1 (dq), 2 (dk) or 3 (dv), got ", number);
  return static_cast<cuda::OutputKind>(number);
}

struct Inputs {
  Tensor X, Y, Z;
  GateInputs gates;
  Tensor states, normalisers;
  OptionalTensor iota, rho, factor;
};

// per_token: r of h, row sums of dq and dk.
template <class A>
void run(const Inputs& in, cuda::MlstmOutputsParams<A> p, const Tensor& out, const Tensor& per_token) {
  DeviceSession session(kOp, in.X);
  const cuda::MlstmGatesParams<A> gates = gate_params<A>(session, in.gates, p.shape);
  session.check(cuda::mlstm_gates(gates, session.stream()));
  p.shape.cu_seqlens = gates.shape.cu_seqlens;
  p.gates = gates.out;
  p.X = view_of<void>(session.in(in.X), in.X);
  p.Y = view_of<void>(session.in(in.Y), in.Y);
  p.Z = view_of<void>(session.in(in.Z), in.Z);
  p.out = view_of<void>(session.out(out), out);
  p.states = session.in(in.states);
  p.normalisers = static_cast<const A*>(session.in(in.normalisers));
  p.iota = in_as<A>(session, in.iota);
  p.rho = in_as<A>(session, in.rho);
  if (in.factor) p.factor = view_of<void>(session.in(*in.factor), *in.factor);
  A* values = out_as<A>(session, per_token);
  if (p.output == cuda::OutputKind::h) p.r = values;
  if (in.factor) p.row_sums = values;
  session.check(cuda::mlstm_outputs(p, session.stream()));
  session.finish();
}

std::tuple<Tensor, Tensor> mlstm_outputs(int64_t output, int64_t product, const Tensor& X, const Tensor& Y,
                                         const Tensor& Z, const Tensor& i, const Tensor& f, OptionalTensor initial_m,
                                         OptionalTensor cu_seqlens, OptionalTensor reset, const Tensor& states,
                                         const Tensor& normalisers, OptionalTensor iota, OptionalTensor rho,
                                         OptionalTensor factor, bool sigmoid_gate, bool normalize, double scale,
                                         double eps, int64_t chunk_size, bool outer_state_is_zero, int64_t by_) {
  NoGrad guard;
  const cuda::TensorCores by = tensor_cores_numbered(kOp, by_);
  STD_TORCH_CHECK(X.dim() == 4 && Z.dim() == 4 && states.dim() == 5, kOp, ": X, Z and states have 4, 4, 5 dimensions");
  const cuda::OutputKind kind = output_numbered(output);
  const cuda::Product arithmetic = product_numbered(kOp, product);
  const int64_t B = X.size(0), H = X.size(1), S = X.size(2), a = X.size(3), b = Z.size(3);
  const bool by_v = kind == cuda::OutputKind::h || kind == cuda::OutputKind::dv;
  const ScalarType type = compute_type(X);
  const int L = static_cast<int>(chunk_size);
  const GateInputs gates = {i,
                            f,
                            as_contiguous(initial_m, type),
                            as_contiguous(cu_seqlens, ScalarType::Int),
                            as_contiguous(reset, ScalarType::Bool),
                            sigmoid_gate,
                            L};
  const MlstmShape shape = gates.shape(by_v ? a : b, by_v ? b : a);
  const Inputs in = {
      X,     Y, Z, gates, states, as_contiguous(normalisers, type), as_contiguous(iota, type), as_contiguous(rho, type),
      factor};
  check_shape(kOp, "states", states, {B, H, cuda::chunk_slots(shape, L), shape.head_dim_qk, shape.head_dim_v});
  check_shape(kOp, "Y", Y, {B, H, S, a});

  const Tensor out = empty(X, {B, H, S, b}, X.scalar_type());
  const int64_t tiles = kind == cuda::OutputKind::h ? 1 : factor ? cuda::mlstm_outputs_column_tiles(arithmetic, b) : 0;
  const Tensor per_token = empty(X, {B, H, tiles, S}, type);
  with_compute_type(type, [&](auto zero) {
    cuda::MlstmOutputsParams<decltype(zero)> p;
    p.shape = shape, p.options = {.sigmoid_gate = sigmoid_gate, .normalize = normalize, .scale = scale, .eps = eps};
    p.product = arithmetic, p.output = kind, p.chunk_size = L;
    p.by = by;
    p.outer_state_is_zero = outer_state_is_zero;
    run(in, p, out, per_token);
  });
  return {out, per_token};
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def(
      "mlstm_outputs(int output, int product, Tensor X, Tensor Y, Tensor Z, Tensor i, Tensor f, Tensor? initial_m, "
      "Tensor? cu_seqlens, Tensor? reset, Tensor states, Tensor normalisers, Tensor? iota, Tensor? rho, "
      "Tensor? factor, bool sigmoid_gate, bool normalize, float scale, float eps, int chunk_size, "
      "bool outer_state_is_zero, int by=0) -> (Tensor out, Tensor per_token)");
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_outputs", TORCH_BOX(&mlstm_outputs));
}

}  // namespace xlstm::ops
