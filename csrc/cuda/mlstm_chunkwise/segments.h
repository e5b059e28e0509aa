#pragma once
// The cut of a sequence's chunks into segments, which blocks of the states kernel walk at the same time where
// sequences, heads and tiles are too few for a device.
#include <algorithm>

#include "cuda/types.h"

namespace xlstm::cuda {

struct Segment {
  int first, end;  // chunks of a sequence, in the order of time; equal: none
};

// Segment `index` of `segments`, in the order of time. All have the same number of chunks, but the last ones have what
// is left.
XLSTM_HOST_DEVICE inline Segment find_segment(int chunks, int segments, int index) {
  const int each = (chunks + segments - 1) / segments, first = index * each;
  return {first < chunks ? first : chunks, first + each < chunks ? first + each : chunks};
}

constexpr int kMaxSegments = 16;
constexpr int kLeastSegments = 3;       // almost all tokens are walked twice: with two nothing would be won
constexpr int kLeastSegmentChunks = 2;  // fewer save no more time than a second launch takes

// How many segments to cut into. blocks: those that walk whole sequences, at least one; room: those that a device holds
// at once; chunks: of a sequence, on average.
inline int choose_segments(int64_t blocks, int64_t room, int64_t chunks) {
  const int64_t most = std::min({int64_t{kMaxSegments}, room / blocks, chunks / kLeastSegmentChunks});
  if (most < kLeastSegments) return 1;
  const int64_t each = (chunks + most - 1) / most;
  return static_cast<int>((chunks + each - 1) / each);
}

}  // namespace xlstm::cuda
