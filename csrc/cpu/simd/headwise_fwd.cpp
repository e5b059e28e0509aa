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

template <class T>
void map_run(const HeadwiseForwardParams<T>& p, int64_t run, const T* const* columns, const T* const* starts) {
  const HeadwiseShape& s = p.shape;
  const int64_t end = min_of((run + 1) * kHeadwiseRun, s.tokens());
  for (int64_t token = run * kHeadwiseRun; token < end; token += kHeadwiseTokens) {
    const int count = static_cast<int>(min_of(kHeadwiseTokens, end - token));
    const TokenRows<const T> x = token_rows(p.x, s, token, count);
    for (int map = 0; map < s.maps; ++map) {
      const BlockSizes sizes{s.blocks, s.in, s.out[map]};
      const TokenRows<T> y = token_rows(p.y[map], s, token, count);
      with_block<T>(sizes, [&](auto block) {
        map_rows<T, decltype(block)::value>(y, starts[map], columns[map], x, count, sizes);
      });
    }
  }
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
  runtime.parallel(ceil_div(s.tokens(), kHeadwiseRun), headwise_grain(s, 1),
                   [&](int64_t run) { map_run(p, run, columns, starts); });
}

template void headwise_fwd<float>(const HeadwiseForwardParams<float>&, const Runtime&);
template void headwise_fwd<double>(const HeadwiseForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
