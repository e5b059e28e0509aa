// large_block_step: a block of xLSTMLarge (arXiv 2503.13427) on a few tokens, in one op on a CPU. A decode step has
// little arithmetic: so many ops of their own would take longer than it.
#include <algorithm>
#include <initializer_list>

#include "core/gated.h"
#include "core/linear.h"
#include "core/mlstm_step.h"
#include "core/norm.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kName = "large_block_step";
constexpr ScalarType kFloat = ScalarType::Float;

// Weights are (out, in). Where k, v and o are missing q has the rows of all four, as i has those of f, and up_gate
// those of up.
struct LargeBlockCall {
  const Tensor x, norm_mlstm, q;
  const OptionalTensor k, v, o;
  const Tensor i, i_bias;
  const OptionalTensor f, f_bias;
  const Tensor multihead_norm, out_proj, norm_ffn, up_gate;
  const OptionalTensor up;
  const Tensor down, C, n, m;
  NormOptions norm;
  MlstmOptions cell;
  double cap = 0;  // of the gates; 0: none

  explicit LargeBlockCall(Arguments& a)
      : x(a.tensor()),
        norm_mlstm(a.tensor()),
        q(a.tensor()),
        k(a.optional()),
        v(a.optional()),
        o(a.optional()),
        i(a.tensor()),
        i_bias(a.tensor()),
        f(a.optional()),
        f_bias(a.optional()),
        multihead_norm(a.tensor()),
        out_proj(a.tensor()),
        norm_ffn(a.tensor()),
        up_gate(a.tensor()),
        up(a.optional()),
        down(a.tensor()),
        C(a.tensor()),
        n(a.tensor()),
        m(a.tensor()) {
    a.read(norm.eps), a.read(cell.eps), a.read(cell.scale), a.read(cap), a.read(cell.sigmoid_gate);
  }

  void check() const;
};

struct LargeBlockShape {
  int64_t batch, seqlen, features, heads, dim_qk, dim_v, inner;

  explicit LargeBlockShape(const LargeBlockCall& in)
      : batch(in.x.size(0)),
        seqlen(in.x.size(1)),
        features(in.x.size(2)),
        heads(in.C.size(1)),
        dim_qk(in.C.size(2)),
        dim_v(in.C.size(3)),
        inner(in.down.size(1)) {}

  int64_t rows() const { return batch * seqlen; }
  int64_t qk() const { return heads * dim_qk; }
  int64_t v() const { return heads * dim_v; }
  int64_t projected() const { return 2 * qk() + 2 * v(); }
};

void check_matrix(const char* name, const OptionalTensor& x, const Shape& shape) {
  check_shape(kName, name, x, shape);
  STD_TORCH_CHECK(!x || x->scalar_type() == kFloat, "large_block_step: ", name, " must be float32");
}

void LargeBlockCall::check() const {
  check_given(kName,
              {&x, &norm_mlstm, &q, &i, &i_bias, &multihead_norm, &out_proj, &norm_ffn, &up_gate, &down, &C, &n, &m});
  STD_TORCH_CHECK(x.dim() == 3 && C.dim() == 4 && down.dim() == 2,
                  "large_block_step: x, C and down must have 3, 4 and 2 dimensions");
  const LargeBlockShape s(*this);
  check_sizes(kName, kMaxElements,
              {{s.batch, s.seqlen, s.features},
               {s.batch, s.heads, s.dim_qk, s.dim_v},
               {s.features, s.inner},
               {s.heads, s.dim_qk, s.features},
               {s.heads, s.dim_v, s.features}});
  check_dims(kName, {s.features, s.heads, s.dim_qk, s.dim_v});
  STD_TORCH_CHECK(s.rows() >= 1 && s.rows() <= kFewRows, "large_block_step: takes 1 to 16 rows, got ", s.rows());
  const int64_t D = s.features, H = s.heads;
  check_matrix("x", x, {s.batch, s.seqlen, D});
  check_matrix("norm_mlstm", norm_mlstm, {D}), check_matrix("norm_ffn", norm_ffn, {D});
  check_matrix("multihead_norm", multihead_norm, {s.v()});
  STD_TORCH_CHECK(bool(k) == bool(v) && bool(k) == bool(o), "large_block_step: k, v and o go together");
  check_matrix("q", q, {k ? s.qk() : s.projected(), D}), check_matrix("k", k, {s.qk(), D});
  check_matrix("v", v, {s.v(), D}), check_matrix("o", o, {s.v(), D});
  STD_TORCH_CHECK(bool(f) == bool(f_bias), "large_block_step: f and its bias go together");
  check_matrix("i", i, {f ? H : 2 * H, D}), check_matrix("i_bias", i_bias, {f ? H : 2 * H});
  check_matrix("f", f, {H, D}), check_matrix("f_bias", f_bias, {H});
  check_matrix("out_proj", out_proj, {D, s.v()}), check_matrix("down", down, {D, s.inner});
  check_matrix("up_gate", up_gate, {up ? s.inner : 2 * s.inner, D}), check_matrix("up", up, {s.inner, D});
  check_matrix("C", C, {s.batch, H, s.dim_qk, s.dim_v}), check_matrix("n", n, {s.batch, H, s.dim_qk});
  check_matrix("m", m, {s.batch, H});
}

