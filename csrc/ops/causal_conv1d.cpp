// causal_conv1d_fwd, causal_conv1d_bwd: the causal depthwise convolution over time. causal_conv1d_step_: the same on a
// few tokens, over a state in place.
#include "core/conv.h"
#include "core/mlstm_step.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char *kName = "causal_conv1d", *kStepName = "causal_conv1d_step";

struct ConvTensors {
  Tensor x, weight;
  OptionalTensor bias, state, cu_seqlens, reset;

  explicit ConvTensors(Arguments& a)
      : x(a.tensor()),
        weight(a.tensor()),
        bias(a.optional()),
        state(a.optional()),
        cu_seqlens(a.optional()),
        reset(a.optional()) {}
};

// That cu_seqlens rises from 0 to S, where its values are on the CPU.
void check_bounds(const Tensor& cu_seqlens, int64_t seqlen) {
  if (!cu_seqlens.is_cpu()) return;
  const Tensor values = as_contiguous(cu_seqlens, ScalarType::Int);
  const int32_t* cu = pointer<int32_t>(values);
  const int64_t count = values.size(0) - 1;
  STD_TORCH_CHECK(cu[0] == 0 && cu[count] == seqlen, "causal_conv1d: cu_seqlens must go from 0 to S");
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK(cu[n] <= cu[n + 1], "causal_conv1d: cu_seqlens must not decrease");
  }
}

void check_sizes_of(const char* op, const ConvShape& s, int64_t max_dim) {
  check_dims(op, {s.features, s.taps});
  check_sizes(op, kMaxElements, {{s.batch, s.seqlen, s.features}, {s.num_sequences, s.taps, s.features}});
  check_sizes(op, kMaxWork, {{s.batch, s.seqlen, s.features, s.taps}});
  check_sizes(op, max_dim, {{s.features}, {s.taps}});
}

// Shape of a call, checked; without cu_seqlens: kernels get the pointer of their own memory.
ConvShape checked_shape(const ConvTensors& in, int64_t max_dim) {
  check_given(kName, {&in.x, &in.weight});
  for (const Tensor* t : {&in.x, &in.weight}) check_float(kName, "every input", *t);
  STD_TORCH_CHECK(in.x.dim() == 3, "causal_conv1d: x must have shape (B, S, F), got ", shape_string(in.x));
  STD_TORCH_CHECK(in.weight.dim() == 2, "causal_conv1d: weight must have shape (F, K), got ", shape_string(in.weight));
  ConvShape s{in.x.size(0), in.x.size(1), in.x.size(2), in.weight.size(1)};
  s.num_sequences = s.batch;
  if (in.cu_seqlens) {
    STD_TORCH_CHECK(in.cu_seqlens->dim() == 1 && in.cu_seqlens->size(0) > 0 && s.batch == 1,
                    "causal_conv1d: cu_seqlens must have shape (N + 1), with B = 1");
    s.num_sequences = in.cu_seqlens->size(0) - 1;
    check_bounds(*in.cu_seqlens, s.seqlen);
  }
  check_sizes_of(kName, s, max_dim);
  check_shape(kName, "weight", in.weight, {s.features, s.taps});
  check_shape(kName, "bias", in.bias, {s.features});
  check_shape(kName, "state", in.state, {s.num_sequences, s.past(), s.features});
  check_shape(kName, "reset", in.reset, {s.batch, s.seqlen});
  return s;
}

// All but the outputs and the state.
template <class T, class Session>
ConvForwardParams<T> forward_params(Session& session, const ConvTensors& in, const ConvShape& shape, bool silu) {
  ConvForwardParams<T> p{};
  p.shape = shape;
  p.shape.cu_seqlens = contiguous_in<int32_t>(session, in.cu_seqlens, ScalarType::Int);
  p.silu = silu;
  p.x = elements_in(session, in.x, in.x.scalar_type());
  p.weight = values_in<T>(session, in.weight), p.bias = values_in<T>(session, in.bias);
  p.reset = flags_in(session, in.reset);
  return p;
}

// A state counts as rounded to the dtype of x: the inputs that it stands for are.
template <class Session>
AnyView state_in(Session& session, const ConvTensors& in) {
  return in.state ? elements_in(session, *in.state, in.x.scalar_type()) : AnyView{};
}

