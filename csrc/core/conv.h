#pragma once
// Parameters of the causal depthwise convolution over time, on every backend, and its cut into runs of tokens.
//
//   p[t] = bias + sum_d weight[:, K - 1 - d] x[t - d], d = 0 .. K - 1;   y[t] = p[t], or silu(p[t]) = p[t]
//   sigmoid(p[t])
//
// d is the distance of a token from one that sees it. Inputs before the first token are those of the state.
#include "core/view.h"

namespace xlstm {

struct ConvShape {
  int64_t batch, seqlen, features, taps;  // taps: K >= 1
  // Packed sequences: batch is 1 and sequence n covers tokens [cu_seqlens[n], cu_seqlens[n+1]). Null: one sequence a
  // row.
  const int32_t* cu_seqlens = nullptr;
  int64_t num_sequences = 0;  // = batch without cu_seqlens

  XLSTM_HOST_DEVICE int64_t past() const { return taps - 1; }  // inputs in a state
};

// Views are (B, S, F), the head of a view is 0, or (N, K - 1, F) of a state; all are of one type. No output may overlap
// an input, but `next` may be `state` where a sequence is no longer than a run. T: of the weights, float or double, or
// void for any type.
template <class T>
struct ConvForwardParams {
  ConvShape shape;
  bool silu = false;
  AnyView x;
  PointerOf<const T> weight;  // (F, K) contiguous
  PointerOf<const T> bias;    // (F,) contiguous, or null
  Flags reset;                // (B, S): inputs before that token count as zeros from there on
  AnyView state;              // null: zeros
  AnyView y, next;            // written
};

// A: float or double, the type of the arithmetic.
template <class T, class A = T>
struct ConvBackwardParams {
  ConvForwardParams<T> forward;  // as it was, without its outputs
  AnyView dy;
  const A* dnext = nullptr;  // (N, K - 1, F) contiguous, or null: zero
  AnyView dx;                // written
  A* dweight = nullptr;      // (F, K) contiguous, written
  A* dbias = nullptr;        // (F,), written
  A* dstate = nullptr;       // (N, K - 1, F) contiguous, written
};

// ---- Runs: so many tokens at most, of one sequence ----
//
// Without cu_seqlens run c of a row begins at token c L. With cu_seqlens sequence n owns the slots from
// floor(cu[n] / L) + n on, at least one: they are enough, and nothing has to be summed over sequences. A slot that is
// left over has no tokens. The functions are static: CPU kernels are compiled once per SIMD level.
struct ConvRun {
  int64_t sequence, row;  // of the state, of x
  int64_t begin, end;     // tokens of the sequence
  int64_t first, last;    // tokens [first, last) of the run
  bool starts, ends;      // holds the beginning or the end of its sequence; both are true for one without tokens
};

XLSTM_HOST_DEVICE static inline int64_t conv_slots_of_row(const ConvShape& shape, int64_t length) {
  const int64_t slots = (shape.seqlen + length - 1) / length;
  return slots > 1 ? slots : 1;
}

XLSTM_HOST_DEVICE static inline int64_t conv_slots(const ConvShape& shape, int64_t length) {
  if (shape.cu_seqlens) return shape.seqlen / length + shape.num_sequences;
  return shape.batch * conv_slots_of_row(shape, length);
}

// Index: what a slot and a row's number of slots fit; a device divides 64 bits in a function.
template <class Index = int64_t>
XLSTM_HOST_DEVICE static inline ConvRun conv_run(const ConvShape& shape, int64_t length, int64_t slot) {
  ConvRun run{};
  int64_t index;
  if (shape.cu_seqlens) {
    int64_t low = 0, high = shape.num_sequences;  // the owner is in [low, high)
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (shape.cu_seqlens[middle] / length + middle <= slot ? low : high) = middle;
    }
    run.sequence = low;
    run.begin = shape.cu_seqlens[low], run.end = shape.cu_seqlens[low + 1];
    index = slot - (run.begin / length + low);
  } else {
    const int64_t per_row = conv_slots_of_row(shape, length);
    run.sequence = run.row = static_cast<Index>(slot) / static_cast<Index>(per_row);
    run.end = shape.seqlen;
    index = slot - run.row * per_row;
  }
  const int64_t first = run.begin + index * length;
  run.first = first < run.end ? first : run.end;
  run.last = first + length < run.end ? first + length : run.end;
  run.starts = index == 0;
  run.ends = run.last == run.end && (run.first < run.last || run.starts);
  return run;
}

}  // namespace xlstm
