#pragma once
// What the recurrent ops share: their checks, weights and states.
#include "core/recurrent.h"
#include "ops/arguments.h"
#include "ops/backends/session.h"
#include "ops/checks.h"

namespace xlstm::ops {

// The cell that an op was given by its number (xlstm_cuda/_ops.py, CELLS).
Cell cell_of(int64_t number);

inline bool has_normaliser(Cell cell) {
  return cell != Cell::lstm;
}

// max_dim: of a dimension that the kernels count.
void check_weights(const Tensor& R, const OptionalTensor& b, const RecurrentShape& s, int64_t max_dim);

// int64, contiguous. Each is in [0, S], where the values are on the CPU.
OptionalTensor checked_lengths(const OptionalTensor& lengths, const RecurrentShape& s);

// R with contiguous rows or contiguous columns: a layer may keep either, and a copy would cost more than a step.
Tensor as_weights(const Tensor& R, ScalarType type);

template <class T>
WeightView<const T> weight_view(const void* data, const Tensor& R) {
  const bool one = R.size(-1) == 1;  // a 1 x 1 matrix may come with any strides
  return {static_cast<const T*>(data), R.stride(0), R.stride(1), one ? 1 : R.stride(2), one ? 1 : R.stride(3)};
}

template <class T, class Session>
WeightView<const T> weights_in(Session& session, const Tensor& R) {
  const Tensor& weights = kept(session, R, as_weights(R, session.dtype_for(R)));
  return weight_view<T>(session.in(weights), weights);
}

// b (4, H, D), contiguous.
template <class T, class Session>
PointerOf<const T> bias_in(Session& session, const OptionalTensor& b) {
  if (!b) return {};
  const Tensor& bias = kept(session, *b, as_contiguous(*b, session.dtype_for(*b)));
  if constexpr (std::is_void_v<T>)
    return {session.in(bias), type_of(bias)};
  else
    return static_cast<const T*>(session.in(bias));
}

// An initial h in the precision of the outputs: the recurrence never sees more.
OptionalTensor rounded(const OptionalTensor& h, const Tensor& like);

// The four tensors of a state in the type of the arithmetic, contiguous; any may be absent.
struct State {
  OptionalTensor h, c, n, m;

  State(const OptionalTensor& h, const OptionalTensor& c, const OptionalTensor& n, const OptionalTensor& m,
        ScalarType type, const RecurrentShape& s, bool slstm);

  template <class T, class Session>
  RecurrentState<const T> params(Session& session) const {
    return {in_as<T>(session, h), in_as<T>(session, c), in_as<T>(session, n), in_as<T>(session, m)};
  }
};

// A state to be written; n and m have shape (0,) for the LSTM.
struct NewState {
  Tensor h, c, n, m;
  bool slstm;

  NewState(const Tensor& like, ScalarType type, const RecurrentShape& s, bool slstm);

  template <class T, class Session>
  RecurrentState<T> params(Session& session) const {
    return {out_as<T>(session, h), out_as<T>(session, c), slstm ? out_as<T>(session, n) : nullptr,
            slstm ? out_as<T>(session, m) : nullptr};
  }
};

}  // namespace xlstm::ops
