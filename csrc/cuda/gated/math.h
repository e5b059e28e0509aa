#pragma once
// The arithmetic of core/activation.h on CUDA devices, for elements of T: in 16 bits the functions of the special
// function unit, whose errors are small beside the rounding of y. And a thread's pack of a row.
#include <initializer_list>

#include "core/activation.h"
#include "cuda/columns.h"
#include "cuda/device/device.h"
#include "cuda/packs.h"
#include "cuda/recurrent/cell_math.h"

namespace xlstm::cuda {

template <class T>
struct GatedMath {
  using Number = std::conditional_t<sizeof(T) == 8, double, float>;
  using Scalar = Number;

  XLSTM_DEVICE static Number splat(Number x) { return x; }
  XLSTM_DEVICE static Number abs(Number x) { return std::fabs(x); }
  XLSTM_DEVICE static Number exp_nonpositive(Number x) {
    if constexpr (sizeof(T) == 2) return device::exp2_approx(FastMath<T>::kLog2E * x);
    return std::exp(x);
  }
  XLSTM_DEVICE static Number inverse(Number x) {
    if constexpr (sizeof(T) == 8) return 1 / x;
    return device::reciprocal_approx(x);  // a division may call a function, and spills around it
  }
  XLSTM_DEVICE static Number tanh(Number x) { return CellMath<T>::tanh(x); }
  XLSTM_DEVICE static Number where(bool mask, Number yes, Number no) { return mask ? yes : no; }
};

// 16 bytes of a row, or what is left of it.
struct GatedPlace {
  int64_t feature, count;
  int64_t batch, token;

  template <class T>
  XLSTM_DEVICE bool has_all() const {
    return count >= device::Vector<T>::kCount;
  }

  template <class T>
  XLSTM_DEVICE T* of(const AnyView& x) const {
    return static_cast<T*>(const_cast<void*>(x.data)) + x.offset(batch, 0, token) + feature;
  }
};

template <class T>
XLSTM_DEVICE GatedPlace gated_place(const GatedShape& s, unsigned across) {
  const ColumnPlace place = column_place(across, device::Vector<T>::kCount);
  const unsigned row = static_cast<unsigned>(place.row), seqlen = static_cast<unsigned>(s.seqlen), batch = row / seqlen;
  return {place.feature, s.features - place.feature, batch, row - batch * seqlen};
}

// The packs of several rows at this place, all loads in flight together: the way is chosen once, not for each of them.
template <class T, int kRows>
XLSTM_DEVICE void load_packs(device::Vector<T> (&packs)[kRows], const T* const (&from)[kRows], int64_t count,
                             bool whole) {
  using P = device::Vector<T>;
  if (whole) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) packs[row] = device::load_whole(reinterpret_cast<const P*>(from[row]));
    return;
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) packs[row] = device::load_elements(from[row], count);
}

inline ColumnLaunch gated_launch(const char* name, const GatedShape& s, Type type, cudaStream_t stream) {
  return column_launch(name, s.tokens(), s.features, 16 / bytes_of(type), stream);
}

// Whether every row starts at a multiple of a pack. The last pack of a row may still not be whole.
inline bool gated_packs_fit(const GatedShape& s, std::initializer_list<const AnyView*> views) {
  for (const AnyView* x : views) {
    const int64_t count = 16 / bytes_of(x->type);
    if (s.tokens() > 1 && (x->batch % count != 0 || x->time % count != 0)) return false;
    if (reinterpret_cast<uintptr_t>(x->data) % 16 != 0) return false;
  }
  return true;
}

}  // namespace xlstm::cuda
