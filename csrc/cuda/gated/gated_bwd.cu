// The gated activation, backward (docs/kernels/gated.md): a thread has 16 bytes of a row.
//
//   dx = dy act(gate)        dgate = dy x act'(gate), or without x dy act'(gate)
#include "cuda/gated/gated.h"
#include "cuda/gated/math.h"

namespace xlstm::cuda {
namespace {

using namespace device;

template <class T>
__global__ void __launch_bounds__(kColumnThreads) gated_bwd(GatedBackwardParams p, unsigned across, bool whole) {
  using M = GatedMath<T>;
  using A = typename M::Number;
  const GatedForwardParams& in = p.forward;
  const GatedPlace place = gated_place<T>(in.shape, across);
  if (place.count <= (XLSTM_MUTANT("gated_activation_bwd: the last pack of a row is left out") ? Vector<T>::kCount : 0))
    return;
  whole = whole && place.has_all<T>();
  const bool gated = in.x.data != nullptr;
  const AnyView& other = gated ? in.x : in.gate;
  Vector<T> from[3], dgate, dx{};  // gate, dy and x; without x the gate again
  load_packs<T>(from, {place.of<const T>(in.gate), place.of<const T>(p.dy), place.of<const T>(other)}, place.count,
                whole);
  with_activation(in.activation, [&]<Activation kActivation>() {
    const Cap<A> cap(in);
#pragma unroll
    for (int c = 0; c < Vector<T>::kCount; ++c) {
      const A g = widen<A>(from[0].x[c]);
      const Activated<M> act = activated<kActivation, M>(g, cap);
      A grad = widen<A>(from[1].x[c]);
      if (gated) {
        dx.x[c] = narrow<T>(act.value * grad);
        if (!XLSTM_MUTANT("gated_activation_bwd: dgate is that of x = 1")) grad *= widen<A>(from[2].x[c]);
      }
      dgate.x[c] = narrow<T>(through_slope<kActivation, M>(g, act.slope, grad));
    }
  });
  store_pack(place.of<T>(p.dgate), dgate, place.count, whole);
  if (gated) store_pack(place.of<T>(p.dx), dx, place.count, whole);
}

}  // namespace

cudaError_t run(const GatedBackwardParams& p, const Allocator&, cudaStream_t stream) {
  const GatedShape& s = p.forward.shape;
  if (s.tokens() == 0 || s.features == 0) return cudaSuccess;
  const ColumnLaunch l = gated_launch("gated_activation bwd", s, p.dy.type, stream);
  if (l.refused != cudaSuccess) return l.refused;
  const bool fit = gated_packs_fit(s, {&p.forward.gate, &p.forward.x, &p.dy, &p.dgate, &p.dx});
  const bool whole = fit || XLSTM_MUTANT("gated_activation_bwd: whole packs in rows that are not aligned");
  return with_type(p.dy.type, [&]<class T>() { return launch(l.launch, gated_bwd<T>, p, l.across, whole); });
}

}  // namespace xlstm::cuda