// Columns of all rows, as heads.
struct Columns {
  float* data;
  int64_t stride;  // of a row

  Columns from(int64_t column) const { return {data + column, stride}; }
};

template <class Session>
class LargeBlockStep {
 public:
  LargeBlockStep(Session& session, const LargeBlockCall& in)
      : session_(session), in_(in), s_(in), gate_stride_(2 * s_.heads) {}

  // y (B, S, D), and the next state.
  std::tuple<Tensor, Tensor, Tensor, Tensor> run() {
    const Tensor y = make({s_.batch, s_.seqlen, s_.features});
    const Tensor C = make({s_.batch, s_.heads, s_.dim_qk, s_.dim_v}), n = make({s_.batch, s_.heads, s_.dim_qk});
    const Tensor m = make({s_.batch, s_.heads});
    const Tensor& x = kept(session_, in_.x, as_contiguous(in_.x, kFloat));
    const Columns given{static_cast<float*>(const_cast<void*>(session_.in(x))), s_.features};
    const Columns middle = columns(s_.features);
    mlstm_layer(given, middle, C, n, m);
    feed_forward(middle, {out_as<float>(session_, y), s_.features});
    return {y, C, n, m};
  }

 private:
  // middle = x + mlstm_layer(norm(x))
  void mlstm_layer(Columns x, Columns middle, const Tensor& C, const Tensor& n, const Tensor& m) {
    const Columns normed = columns(s_.features), h = columns(s_.v()), gated = columns(s_.v());
    const Columns all = columns(s_.projected());
    const Columns q = all, k = q.from(s_.qk()), v = k.from(s_.qk()), o = v.from(s_.v());
    const Columns gates = columns(gate_stride_);
    norm(x, in_.norm_mlstm, normed);
    multiply(normed, {map(in_.q, q), map(in_.k, k), map(in_.v, v), map(in_.o, o), map(in_.i, gates, in_.i_bias),
                      map(in_.f, gates.from(s_.heads), in_.f_bias)});
    cell(q, k, v, capped(gates), h, C, n, m);
    norm_heads(h, o, gated);
    multiply(gated, {map(in_.out_proj, middle, {}, x)});
  }

  // y = middle + feed_forward(norm(middle))
  void feed_forward(Columns middle, Columns y) {
    const Columns normed = columns(s_.features), both = columns(2 * s_.inner), up = both.from(s_.inner);
    const Columns inner = columns(s_.inner);
    norm(middle, in_.norm_ffn, normed);
    multiply(normed, {map(in_.up_gate, both), map(in_.up, up)});
    GatedForwardParams p{};
    p.shape = {s_.batch, s_.seqlen, s_.inner}, p.activation = Activation::silu;
    p.gate = view(both, s_.inner), p.x = view(up, s_.inner), p.y = view(inner, s_.inner);
    session_.run(p);
    multiply(inner, {map(in_.down, y, {}, middle)});
  }

  // Pre-activations of the input gates, those of the forget gates behind them.
  Columns capped(Columns raw) {
    if (in_.cap == 0) return raw;
    const Columns y = columns(gate_stride_);
    GatedForwardParams p{};
    p.shape = {s_.batch, s_.seqlen, gate_stride_}, p.activation = Activation::soft_cap;
    p.cap = in_.cap, p.inverse_cap = 1 / in_.cap;
    p.gate = view(raw, gate_stride_), p.y = view(y, gate_stride_);
    session_.run(p);
    return y;
  }

