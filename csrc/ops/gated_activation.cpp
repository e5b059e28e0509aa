// gated_activation_fwd, gated_activation_bwd: act(gate) x. soft_cap_fwd, soft_cap_bwd: the same kernels without x.
#include <cmath>
#include <initializer_list>

#include "core/gated.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

// Both: the rows of an op are (B, S, F), or (B, S, 2 F) where they hold gate and value.
void check_rows(const char* op, const Tensor& x) {
  check_given(op, {&x});
  check_float(op, "x", x);
  STD_TORCH_CHECK(x.dim() == 3, op, ": x must have three dimensions, got ", shape_string(x));
  check_sizes(op, kMaxElements, {{x.size(0), x.size(1), x.size(2)}});
}

Shape shape_of(const Tensor& x) {
  return Shape(x.sizes().begin(), x.sizes().end());
}

// The half of it that starts with this feature.
AnyView half_of(AnyView x, int64_t feature) {
  x.data = static_cast<const char*>(x.data) + feature * bytes_of(x.type);
  return x;
}

// The same elements as one long row, where the rows of all views lie one after the other without a gap.
GatedShape in_one_row(const GatedShape& s, std::initializer_list<const AnyView*> views) {
  for (const AnyView* x : views) {
    if (x->data == nullptr) continue;
    if (s.seqlen > 1 && x->time != s.features) return s;
    if (s.batch > 1 && x->batch != s.seqlen * s.features) return s;
  }
  return {1, 1, s.tokens() * s.features};
}

constexpr const char* kName = "gated_activation";

struct GatedCall {
  const Tensor x;
  const OptionalTensor gate;
  const int64_t activation;

  explicit GatedCall(Arguments& a) : x(a.tensor()), gate(a.optional()), activation(a.integer()) {}

  GatedShape checked_shape() const {
    check_rows(kName, x);
    STD_TORCH_CHECK(activation >= 0 && activation < kGateActivations, "gated_activation: no activation ", activation);
    STD_TORCH_CHECK(gate || x.size(2) % 2 == 0, "gated_activation: x must have shape (B, S, 2 F), got ",
                    shape_string(x));
    if (gate) {
      check_shape(kName, "gate", *gate, shape_of(x));
      STD_TORCH_CHECK(gate->scalar_type() == x.scalar_type(), "gated_activation: gate must have the dtype of x");
    }
    return {x.size(0), x.size(1), gate ? x.size(2) : x.size(2) / 2};
  }

  // All but y.
  template <class Session>
  GatedForwardParams params(Session& session, const GatedShape& shape) const {
    GatedForwardParams p{shape, static_cast<Activation>(activation)};
    const AnyView rows = elements_in(session, x, x.scalar_type());
    p.gate = gate ? elements_in(session, *gate, x.scalar_type()) : rows;
    p.x = gate ? rows : half_of(rows, shape.features);
    return p;
  }
};

template <class Session>
Tensor gated_activation_fwd(Arguments& arguments) {
  const GatedCall in(arguments);
  const GatedShape s = in.checked_shape();
  Session session(kName, in.x);
  const Tensor y = empty(in.x, {s.batch, s.seqlen, s.features}, in.x.scalar_type());
  GatedForwardParams p = in.params(session, s);
  p.y = elements_out(session, y);
  p.shape = in_one_row(s, {&p.gate, &p.x, &p.y});
  session.run(p);
  session.finish();
  return y;
}

template <class Session>
std::tuple<Tensor, Tensor> gated_activation_bwd(Arguments& arguments) {
  const Tensor dy = arguments.tensor();
  const GatedCall in(arguments);
  const GatedShape s = in.checked_shape();
  check_given(kName, {&dy});
  check_shape(kName, "dy", dy, {s.batch, s.seqlen, s.features});
  Session session(kName, in.x);
  const ScalarType dtype = in.x.scalar_type();
  const Tensor dx = empty(in.x, shape_of(in.x), dtype);
  const Tensor dgate = empty(in.x, in.gate ? shape_of(in.x) : Shape{0}, dtype);
  GatedBackwardParams p{in.params(session, s), elements_in(session, dy, dtype)};
  const AnyView rows = elements_out(session, dx);
  p.dgate = in.gate ? elements_out(session, dgate) : rows;
  p.dx = in.gate ? rows : half_of(rows, s.features);
  p.forward.shape = in_one_row(s, {&p.forward.gate, &p.forward.x, &p.dy, &p.dgate, &p.dx});
  session.run(p);
  session.finish();
  return std::tuple(dx, dgate);
}

constexpr const char* kCapName = "soft_cap";

struct CapCall {
  const Tensor x;
  double cap = 0;

  explicit CapCall(Arguments& a) : x(a.tensor()) { a.read(cap); }

  void check() const {
    check_rows(kCapName, x);
    STD_TORCH_CHECK(cap > 0 && std::isfinite(cap), "soft_cap: cap must be positive and finite");
  }

  template <class Session>
  GatedForwardParams params(Session& session) const {
    GatedForwardParams p{{x.size(0), x.size(1), x.size(2)}, Activation::soft_cap, cap, 1 / cap};
    p.gate = elements_in(session, x, x.scalar_type());
    return p;
  }
};

template <class Session>
Tensor soft_cap_fwd(Arguments& arguments) {
  const CapCall in(arguments);
  in.check();
  Session session(kCapName, in.x);
  const Tensor y = empty(in.x, shape_of(in.x), in.x.scalar_type());
  GatedForwardParams p = in.params(session);
  p.y = elements_out(session, y);
  p.shape = in_one_row(p.shape, {&p.gate, &p.y});
  session.run(p);
  session.finish();
  return y;
}

template <class Session>
Tensor soft_cap_bwd(Arguments& arguments) {
  const Tensor dy = arguments.tensor();
  const CapCall in(arguments);
  in.check();
  check_given(kCapName, {&dy});
  check_shape(kCapName, "dy", dy, shape_of(in.x));
  Session session(kCapName, in.x);
  const Tensor dx = empty(in.x, shape_of(in.x), in.x.scalar_type());
  GatedBackwardParams p{in.params(session), elements_in(session, dy, in.x.scalar_type())};
  p.dgate = elements_out(session, dx);
  p.forward.shape = in_one_row(p.forward.shape, {&p.forward.gate, &p.dy, &p.dgate});
  session.run(p);
  session.finish();
  return dx;
}

}  // namespace

XLSTM_OP(gated_activation_fwd, "Tensor x, Tensor? gate, int activation", "Tensor")
XLSTM_OP(gated_activation_bwd, "Tensor dy, Tensor x, Tensor? gate, int activation", "(Tensor dx, Tensor dgate)")
XLSTM_OP(soft_cap_fwd, "Tensor x, float cap", "Tensor")
XLSTM_OP(soft_cap_bwd, "Tensor dy, Tensor x, float cap", "Tensor")

}  // namespace xlstm::ops
