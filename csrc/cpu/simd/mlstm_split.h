#pragma once
// How few sequences keep many threads busy: one after the other, a group of chunks at a time. The states between the
// chunks come first, each thread with columns of C; then every chunk is a work item of its own.
#include "core/runtime.h"
#include "cpu/simd/mlstm_chunk.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

template <class T>
XLSTM_INLINE bool worth_splitting(const MlstmForwardParams<T>& in, int64_t L, const Runtime& runtime) {
  constexpr int64_t kChunks = 4;  // of a sequence
  const int64_t sequences = in.shape.num_sequences * in.shape.num_heads;
  return sequences < runtime.num_threads() && in.shape.seqlen >= kChunks * L * max_of(1, in.shape.num_sequences);
}

// f(columns) for the columns of C of one head, on all threads; `tokens` a column has to be advanced by.
template <class T, class F>
XLSTM_INLINE void in_columns(const MlstmShape& shape, int64_t tokens, const Runtime& runtime, const F& f) {
  const int64_t panels = ceil_div(shape.head_dim_v, kPanel<T>), work = tokens * shape.head_dim_qk * kPanel<T>;
  runtime.parallel_ranges(panels, ceil_div(int64_t{1} << 15, max_of(1, work)), [&](int64_t begin, int64_t end) {
    f(Columns{begin * kPanel<T>, min_of(end * kPanel<T>, shape.head_dim_v)});
  });
}

// Chunks that are worked on at a time: their states fit a cache, or it is one chunk for each thread.
template <class T>
XLSTM_INLINE int64_t split_group(const MlstmShape& shape, int64_t num_chunks, const Runtime& runtime) {
  constexpr int64_t kStateBytes = 8 << 20;
  const int64_t state = static_cast<int64_t>(sizeof(T)) * shape.head_dim_qk * (shape.head_dim_v + 1);
  return max_of(1, min_of(num_chunks, max_of(runtime.num_threads(), kStateBytes / state)));
}

template <class T>
XLSTM_INLINE StateRef<T>* place_states(Arena& arena, int64_t count, const MlstmShape& shape) {
  StateRef<T>* refs = arena.take<StateRef<T>>(count);
  for (int64_t j = 0; j < count; ++j) {
    T *C = arena.take<T>(shape.head_dim_qk * shape.head_dim_v), *n = arena.take<T>(shape.head_dim_qk);
    if (C) refs[j] = {C, n};
  }
  return refs;
}

// What the state is advanced with.
template <class T>
struct StateBuffers {
  Gates<T> gates;
  T *weights, *packed;

  StateBuffers(Arena& arena, const MlstmShape& shape, int64_t L) {
    gates.place(arena, L);
    weights = arena.take<T>(L);
    packed = arena.take<T>(packed_size<T>(L, shape.head_dim_v));
  }
};

// Buffers of this thread: a class that takes an arena and what is given.
template <class Buffers, class... Given>
XLSTM_INLINE Buffers thread_buffers(const Runtime& runtime, const Given&... given) {
  Arena count;
  Buffers(count, given...);
  Arena arena(runtime.scratch(1, count.used()));
  return Buffers(arena, given...);
}

// One sequence, cut into chunks of at most L tokens, and the stabiliser M that enters each of them and leaves the last.
template <class T>
struct CutSequence {
  const MlstmForwardParams<T>& in;
  Sequence seq;
  int64_t L;
  const Chunk* chunks;
  double* M;

  // From state_at(0) and M[first] on, in order: the states after chunks [first, last) to state_at(1), state_at(2), ...,
  // and the M after them. These columns.
  template <class F>
  void advance(int64_t first, int64_t last, const F& state_at, Columns columns, const Runtime& runtime) const {
    auto w = thread_buffers<StateBuffers<T>>(runtime, in.shape, L);
    double M_in = M[first];
    for (int64_t c = first; c < last; ++c) {
      w.gates.compute(in, seq, chunks[c], M_in);
      advance_state<T>(in, seq, chunks[c], w.gates, state_at(c - first), state_at(c - first + 1), columns, w.weights,
                       w.packed);
      M_in = w.gates.M_out;
      if (columns.has_n()) M[c + 1] = M_in;
    }
  }

  // The state before the first chunk.
  void load_initial(const StateRef<T>& state, Columns columns) const {
    if (in.initial_state.C)
      copy_columns(state, state_of(in.initial_state, seq, in.shape), in.shape, columns);
    else
      clear_columns(state, in.shape, columns);
  }
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
