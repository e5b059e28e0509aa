#pragma once
// The cut of batch rows into chunks, and the slot of each chunk. The values kept per chunk (states, gate values) lie
// in (B, H, slots); a block of a chunk-parallel kernel asks find_chunk which tokens its slot stands for.
//
// Without cu_seqlens slot c of a row is its chunk c. With cu_seqlens (batch 1) sequence n owns the slots from
// floor(cu[n] / L) + n on, with L = chunk_size. They are enough: with r = cu[n] mod L,
//   first_slot(n + 1) - first_slot(n) = 1 + floor((r + len) / L) >= 1 + floor(len / L) >= ceil(len / L),
// so nothing has to be summed over sequences, and the last one ends at floor(S / L) + N. At most one slot per sequence
// is left unused: it has no tokens, and what is kept per chunk is not written there.
#include "core/mlstm_chunkwise.h"

namespace xlstm::cuda {

struct Chunk {
  int64_t sequence;    // row of the states (N, H, ...)
  int64_t begin, end;  // tokens of the batch row; equal: an unused slot
  bool first, last;    // of its sequence
};

struct Sequence {
  int64_t row, begin, end;  // tokens [begin, end) of batch row `row`
};

XLSTM_HOST_DEVICE inline Sequence find_sequence(const MlstmShape& shape, int64_t sequence) {
  if (!shape.cu_seqlens) return {sequence, 0, shape.seqlen};
  return {0, shape.cu_seqlens[sequence], shape.cu_seqlens[sequence + 1]};
}

// Slots of one head of one batch row.
XLSTM_HOST_DEVICE inline int64_t chunk_slots(const MlstmShape& shape, int chunk_size) {
  if (shape.cu_seqlens) return shape.seqlen / chunk_size + shape.num_sequences;
  return (shape.seqlen + chunk_size - 1) / chunk_size;
}

// Slot of a sequence's first chunk; those of its other chunks follow.
XLSTM_HOST_DEVICE inline int64_t first_slot(const MlstmShape& shape, int chunk_size, int64_t sequence) {
  return shape.cu_seqlens ? shape.cu_seqlens[sequence] / chunk_size + sequence : 0;
}

// The sequence that owns a slot of batch row `row`: the last one whose first slot is not after it.
XLSTM_HOST_DEVICE inline int64_t owner_of_slot(const MlstmShape& shape, int chunk_size, int64_t row, int64_t slot) {
  if (!shape.cu_seqlens) return row;
  int64_t low = 0, high = shape.num_sequences;  // first_slot(low) <= slot < first_slot(high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (first_slot(shape, chunk_size, middle) <= slot ? low : high) = middle;
  }
  return low;
}

XLSTM_HOST_DEVICE inline Chunk find_chunk(const MlstmShape& shape, int chunk_size, int64_t row, int64_t slot) {
  const int64_t sequence = owner_of_slot(shape, chunk_size, row, slot);
  const Sequence tokens = find_sequence(shape, sequence);
  const int64_t index = slot - first_slot(shape, chunk_size, sequence);
  const int64_t begin = tokens.begin + index * chunk_size, left = tokens.end - begin;
  if (left <= 0) return {sequence, tokens.end, tokens.end, false, false};
  return {sequence, begin, begin + (left < chunk_size ? left : chunk_size), index == 0, left <= chunk_size};
}

}  // namespace xlstm::cuda
