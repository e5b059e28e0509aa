#pragma once
// The arguments of the recurrent ops, checked and converted: the same for every backend.
#include "core/recurrent.h"
#include "ops/common.h"

namespace xlstm::ops {

// The cell that an op was given by its number (xlstm_cuda/_ops.py, CELLS).
Cell cell_of(int64_t number);

inline bool has_normaliser(Cell cell) {
  return cell != Cell::lstm;
}

void check_weights(const Tensor& R, const OptionalTensor& b, const RecurrentShape& s);

// The sLSTM divides by n. Reads the values: for CPU tensors of the compute type.
void check_normaliser(const OptionalTensor& n);

// R with contiguous rows or contiguous columns: a layer may keep either, and a copy would cost more than a step.
Tensor as_weights(const Tensor& R, ScalarType type);

template <class T>
WeightView<T> weight_view(T* data, const Tensor& R) {
  const bool one = R.size(-1) == 1;  // a 1 x 1 matrix may come with any strides
  return {data, R.stride(0), R.stride(1), one ? 1 : R.stride(2), one ? 1 : R.stride(3)};
}

// The x (B, 4, H, D) of a step.
template <class T>
GateView<T> token_view(T* data, const Tensor& x) {
  return {data, x.stride(0), 0, x.stride(1), x.stride(2)};
}

// An initial h in the precision of the outputs: the recurrence never sees more.
OptionalTensor rounded(const OptionalTensor& h, const Tensor& like);

// The four tensors of a state in the compute type, contiguous; any may be absent.
struct State {
  OptionalTensor h, c, n, m;

  State(const OptionalTensor& h, const OptionalTensor& c, const OptionalTensor& n, const OptionalTensor& m,
        ScalarType type, const RecurrentShape& s, bool slstm);

  template <class T>
  RecurrentState<const T> params() const {
    return {pointer<T>(h), pointer<T>(c), pointer<T>(n), pointer<T>(m)};
  }
};

// A state to be written; n and m have shape (0,) for the LSTM.
struct NewState {
  Tensor h, c, n, m;
  bool slstm;

  NewState(const Tensor& like, ScalarType type, const RecurrentShape& s, bool slstm);

  template <class T>
  RecurrentState<T> params() const {
    return {mutable_pointer<T>(h), mutable_pointer<T>(c), slstm ? mutable_pointer<T>(n) : nullptr,
            slstm ? mutable_pointer<T>(m) : nullptr};
  }
};

// (B, S, 4, H, D)
template <class T>
GateView<T> gate_view(T* data, const Tensor& x) {
  return {data, x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// int64, contiguous. Reads the values where they are on the CPU: each must be in [0, S].
OptionalTensor checked_lengths(const OptionalTensor& lengths, const RecurrentShape& s);

// recurrent_fwd.
struct RecurrentFwdCall {
  Cell cell;
  RecurrentShape shape;
  ScalarType type;  // of the arithmetic and of states
  bool slstm;

  RecurrentFwdCall(const Tensor& x, const Tensor& R, const OptionalTensor& b, const OptionalTensor& reset,
                   int64_t cell_number, int64_t reversed_heads);
};

// recurrent_bwd.
struct RecurrentBwdCall {
  Cell cell;
  RecurrentShape shape;
  ScalarType type;
  bool slstm;

  RecurrentBwdCall(const Tensor& dh, const Tensor& R, const Tensor& h, const Tensor& saved, const OptionalTensor& reset,
                   int64_t cell_number, int64_t reversed_heads);
};

// recurrent_step.
struct RecurrentStepCall {
  Cell cell;
  RecurrentShape shape;
  ScalarType type;  // of the arithmetic and of a new state
  bool slstm;

  RecurrentStepCall(const Tensor& x, const Tensor& R, const OptionalTensor& b, const Tensor& h, const Tensor& c,
                    const OptionalTensor& n, const OptionalTensor& m, int64_t cell_number);
};

}  // namespace xlstm::ops
