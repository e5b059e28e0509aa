// mlstm_outputs: h, dq, dk or dv of the chunkwise mLSTM from the states at the borders of its chunks, by itself, for
// tests and for reading the kernels.
#include "cuda/mlstm_chunkwise/outputs.h"
#include "ops/device/session.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kOp = "mlstm_outputs";

template <class T>
T choice(const char* what, const std::string& text, std::initializer_list<std::pair<const char*, T>> choices) {
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
  }
  STD_TORCH_CHECK(false, kOp, ": there is no ", what, " '", text, "'");
  return {};
}

cuda::Output output_of(const std::string& text) {
  using cuda::Output;
  return choice<Output>("output", text, {{"h", Output::h}, {"dq", Output::dq}, {"dk", Output::dk}, {"dv", Output::dv}});
}

cuda::Product product_of(const std::string& text) {
  using cuda::Product;
  return choice<Product>(
      "product", text,
      {{"bf16", Product::bf16}, {"tf32", Product::tf32}, {"tf32x3", Product::tf32x3}, {"f64", Product::f64}});
}

struct Inputs {
  Tensor X, Y, Z, i, f;
  OptionalTensor m0, cu_seqlens, reset;
  Tensor states, normalisers;
  OptionalTensor iota, rho, factor;
};

cuda::AnyView token_view(const void* data, const Tensor& x) {
  return {data, type_of(x), x.stride(0), x.stride(1), x.stride(2)};
}

template <class A>
cuda::GateVectors<A> workspace(Session& session, const MlstmShape& shape, int64_t slots) {
  const int64_t rows = shape.batch * shape.num_heads, tokens = rows * shape.seqlen;
  const auto take = [&]<class T>(T*, int64_t count) {
    return static_cast<T*>(session.workspace(static_cast<size_t>(count) * sizeof(T)));
  };
  using Pair = cuda::Pair<A>;
  cuda::GateVectors<A> gates;
  gates.y = take(gates.y, tokens), gates.z = take(gates.z, tokens);
  gates.m = take(gates.m, tokens), gates.start = take(gates.start, tokens);
  gates.M = take(static_cast<Pair*>(nullptr), rows * slots), gates.g_bar = take(static_cast<A*>(nullptr), rows * slots);
  return gates;
}

template <class A>
cuda::GateVectors<A> run_gates(Session& session, const Inputs& in, const MlstmShape& shape, bool sigmoid_gate, int L) {
  cuda::MlstmGatesArguments<A> p;
  p.shape = shape, p.sigmoid_gate = sigmoid_gate, p.chunk_size = L;
  p.i = token_view(session.in(in.i), in.i);
  p.f = token_view(session.in(in.f), in.f);
  if (in.reset) p.reset = {session.in_as<bool>(in.reset), in.reset->stride(0), in.reset->stride(1)};
  p.m0 = session.in_as<A>(in.m0);
  p.out = workspace<A>(session, shape, cuda::chunk_slots(shape, L));
  p.m_final =
      static_cast<A*>(session.workspace(sizeof(A) * static_cast<size_t>(shape.num_sequences * shape.num_heads)));
  session.check(cuda::mlstm_gates(p, session.stream()));
  return p.out;
}

// per_token: r of h, row sums of dq and dk.
template <class A>
void run(const Inputs& in, cuda::MlstmOutputsArguments<A> p, const Tensor& out, const Tensor& per_token) {
  Session session(kOp, in.X);
  p.shape.cu_seqlens = session.in_as<int32_t>(in.cu_seqlens);
  p.gates = run_gates<A>(session, in, p.shape, p.options.sigmoid_gate, p.chunk_size);
  p.X = token_view(session.in(in.X), in.X);
  p.Y = token_view(session.in(in.Y), in.Y);
  p.Z = token_view(session.in(in.Z), in.Z);
  p.out = token_view(session.out(out), out);
  p.states = session.in(in.states);
  p.normalisers = static_cast<const A*>(session.in(in.normalisers));
  p.iota = session.in_as<A>(in.iota);
  p.rho = session.in_as<A>(in.rho);
  if (in.factor) p.factor = token_view(session.in(*in.factor), *in.factor);
  A* values = session.out_as<A>(per_token);
  if (p.output == cuda::Output::h) p.r = values;
  if (in.factor) p.row_sums = values;
  session.check(cuda::mlstm_outputs(p, session.stream()));
  session.finish();
}

