#pragma once
// Sums of dh for two cells, and how parts of them are added up.
#include "cuda/recurrent/scan.h"
#include "cuda/recurrent/team.h"

namespace xlstm::cuda {

template <class A>
struct alignas(2 * sizeof(A)) RowPair {
  A x[2];
};

// Where rows `row` (even) and `row + 1` of a unit lie in shared memory: a warp writes and reads 8 units side by side.
XLSTM_DEVICE int pair_position(int unit, int row) {
  return unit * (kBatchTile / 2) + row / 2;
}

// What a thread reads: the sources of its helper.
struct Reader {
  int unit, row, helper;
  bool wanted;  // the cells exist
};

// Adds pair(source) of all sources of this helper.
template <int kHelpers, class A, class At>
XLSTM_DEVICE RowPair<A> sum_of_sources(int helper, int sources, At pair) {
  RowPair<A> sum{};
  sources -= XLSTM_MUTANT("resident_bwd: the last source left out");
#pragma unroll 8
  for (int source = helper; source < sources; source += kHelpers) {
    const RowPair<A> part = pair(source);
    sum.x[0] += part.x[0];
    sum.x[1] += part.x[1];
  }
  return sum;
}

}  // namespace xlstm::cuda
