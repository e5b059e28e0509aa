// headwise_linear_fwd, headwise_linear_bwd: one or two linear maps of small blocks of the same features.
#include "core/headwise.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kName = "headwise_linear";

struct HeadwiseTensors {
  const Tensor x;
  const OptionalTensor weight[kHeadwiseMaps];

  explicit HeadwiseTensors(Arguments& a) : x(a.tensor()), weight{a.tensor(), a.optional()} {}

  HeadwiseShape checked_shape(int64_t max_dim) const {
    check_given(kName, {&x, &*weight[0]});
    check_float(kName, "x", x);
    STD_TORCH_CHECK(x.dim() == 3, "headwise_linear: x must have shape (B, S, N I), got ", shape_string(x));
    STD_TORCH_CHECK(weight[0]->dim() == 3, "headwise_linear: weight must have shape (N, O, I), got ",
                    shape_string(*weight[0]));
    HeadwiseShape s{x.size(0), x.size(1), weight[0]->size(0), weight[0]->size(2)};
    s.maps = weight[1] ? 2 : 1;
    check_dims(kName, {s.blocks, s.in});
    for (int map = 0; map < s.maps; ++map) s.out[map] = checked_out(map, s, max_dim);
    check_sizes(kName, kMaxElements, {{s.batch, s.seqlen, s.blocks, s.in}});
    check_shape(kName, "x", x, {s.batch, s.seqlen, s.blocks * s.in});
    STD_TORCH_CHECK(s.in <= kHeadwiseBlock, "headwise_linear: blocks must have at most 16 features, got ", s.in);
    return s;
  }

 private:
  int64_t checked_out(int map, const HeadwiseShape& s, int64_t max_dim) const {
    const Tensor& w = *weight[map];
    check_float(kName, "weight", w);
    STD_TORCH_CHECK(w.dim() == 3, "headwise_linear: weight must have shape (N, O, I), got ", shape_string(w));
    const int64_t out = w.size(1);
    check_dims(kName, {out});
    check_sizes(kName, max_dim, {{s.blocks, out, s.in}});
    check_sizes(kName, kMaxElements, {{s.batch, s.seqlen, s.blocks, out}});
    check_shape(kName, "weight", w, {s.blocks, out, s.in});
    STD_TORCH_CHECK(out <= kHeadwiseBlock, "headwise_linear: blocks must have at most 16 features, got ", out);
    return out;
  }
};

// x and the weights.
template <class T, class Session>
HeadwiseForwardParams<T> forward_params(Session& session, const HeadwiseTensors& in, const HeadwiseShape& shape) {
  HeadwiseForwardParams<T> p{};
  p.shape = shape;
  p.x = elements_in(session, in.x, in.x.scalar_type());
  for (int map = 0; map < shape.maps; ++map) p.weight[map] = values_in<T>(session, in.weight[map]);
  return p;
}

// (B, S, N O) of each map; without elements where there is no such map.
Tensor output_of(const Tensor& x, const HeadwiseShape& s, int map) {
  return empty(x, map < s.maps ? Shape{s.batch, s.seqlen, s.blocks * s.out[map]} : Shape{0}, x.scalar_type());
}

template <class Session>
std::tuple<Tensor, Tensor> headwise_linear_fwd(Arguments& arguments) {
  const HeadwiseTensors in(arguments);
  const OptionalTensor bias[kHeadwiseMaps] = {arguments.optional(), arguments.optional()};
  const HeadwiseShape s = in.checked_shape(Session::kMaxDim);
  STD_TORCH_CHECK(s.maps == 2 || !bias[1], "headwise_linear: a bias needs a weight");
  for (int map = 0; map < s.maps; ++map) {
    check_shape(kName, "bias", bias[map], {s.blocks * s.out[map]});
    if (bias[map]) check_float(kName, "bias", *bias[map]);
  }
  Session session(kName, in.x);
  const Tensor y[kHeadwiseMaps] = {output_of(in.x, s, 0), output_of(in.x, s, 1)};
  session.with_types([&](auto data, auto) {
    using T = typename decltype(data)::Type;
    auto p = forward_params<T>(session, in, s);
    for (int map = 0; map < s.maps; ++map) {
      p.bias[map] = values_in<T>(session, bias[map]);
      p.y[map] = elements_out(session, y[map]);
    }
    session.run(p);
  });
  session.finish();
  return std::tuple(y[0], y[1]);
}

template <class Session>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> headwise_linear_bwd(Arguments& arguments) {
  const OptionalTensor dy[kHeadwiseMaps] = {arguments.tensor(), arguments.optional()};
  const HeadwiseTensors in(arguments);
  const HeadwiseShape s = in.checked_shape(Session::kMaxDim);
  check_given(kName, {&*dy[0]});
  STD_TORCH_CHECK(dy[1].has_value() == (s.maps == 2), "headwise_linear: every map must have a gradient of its output");
  for (int map = 0; map < s.maps; ++map) {
    check_shape(kName, "dy", dy[map], {s.batch, s.seqlen, s.blocks * s.out[map]});
  }
  Session session(kName, in.x);
  const ScalarType type = compute_type(in.x), dtype = in.x.scalar_type();
  const Tensor dx = empty(in.x, {s.batch, s.seqlen, s.blocks * s.in}, dtype);
  const auto sums = [&](int map, const Shape& shape) { return empty(in.x, map < s.maps ? shape : Shape{0}, type); };
  const Tensor dweight[kHeadwiseMaps] = {sums(0, {s.blocks, s.out[0], s.in}), sums(1, {s.blocks, s.out[1], s.in})};
  const Tensor dbias[kHeadwiseMaps] = {sums(0, {s.blocks * s.out[0]}), sums(1, {s.blocks * s.out[1]})};
  session.with_types([&](auto data, auto zero) {
    using T = typename decltype(data)::Type;
    using A = decltype(zero);
    HeadwiseBackwardParams<T, A> p{};
    p.forward = forward_params<T>(session, in, s);
    p.dx = elements_out(session, dx);
    for (int map = 0; map < s.maps; ++map) {
      p.dy[map] = elements_in(session, *dy[map], dtype);
      p.dweight[map] = out_as<A>(session, dweight[map]), p.dbias[map] = out_as<A>(session, dbias[map]);
    }
    session.run(p);
  });
  session.finish();
  return std::tuple(dx, dweight[0], dweight[1], dbias[0], dbias[1]);
}

}  // namespace

XLSTM_OP(headwise_linear_fwd, "Tensor x, Tensor weight0, Tensor? weight1, Tensor? bias0, Tensor? bias1",
         "(Tensor y0, Tensor y1)")
XLSTM_OP(headwise_linear_bwd, "Tensor dy0, Tensor? dy1, Tensor x, Tensor weight0, Tensor? weight1",
         "(Tensor dx, Tensor dweight0, Tensor dweight1, Tensor dbias0, Tensor dbias1)")

}  // namespace xlstm::ops