  void cell(Columns q, Columns k, Columns v, Columns gates, Columns h, const Tensor& C, const Tensor& n,
            const Tensor& m) {
    MlstmStepParams<float> p{};
    p.shape = {s_.batch, s_.heads, s_.seqlen, s_.dim_qk, s_.dim_v, nullptr, s_.batch};
    p.options = in_.cell;
    p.q = heads<const float>(q, s_.dim_qk), p.k = heads<const float>(k, s_.dim_qk);
    p.v = heads<const float>(v, s_.dim_v), p.h = heads<float>(h, s_.dim_v);
    p.i = heads<const float>(gates, 1), p.f = heads<const float>(gates.from(s_.heads), 1);
    p.state = state<const float>(given(in_.C), given(in_.n), given(in_.m));
    p.next = state<float>(out_as<float>(session_, C), out_as<float>(session_, n), out_as<float>(session_, m));
    p.state_rows = s_.batch;
    session_.run(p);
  }

  // RMS norm of whole rows.
  void norm(Columns x, const Tensor& weight, Columns y) {
    NormForwardParams<float> p{};
    p.shape = {s_.batch, s_.seqlen, 1, s_.features}, p.options = in_.norm;
    p.options.rms = true;
    p.h = view(x, 0), p.y = view(y, 0), p.weight = given(weight);
    session_.run(p);
  }

  // Layer norm of each head, and the output gate.
  void norm_heads(Columns h, Columns gate, Columns y) {
    NormForwardParams<float> p{};
    p.shape = {s_.batch, s_.seqlen, s_.heads, s_.dim_v}, p.options = in_.norm;
    p.options.sigmoid = true;
    p.h = view(h, s_.dim_v), p.gate = view(gate, s_.dim_v), p.y = view(y, s_.dim_v);
    p.weight = given(in_.multihead_norm);
    session_.run(p);
  }

  // y = x W^T + bias + added; no map without a weight.
  FewRowsMap map(const OptionalTensor& weight, Columns y, const OptionalTensor& bias = {}, Columns added = {}) {
    FewRowsMap m;
    if (!weight) return m;
    const Tensor& w = kept(session_, *weight, as(*weight, kFloat));
    m.out = w.size(0), m.weight = {session_.in(w), Type::f32, 0, 0, w.stride(0)};
    m.y = view(y, 0);
    if (bias) m.bias = {given(*bias), Type::f32};
    if (added.data) m.added = view(added, 0);
    return m;
  }

  // Maps of all columns of x: together, since threads meet at the end of each pass over memory.
  void multiply(Columns x, std::initializer_list<FewRowsMap> maps) {
    FewRowsLinearParams p{s_.rows(), x.stride, view(x, 0)};
    std::copy(maps.begin(), maps.end(), p.maps);
    session_.run(p);
  }

  AnyView view(Columns x, int64_t head) const { return {x.data, Type::f32, s_.seqlen * x.stride, head, x.stride}; }

  template <class T>
  View<T> heads(Columns x, int64_t dim) const {
    return {x.data, s_.seqlen * x.stride, dim, x.stride};
  }

  template <class T>
  StepState<T> state(T* C, T* n, T* m) const {
    const int64_t row = s_.dim_v, head = s_.dim_qk * row;
    return {C, s_.heads * head, head, row, n, s_.qk(), s_.dim_qk, m, s_.heads, 1};
  }

  const float* given(const Tensor& x) { return contiguous_in<float>(session_, x, kFloat); }
  Tensor make(const Shape& shape) const { return empty(in_.x, shape, kFloat); }
  Columns columns(int64_t width) { return {out_as<float>(session_, session_.keep(make({s_.rows(), width}))), width}; }

  Session& session_;
  const LargeBlockCall& in_;
  const LargeBlockShape s_;
  const int64_t gate_stride_;
};

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor> large_block_step(Arguments& arguments) {
  const LargeBlockCall in(arguments);
  in.check();
  Session session(kName, in.x);
  const auto results = LargeBlockStep<Session>(session, in).run();
  session.finish();
  return results;
}

}  // namespace

XLSTM_CPU_OP(large_block_step,
             "Tensor x, Tensor norm_mlstm, Tensor q, Tensor? k, Tensor? v, Tensor? o, Tensor i, Tensor i_bias, "
             "Tensor? f, Tensor? f_bias, Tensor multihead_norm, Tensor out_proj, Tensor norm_ffn, Tensor up_gate, "
             "Tensor? up, Tensor down, Tensor C, Tensor n, Tensor m, float norm_eps, float eps, float scale, "
             "float gate_cap, bool sigmoid_gate",
             "(Tensor y, Tensor next_C, Tensor next_n, Tensor next_m)")

}  // namespace xlstm::ops
