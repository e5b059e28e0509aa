// Linear maps of small blocks, forward: a work item is a run of tokens. The weights stay in the cache.
#include "cpu/simd/headwise.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// (N, O, I) -> (I, N O)
template <class T>
void store_columns(T* to, const T* weight, const BlockSizes& s) {
  for (int64_t column = 0; column < s.width(); ++column) {
    for (int64_t i = 0; i < s.in; ++i) to[i * s.width() + column] = weight[column * s.in + i];
  }
}

template <class E, class T = ArithmeticOf<E>>
void map_run(const HeadwiseForwardParams<T>& p, int64_t run, const T* const* columns, const T* const* starts) {
  const HeadwiseShape& s = p.shape;
  for_tokens(run * kHeadwiseRun, min_of((run + 1) * kHeadwiseRun, s.tokens()), [&](auto count, int64_t token) {
    constexpr int kCount = decltype(count)::value;
    const TokenRows<const E, kCount> x(p.x, s, token);
    for (int map = 0; map < s.maps; ++map) {
      const BlockMap<E, kCount> forth{columns[map], x, {s.blocks, s.in, s.out[map]}};
      const TokenRows<E, kCount> y(p.y[map], s, token);
      with_block<T>(forth.sizes, [&](auto block) { map_rows<decltype(block)::value>(y, starts[map], &forth, 1); });
    }
  });
}

}  // namespace

template <class T>
void headwise_fwd(const HeadwiseForwardParams<T>& p, const Runtime& runtime) {
  const HeadwiseShape& s = p.shape;
  const auto place = [&](Arena& arena, T** columns, T** starts) {
    for (int map = 0; map < s.maps; ++map) {
      columns[map] = arena.take<T>(s.in * s.blocks * s.out[map]);
      starts[map] = arena.take<T>(s.blocks * s.out[map]);
    }
  };
  T *columns[kHeadwiseMaps], *starts[kHeadwiseMaps];
  Arena sizes;
  place(sizes, columns, starts);
  Arena arena(runtime.scratch(0, sizes.used()));
  place(arena, columns, starts);
  for (int map = 0; map < s.maps; ++map) {
    const int64_t width = s.blocks * s.out[map];
    store_columns(columns[map], p.weight[map], BlockSizes{s.blocks, s.in, s.out[map]});
    if (p.bias[map])
      scale_row<T>(starts[map], 1, p.bias[map], width);
    else
      fill_row<T>(starts[map], 0, width);
  }
  with_elements_of<T>(p.x.type, [&](auto element) {
    runtime.parallel(ceil_div(s.tokens(), kHeadwiseRun), headwise_grain(s, 1),
                     [&](int64_t run) { map_run<decltype(element)>(p, run, columns, starts); });
  });
}

template void headwise_fwd<float>(const HeadwiseForwardParams<float>&, const Runtime&);
template void headwise_fwd<double>(const HeadwiseForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
