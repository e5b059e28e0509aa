// Linear maps of small blocks, backward: a work item is a run of tokens.
//
//   dx[n I + i] = sum of all maps of sum_o weight[n, o, i] dy[n O + o], a map of dy by the transposed blocks
//   dweight[n, o, i] = sum over tokens of dy[n O + o] x[n I + i]        dbias = sum over tokens of dy
//
// The sums of the runs are added up in the order of the runs: a result does not depend on the number of threads.
#include "cpu/simd/headwise.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

constexpr int64_t kSums = 1024;  // of a block that adds up

// (N, O, I) -> (O, N I), the columns of the transposed blocks.
template <class T>
void store_transposed(T* to, const T* weight, int64_t blocks, int64_t out, int64_t in) {
  for (int64_t n = 0; n < blocks; ++n) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) to[(o * blocks + n) * in + i] = weight[(n * out + o) * in + i];
    }
  }
}

// sums: of the run, for all maps, (I + 1, N O) each. zeros (N I).
template <class E, class T = ArithmeticOf<E>>
void run_grad(const HeadwiseBackwardParams<T>& p, int64_t run, const T* const* transposed, const T* zeros, T* sums) {
  const HeadwiseShape& s = p.forward.shape;
  fill_row<T>(sums, 0, s.all_sums());
  for_tokens(run * kHeadwiseRun, min_of((run + 1) * kHeadwiseRun, s.tokens()), [&](auto count, int64_t token) {
    using Map = BlockMap<E, decltype(count)::value>;
    using Rows = TokenRows<const E, decltype(count)::value>;
    const Rows x(p.forward.x, s, token), dy[] = {{p.dy[0], s, token}, {p.dy[s.maps - 1], s, token}};
    const Map back[] = {{transposed[0], dy[0], {s.blocks, s.out[0], s.in}},
                        {transposed[s.maps - 1], dy[1], {s.blocks, s.out[s.maps - 1], s.in}}};
    const TokenRows<E, decltype(count)::value> dx(p.dx, s, token);
    const BlockSizes& odd = back[back[0].sizes.in == s.in].sizes;  // a map that is not square, where there is one
    with_block<T>(odd, [&](auto block) { map_rows<decltype(block)::value>(dx, zeros, back, s.maps); });
    for (int map = 0; map < s.maps; ++map) {
      const BlockSizes forth{s.blocks, s.in, s.out[map]};
      T* own = sums + (map ? s.sums(0) : 0);
      with_block<T>(forth, [&](auto block) { add_products<decltype(block)::value>(own, dy[map], x, forth); });
    }
  });
}

// One sum of a map, (I + 1, N O), to its place among the gradients.
template <class T>
void store_sum(const HeadwiseBackwardParams<T>& p, int map, int64_t index, T sum) {
  const HeadwiseShape& s = p.forward.shape;
  const int64_t width = s.blocks * s.out[map], i = index / width, column = index % width;
  (i == s.in ? p.dbias[map][column] : p.dweight[map][column * s.in + i]) = sum;
}

template <class T>
void add_up(const HeadwiseBackwardParams<T>& p, const T* sums, int64_t runs, const Runtime& runtime) {
  const HeadwiseShape& s = p.forward.shape;
  const int64_t all = s.all_sums();
  const int64_t work = max_of(1, runs * min_of(all, kSums));
  runtime.parallel(ceil_div(all, kSums), ceil_div(int64_t{1} << 16, work), [&](int64_t block) {
    const int64_t from = block * kSums, count = min_of(kSums, all - from);
    T* total = static_cast<T*>(runtime.scratch(1, kSums * sizeof(T)));
    fill_row<T>(total, 0, count);
    for (int64_t run = 0; run < runs; ++run) axpby_row<T>(total, 1, 1, sums + run * all + from, count);
    for (int64_t c = 0; c < count; ++c) {
      const int64_t index = from + c, first = s.sums(0);
      store_sum(p, index >= first, index >= first ? index - first : index, total[c]);
    }
  });
}

}  // namespace

template <class T>
void headwise_bwd(const HeadwiseBackwardParams<T>& p, const Runtime& runtime) {
  const HeadwiseShape& s = p.forward.shape;
  const int64_t runs = ceil_div(s.tokens(), kHeadwiseRun), F = s.blocks * s.in;
  T *transposed[kHeadwiseMaps], *zeros, *sums;
  const auto place = [&](Arena& arena) {
    for (int map = 0; map < s.maps; ++map) transposed[map] = arena.take<T>(F * s.out[map]);
    zeros = arena.take<T>(F), sums = arena.take<T>(runs * s.all_sums());
  };
  Arena sizes;
  place(sizes);
  Arena arena(runtime.scratch(0, sizes.used()));
  place(arena);
  fill_row<T>(zeros, 0, F);
  for (int map = 0; map < s.maps; ++map) {
    store_transposed(transposed[map], p.forward.weight[map], s.blocks, s.out[map], s.in);
  }
  with_elements_of<T>(p.dx.type, [&](auto element) {
    runtime.parallel(runs, headwise_grain(s, 2), [&](int64_t run) {
      run_grad<decltype(element)>(p, run, transposed, zeros, sums + run * s.all_sums());
    });
  });
  add_up(p, sums, runs, runtime);
}

template void headwise_bwd<float>(const HeadwiseBackwardParams<float>&, const Runtime&);
template void headwise_bwd<double>(const HeadwiseBackwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
