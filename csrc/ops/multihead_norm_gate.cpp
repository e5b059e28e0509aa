// multihead_norm_gate_fwd, multihead_norm_gate_bwd: norm over each head, weight, skip and output gate.
#include "core/norm.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kName = "multihead_norm_gate";

struct NormCall {
  const Tensor h;
  const OptionalTensor weight, bias, gate, skip, skip_weight;
  NormOptions options;

  explicit NormCall(Arguments& a)
      : h(a.tensor()),
        weight(a.optional()),
        bias(a.optional()),
        gate(a.optional()),
        skip(a.optional()),
        skip_weight(a.optional()) {
    options.rms = a.flag(), options.sigmoid = a.flag();
    a.read(options.eps), a.read(options.weight_offset);
  }

  NormShape checked_shape(int64_t max_dim) const {
    check_given(kName, {&h});
    check_float(kName, "h", h);
    STD_TORCH_CHECK(h.dim() == 4, "multihead_norm_gate: h must have shape (B, S, H, D), got ", shape_string(h));
    const NormShape s{h.size(0), h.size(1), h.size(2), h.size(3)};
    check_dims(kName, {s.heads, s.dim});
    check_sizes(kName, kMaxElements, {{s.batch, s.seqlen, s.heads, s.dim}});
    check_sizes(kName, max_dim, {{s.heads, s.dim}});
    for (const auto& [name, x] : {std::pair("weight", &weight), {"bias", &bias}, {"skip_weight", &skip_weight}}) {
      check_shape(kName, name, *x, {s.features()});
      if (*x) check_float(kName, name, **x);
    }
    for (const auto& [name, x] : {std::pair("gate", &gate), {"skip", &skip}}) check_like_h(name, *x, s);
    STD_TORCH_CHECK(skip || !skip_weight, "multihead_norm_gate: skip_weight needs skip");
    return s;
  }

  void check_like_h(const char* name, const OptionalTensor& x, const NormShape& s) const {
    check_shape(kName, name, x, {s.batch, s.seqlen, s.features()});
    STD_TORCH_CHECK(!x || x->scalar_type() == h.scalar_type(), "multihead_norm_gate: ", name,
                    " must have the dtype of h");
  }
};

// Memory laid out as x, (B, S, H, D) or (B, S, H D): kernels take and give elements of every type on every backend.
AnyView heads_view(const void* data, const Tensor& x, int64_t dim) {
  const int64_t head = x.dim() == 4 ? x.stride(2) : dim;
  return {data, type_of(x), x.stride(0), head, x.stride(1)};
}

template <class Session>
AnyView heads_in(Session& session, const OptionalTensor& x, const Tensor& h, int64_t dim) {
  if (!x) return {};
  const Tensor& rows = kept(session, *x, as(*x, h.scalar_type()));
  return heads_view(session.in(rows), rows, dim);
}

// All but y.
template <class T, class Session>
NormForwardParams<T> forward_params(Session& session, const NormCall& in, const NormShape& s) {
  NormForwardParams<T> p{};
  p.shape = s, p.options = in.options;
  p.h = heads_in(session, in.h, in.h, s.dim);
  p.weight = values_in<T>(session, in.weight), p.bias = values_in<T>(session, in.bias);
  p.gate = heads_in(session, in.gate, in.h, s.dim), p.skip = heads_in(session, in.skip, in.h, s.dim);
  p.skip_weight = values_in<T>(session, in.skip_weight);
  return p;
}

template <class Session>
Tensor multihead_norm_gate_fwd(Arguments& arguments) {
  const NormCall in(arguments);
  const NormShape s = in.checked_shape(Session::kMaxDim);
  Session session(kName, in.h);
  const Tensor y = empty(in.h, {s.batch, s.seqlen, s.features()}, in.h.scalar_type());
  session.with_types([&](auto data, auto) {
    auto p = forward_params<typename decltype(data)::Type>(session, in, s);
    p.y = heads_view(session.out(y), y, s.dim);
    session.run(p);
  });
  session.finish();
  return y;
}

// The gradient of an input in its dtype and shape, contiguous; without elements where there is no such input.
Tensor gradient_of(const Tensor& h, const OptionalTensor& x) {
  return empty(h, x ? Shape(x->sizes().begin(), x->sizes().end()) : Shape{0}, h.scalar_type());
}

template <class Session>
AnyView gradient_out(Session& session, const Tensor& x, int64_t dim) {
  if (x.dim() == 1) return {};
  return heads_view(session.out(x), x, dim);
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> multihead_norm_gate_bwd(Arguments& arguments) {
  const Tensor dy = arguments.tensor();
  const NormCall in(arguments);
  const NormShape s = in.checked_shape(Session::kMaxDim);
  check_given(kName, {&dy});
  check_shape(kName, "dy", dy, {s.batch, s.seqlen, s.features()});
  Session session(kName, in.h);
  const Tensor dh = gradient_of(in.h, in.h), dgate = gradient_of(in.h, in.gate), dskip = gradient_of(in.h, in.skip);
  const auto sum_of = [&](const OptionalTensor& x) { return empty(in.h, {x ? s.features() : 0}, compute_type(in.h)); };
  const Tensor sums[kNormSums] = {sum_of(in.weight), sum_of(in.bias), sum_of(in.skip_weight)};
  session.with_types([&](auto data, auto zero) {
    using T = typename decltype(data)::Type;
    using A = decltype(zero);
    NormBackwardParams<T, A> p{};
    p.forward = forward_params<T>(session, in, s);
    p.dy = heads_in(session, dy, in.h, s.dim), p.dh = gradient_out(session, dh, s.dim);
    p.dgate = gradient_out(session, dgate, s.dim), p.dskip = gradient_out(session, dskip, s.dim);
    for (int sum = 0; sum < kNormSums; ++sum) {
      if (sums[sum].size(0)) p.sums[sum] = out_as<A>(session, sums[sum]);
    }
    session.run(p);
  });
  session.finish();
  return std::tuple(dh, sums[kWeightSum], sums[kBiasSum], dgate, dskip, sums[kSkipWeightSum]);
}

}  // namespace

#define XLSTM_NORM_ARGUMENTS                                                                            \
  "Tensor h, Tensor? weight, Tensor? bias, Tensor? gate, Tensor? skip, Tensor? skip_weight, bool rms, " \
  "bool sigmoid, float eps, float weight_offset"

XLSTM_OP(multihead_norm_gate_fwd, XLSTM_NORM_ARGUMENTS, "Tensor")
XLSTM_OP(multihead_norm_gate_bwd, "Tensor dy, " XLSTM_NORM_ARGUMENTS,
         "(Tensor dh, Tensor dweight, Tensor dbias, Tensor dgate, Tensor dskip, Tensor dskip_weight)")

}  // namespace xlstm::ops
