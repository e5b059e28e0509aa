#pragma once
// What forward and backward of the gated activation share: the arithmetic, and the cut into pieces of rows.
#include "core/activation.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/math.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

template <class T>
struct GatedMath {
  using Scalar = T;
  using Number = Vec<T>;
  using Mask = IntVec<T>;

  XLSTM_INLINE_MEMBER static Number splat(T x) { return XLSTM_SIMD_LEVEL::splat<T>(x); }
  XLSTM_INLINE_MEMBER static Number abs(Number x) { return XLSTM_SIMD_LEVEL::abs<T>(x); }
  XLSTM_INLINE_MEMBER static Number exp_nonpositive(Number x) { return XLSTM_SIMD_LEVEL::exp_nonpositive<T>(x); }
  XLSTM_INLINE_MEMBER static Number inverse(Number x) { return quotient<T>(splat(1), x); }
  XLSTM_INLINE_MEMBER static Number tanh(Number x) { return XLSTM_SIMD_LEVEL::tanh<T>(x); }
  XLSTM_INLINE_MEMBER static Number where(Mask mask, Number yes, Number no) { return select<T>(mask, yes, no); }
};

constexpr int64_t kGatedPiece = 4096;  // features

// A piece of one row, and where it lies in a view.
struct GatedPiece {
  int64_t batch, token, feature, count;

  GatedPiece(const GatedShape& s, int64_t index) {
    const int64_t pieces = ceil_div(s.features, kGatedPiece), row = index / pieces;
    batch = row / s.seqlen, token = row % s.seqlen;
    feature = index % pieces * kGatedPiece;
    count = min_of(kGatedPiece, s.features - feature);
  }

  template <class E>
  E* of(const AnyView& x) const {
    E* row = row_of<E>(x, batch, 0, token);
    return row ? row + feature : nullptr;
  }
};

// Calls f(offset, lanes) for each vector of a piece. Not for_vectors: for so many types and activations one copy of f
// is enough, and asking in it for the last lanes costs nothing beside an exponential.
template <class T, class F>
XLSTM_INLINE void for_gated_vectors(const GatedPiece& piece, F f) {
  for (int64_t j = 0; j < piece.count; j += kLanes<T>) f(j, min_of(kLanes<T>, piece.count - j));
}

// f(piece) for all of them, on the host's threads.
template <class F>
void for_gated_pieces(const GatedShape& s, const Runtime& runtime, F f) {
  if (s.features == 0) return;
  const int64_t count = s.tokens() * ceil_div(s.features, kGatedPiece);
  runtime.parallel(count, ceil_div(int64_t{1} << 14, min_of(kGatedPiece, s.features)),
                   [&](int64_t index) { f(GatedPiece(s, index)); });
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
