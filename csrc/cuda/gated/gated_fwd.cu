// The gated activation, forward (docs/kernels/gated.md): a thread has 16 bytes of a row. y = act(gate) x, or act(gate).
#include "cuda/gated/gated.h"
#include "cuda/gated/math.h"

namespace xlstm::cuda {
namespace {

using namespace device;

template <class T>
__global__ void __launch_bounds__(kColumnThreads) gated_fwd(GatedForwardParams p, unsigned across, bool whole) {
  using M = GatedMath<T>;
  using A = typename M::Number;
  const GatedPlace place = gated_place<T>(p.shape, across);
  if (place.count <= (XLSTM_MUTANT("gated_activation_fwd: the last pack of a row is left out") ? Vector<T>::kCount : 0))
    return;
  whole = whole && place.has_all<T>();
  const bool gated = p.x.data != nullptr;
  Vector<T> in[2], y;  // gate and x; without x the gate again
  load_packs<T>(in, {place.of<const T>(p.gate), place.of<const T>(gated ? p.x : p.gate)}, place.count, whole);
  with_activation(p.activation, [&]<Activation kActivation>() {
    const Cap<A> cap(p);
#pragma unroll
    for (int c = 0; c < Vector<T>::kCount; ++c) {
      const A value = activated<kActivation, M>(widen<A>(in[0].x[c]), cap).value;
      y.x[c] = narrow<T>(gated ? value * widen<A>(in[1].x[c]) : value);
    }
  });
  store_pack(place.of<T>(p.y), y, place.count, whole);
}

}  // namespace

cudaError_t run(const GatedForwardParams& p, const Allocator&, cudaStream_t stream) {
  if (p.shape.tokens() == 0 || p.shape.features == 0) return cudaSuccess;
  const ColumnLaunch l = gated_launch("gated_activation fwd", p.shape, p.gate.type, stream);
  if (l.refused != cudaSuccess) return l.refused;
  const bool fit = gated_packs_fit(p.shape, {&p.gate, &p.x, &p.y});
  const bool whole = fit || XLSTM_MUTANT("gated_activation_fwd: whole packs in rows that are not aligned");
  return with_type(p.gate.type, [&]<class T>() { return launch(l.launch, gated_fwd<T>, p, l.across, whole); });
}

}  // namespace xlstm::cuda