template <class Session>
std::tuple<Tensor, Tensor> causal_conv1d_fwd(Arguments& arguments) {
  const ConvTensors in(arguments);
  const bool silu = arguments.flag();
  const ConvShape s = checked_shape(in, Session::kMaxDim);
  Session session(kName, in.x);
  const ScalarType dtype = in.x.scalar_type();
  const Tensor y = empty(in.x, {s.batch, s.seqlen, s.features}, dtype);
  const Tensor next = empty(in.x, {s.num_sequences, s.past(), s.features}, dtype);
  if (s.batch == 0) return std::tuple(y, next);  // before weights of any size are copied
  session.with_types([&](auto data, auto) {
    auto p = forward_params<typename decltype(data)::Type>(session, in, s, silu);
    p.state = state_in(session, in);
    p.y = elements_out(session, y), p.next = elements_out(session, next);
    session.run(p);
  });
  session.finish();
  return std::tuple(y, next);
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_bwd(Arguments& arguments) {
  const Tensor dy = arguments.tensor();
  const OptionalTensor dnext = arguments.optional();
  const ConvTensors in(arguments);
  const bool silu = arguments.flag();
  const ConvShape s = checked_shape(in, Session::kMaxDim);
  check_shape(kName, "dy", dy, {s.batch, s.seqlen, s.features});
  check_shape(kName, "dnext", dnext, {s.num_sequences, s.past(), s.features});
  const ScalarType type = compute_type(in.x), dtype = in.x.scalar_type();
  Session session(kName, in.x);
  const Tensor dx = empty(in.x, {s.batch, s.seqlen, s.features}, dtype);
  const Tensor dweight = empty(in.x, {s.features, s.taps}, type), dbias = empty(in.x, {s.features}, type);
  const Tensor dstate = empty(in.x, {s.num_sequences, s.past(), s.features}, type);
  session.with_types([&](auto data, auto zero) {
    using T = typename decltype(data)::Type;
    using A = decltype(zero);
    ConvBackwardParams<T, A> p{};
    p.forward = forward_params<T>(session, in, s, silu);
    p.forward.state = state_in(session, in);
    p.dy = elements_in(session, dy, dtype), p.dx = elements_out(session, dx);
    p.dnext = contiguous_in<A>(session, dnext, type);
    p.dweight = out_as<A>(session, dweight), p.dbias = out_as<A>(session, dbias);
    p.dstate = out_as<A>(session, dstate);
    session.run(p);
  });
  session.finish();
  return std::tuple(dx, dweight, dbias, dstate);
}

// x (B, S, F), or (B, F) for one token; the state (B, K - 1, F) is overwritten.
struct StepCall {
  const Tensor x, weight;
  const OptionalTensor bias;
  const Tensor state;
  const bool silu;

  explicit StepCall(Arguments& a)
      : x(a.tensor()), weight(a.tensor()), bias(a.optional()), state(a.tensor()), silu(a.flag()) {}

  bool has_time() const { return x.dim() == 3; }

  ConvShape checked_shape(int64_t max_dim) const {
    check_given(kStepName, {&x, &weight, &state});
    for (const Tensor* t : {&x, &weight}) check_float(kStepName, "every input", *t);
    STD_TORCH_CHECK((x.dim() == 2 || x.dim() == 3) && weight.dim() == 2,
                    "causal_conv1d_step: x must have shape (B, F) or (B, S, F), weight (F, K)");
    ConvShape s{x.size(0), has_time() ? x.size(1) : 1, x.size(-1), weight.size(1)};
    s.num_sequences = s.batch;
    check_sizes_of(kStepName, s, max_dim);
    STD_TORCH_CHECK(s.seqlen <= kMaxStepTokens, "causal_conv1d_step: takes at most 16 tokens, got ", s.seqlen);
    check_shape(kStepName, "weight", weight, {s.features, s.taps});
    check_shape(kStepName, "bias", bias, {s.features});
    check_shape(kStepName, "state", state, {s.batch, s.past(), s.features});
    STD_TORCH_CHECK(state.scalar_type() == x.scalar_type(), "causal_conv1d_step: x and state must share a dtype");
    STD_TORCH_CHECK(state.size(-1) <= 1 || state.stride(-1) == 1,
                    "causal_conv1d_step: an in-place state must have contiguous rows");
    check_own_memory(kStepName, {{"state", &state}});
    return s;
  }
};

template <class Session>
Tensor causal_conv1d_step_(Arguments& arguments) {
  const StepCall call(arguments);
  const ConvShape s = call.checked_shape(Session::kMaxDim);
  Session session(kStepName, call.x);
  const Tensor y = empty(call.x, Shape(call.x.sizes().begin(), call.x.sizes().end()), call.x.scalar_type());
  if (s.batch == 0) return y;  // before weights of any size are copied
  session.with_types([&](auto data, auto) {
    using T = typename decltype(data)::Type;
    ConvForwardParams<T> p{};
    p.shape = s, p.silu = call.silu;
    p.x = elements_in(session, call.x, call.x.scalar_type()), p.y = elements_out(session, y);
    p.weight = values_in<T>(session, call.weight), p.bias = values_in<T>(session, call.bias);
    p.state = p.next = time_view(session.inout(call.state), call.state);
    session.run(p);
  });
  session.finish();
  return y;
}

}  // namespace

#define XLSTM_CONV_TENSORS \
  "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? cu_seqlens, Tensor? reset, bool silu"

XLSTM_OP(causal_conv1d_fwd, XLSTM_CONV_TENSORS, "(Tensor y, Tensor next_state)")
XLSTM_OP(causal_conv1d_bwd, "Tensor dy, Tensor? dnext_state, " XLSTM_CONV_TENSORS,
         "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_state)")
XLSTM_OP(causal_conv1d_step_, "Tensor x, Tensor weight, Tensor? bias, Tensor(a!) state, bool silu", "Tensor")

}  // namespace xlstm::ops