std::tuple<Tensor, Tensor> mlstm_outputs(std::string output, std::string product, const Tensor& X, const Tensor& Y,
                                         const Tensor& Z, const Tensor& i, const Tensor& f, OptionalTensor m0,
                                         OptionalTensor cu_seqlens, OptionalTensor reset, const Tensor& states,
                                         const Tensor& normalisers, OptionalTensor iota, OptionalTensor rho,
                                         OptionalTensor factor, bool sigmoid_gate, bool normalize, double scale,
                                         double eps, int64_t chunk_size, bool outer_state_is_zero) {
  NoGrad guard;
  STD_TORCH_CHECK(X.dim() == 4 && Z.dim() == 4 && states.dim() == 5, kOp, ": X, Z and states have 4, 4, 5 dimensions");
  const cuda::Output kind = output_of(output);
  const cuda::Product arithmetic = product_of(product);
  const int64_t B = X.size(0), H = X.size(1), S = X.size(2), a = X.size(3), b = Z.size(3);
  const bool by_v = kind == cuda::Output::h || kind == cuda::Output::dv;
  MlstmShape shape = {B, H, S, by_v ? a : b, by_v ? b : a};
  shape.num_sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : B;
  const ScalarType type = compute_type(X);
  const Inputs in = {X,
                     Y,
                     Z,
                     i,
                     f,
                     as_contiguous(m0, type),
                     as_contiguous(cu_seqlens, ScalarType::Int),
                     as_contiguous(reset, ScalarType::Bool),
                     states,
                     as_contiguous(normalisers, type),
                     as_contiguous(iota, type),
                     as_contiguous(rho, type),
                     factor};
  MlstmShape counted = shape;
  counted.cu_seqlens = pointer<int32_t>(in.cu_seqlens);  // only looked at whether there is one
  const int L = static_cast<int>(chunk_size);
  check_shape(kOp, "states", states, {B, H, cuda::chunk_slots(counted, L), shape.head_dim_qk, shape.head_dim_v});
  check_shape(kOp, "Y", Y, {B, H, S, a});

  const Tensor out = empty(X, {B, H, S, b}, X.scalar_type());
  const int64_t tiles = kind == cuda::Output::h ? 1 : factor ? cuda::mlstm_outputs_column_tiles(arithmetic, b) : 0;
  const Tensor per_token = empty(X, {B, H, tiles, S}, type);
  with_compute_type(type, [&](auto zero) {
    cuda::MlstmOutputsArguments<decltype(zero)> p;
    p.shape = shape, p.options = {sigmoid_gate, normalize, true, scale, eps, 0};
    p.product = arithmetic, p.output = kind, p.chunk_size = L;
    p.outer_state_is_zero = outer_state_is_zero;
    run(in, p, out, per_token);
  });
  return {out, per_token};
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def(
      "mlstm_outputs(str output, str product, Tensor X, Tensor Y, Tensor Z, Tensor i, Tensor f, Tensor? m0, "
      "Tensor? cu_seqlens, Tensor? reset, Tensor states, Tensor normalisers, Tensor? iota, Tensor? rho, "
      "Tensor? factor, bool sigmoid_gate, bool normalize, float scale, float eps, int chunk_size, "
      "bool outer_state_is_zero) -> (Tensor out, Tensor per_token)");
}

XLSTM_DEVICE_LIBRARY_IMPL(m) {
  m.impl("mlstm_outputs", TORCH_BOX(&mlstm_outputs));
}

}  // namespace xlstm::ops
