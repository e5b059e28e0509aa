#pragma once
// The state of a hidden unit in memory, for all kernels of the scans.
#include "cuda/device/device.h"
#include "cuda/recurrent/cells.h"

namespace xlstm::cuda {

// Of a (B, H, D) state; null: the empty state.
template <class A>
XLSTM_DEVICE UnitState<A> load_unit_state(const RecurrentState<const void>& from, int64_t at) {
  const A *c = static_cast<const A*>(from.c), *n = static_cast<const A*>(from.n), *m = static_cast<const A*>(from.m);
  return {c ? c[at] : A{0}, n ? n[at] : A{0}, m ? m[at] : A{0}};
}

template <class A>
XLSTM_DEVICE void store_unit_state(const RecurrentState<void>& to, int64_t at, const UnitState<A>& state) {
  static_cast<A*>(to.c)[at] = state.c;
  if (to.n) static_cast<A*>(to.n)[at] = state.n;
  if (to.m) static_cast<A*>(to.m)[at] = state.m;
}

}  // namespace xlstm::cuda
