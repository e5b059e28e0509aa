// The gated activation, forward: y = act(gate) x, or act(gate).
#include "cpu/simd/gated.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <Activation kActivation, class E>
void piece_fwd(const GatedForwardParams& p, const GatedPiece& piece) {
  using T = ArithmeticOf<E>;
  const Cap<T> cap(p);
  const E *gate = piece.of<const E>(p.gate), *x = piece.of<const E>(p.x);
  E* y = piece.of<E>(p.y);
  for_gated_vectors<T>(piece, [&](int64_t j, int64_t lanes) {
    Vec<T> value = activated<kActivation, GatedMath<T>>(load_elements(gate + j, lanes), cap).value;
    if (x) value *= load_elements(x + j, lanes);
    store_elements(y + j, value, lanes);
  });
}

}  // namespace

void gated_fwd(const GatedForwardParams& p, const Runtime& runtime) {
  with_elements(p.gate.type, [&](auto element) {
    with_activation(p.activation, [&]<Activation kActivation>() {
      for_gated_pieces(p.shape, runtime,
                       [&](const GatedPiece& piece) { piece_fwd<kActivation, decltype(element)>(p, piece); });
    });
  });
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
