// The gated activation, backward: dx = dy act(gate), dgate = dy x act'(gate); without x, dgate = dy act'(gate).
#include "cpu/simd/gated.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <Activation kActivation, class E>
void piece_bwd(const GatedBackwardParams& p, const GatedPiece& piece) {
  using T = ArithmeticOf<E>;
  using M = GatedMath<T>;
  const Cap<T> cap(p.forward);
  const E *gate = piece.of<const E>(p.forward.gate), *x = piece.of<const E>(p.forward.x);
  const E* dy = piece.of<const E>(p.dy);
  E *dgate = piece.of<E>(p.dgate), *dx = piece.of<E>(p.dx);
  for_gated_vectors<T>(piece, [&](int64_t j, int64_t lanes) {
    const Vec<T> g = load_elements(gate + j, lanes);
    const Activated<M> act = activated<kActivation, M>(g, cap);
    Vec<T> grad = load_elements(dy + j, lanes);
    if (x) {
      store_elements(dx + j, act.value * grad, lanes);
      grad *= load_elements(x + j, lanes);
    }
    store_elements(dgate + j, through_slope<kActivation, M>(g, act.slope, grad), lanes);
  });
}

}  // namespace

void gated_bwd(const GatedBackwardParams& p, const Runtime& runtime) {
  with_elements(p.forward.gate.type, [&](auto element) {
    with_activation(p.forward.activation, [&]<Activation kActivation>() {
      for_gated_pieces(p.forward.shape, runtime,
                       [&](const GatedPiece& piece) { piece_bwd<kActivation, decltype(element)>(p, piece); });
    });
  });
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
