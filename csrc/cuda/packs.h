#pragma once
// Neighbouring elements in one access where every row of a call starts at a multiple of their size, else one by one:
// that is asked once, before the launch.
#include "cuda/device/device.h"
#include "cuda/types.h"

namespace xlstm::cuda {

// Whether packs of so many elements are aligned in every row.
inline bool packs_fit(const AnyView& x, int64_t features, int64_t count) {
  const bool strides = x.batch % count == 0 && x.time % count == 0 && features % count == 0;
  return x.data == nullptr || (strides && reinterpret_cast<uintptr_t>(x.data) % (count * bytes_of(x.type)) == 0);
}

template <class P, class T>
XLSTM_DEVICE P load_pack(const T* from, int64_t count, bool whole) {
  if (whole) return device::load_whole(reinterpret_cast<const P*>(from));
  P pack;
#pragma unroll
  for (int c = 0; c < P::kCount; ++c) pack.x[c] = c < count ? from[c] : T{};
  return pack;
}

template <class P, class T>
XLSTM_DEVICE void store_pack(T* to, const P& pack, int64_t count, bool whole) {
  if (whole) {
    device::store_whole(reinterpret_cast<P*>(to), pack);
    return;
  }
#pragma unroll
  for (int c = 0; c < P::kCount; ++c) {
    if (c < count) to[c] = pack.x[c];
  }
}

}  // namespace xlstm::cuda
