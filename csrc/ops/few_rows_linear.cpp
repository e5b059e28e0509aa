// few_rows_linear: y = x W^T + b for a few rows, on a CPU.
#include "core/linear.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kName = "few_rows_linear";

struct FewRowsLinearCall {
  const Tensor x, weight;
  const OptionalTensor bias;

  explicit FewRowsLinearCall(Arguments& a) : x(a.tensor()), weight(a.tensor()), bias(a.optional()) {}

  void check() const {
    check_given(kName, {&x, &weight});
    check_float(kName, "x", x);
    STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "few_rows_linear: x must have at most 32 bits");
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) <= kFewRows, "few_rows_linear: x must have shape (M, I) with M at most ",
                    kFewRows, ", got ", shape_string(x));
    STD_TORCH_CHECK(weight.dim() == 2, "few_rows_linear: weight must have shape (O, I), got ", shape_string(weight));
    check_sizes(kName, kMaxElements, {{x.size(0), x.size(1)}, {weight.size(0), x.size(1)}});
    check_shape(kName, "weight", weight, {weight.size(0), x.size(1)});
    check_shape(kName, "bias", bias, {weight.size(0)});
    STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "few_rows_linear: weight must have the dtype of x");
    STD_TORCH_CHECK(!bias || bias->scalar_type() == x.scalar_type(), "few_rows_linear: bias must have the dtype of x");
  }
};

AnyView matrix_view(const void* data, const Tensor& x) {
  return {data, type_of(x), 0, 0, x.stride(0)};
}

template <class Session>
Tensor few_rows_linear(Arguments& arguments) {
  const FewRowsLinearCall in(arguments);
  in.check();
  Session session(kName, in.x);
  const auto matrix = [&](const Tensor& x) {
    const Tensor& rows = kept(session, x, as(x, x.scalar_type()));
    return matrix_view(session.in(rows), rows);
  };
  FewRowsLinearParams p{in.x.size(0), in.x.size(1), matrix(in.x)};
  FewRowsMap& map = p.maps[0];
  map.out = in.weight.size(0), map.weight = matrix(in.weight);
  if (in.bias) {
    const Tensor& bias = kept(session, *in.bias, as(*in.bias, in.bias->scalar_type()));
    map.bias = {session.in(bias), type_of(bias)};
  }
  const Tensor y = empty(in.x, {p.rows, map.out}, in.x.scalar_type());
  map.y = matrix_view(session.out(y), y);
  if (p.rows > 0 && map.out > 0) session.run(p);
  session.finish();
  return y;
}

}  // namespace

XLSTM_CPU_OP(few_rows_linear, "Tensor x, Tensor weight, Tensor? bias", "Tensor")

}  // namespace xlstm::ops
