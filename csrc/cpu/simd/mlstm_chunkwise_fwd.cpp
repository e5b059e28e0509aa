// Chunkwise mLSTM, forward: one work item walks the chunks of one head of one sequence; or where there are fewer of
// these than threads, all threads share one (mlstm_split.h).
#include "cpu/simd/mlstm_split.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <class T>
struct ForwardBuffers {
  Gates<T> gates;
  T *P, *decay, *q_scaled, *weights, *packed;
  int64_t padded;  // row length of P

  ForwardBuffers(Arena& arena, const MlstmShape& shape, int64_t L) {
    gates.place(arena, L);
    padded = ceil_div(L, 16) * 16;
    P = arena.take<T>(L * padded);
    decay = arena.take<T>(padded);
    weights = arena.take<T>(padded);
    q_scaled = arena.take<T>(L * shape.head_dim_qk);
    const int64_t dqk = shape.head_dim_qk, dv = shape.head_dim_v;
    packed = arena.take<T>(max_of(packed_size<T>(dqk, L), max_of(packed_size<T>(dqk, dv), packed_size<T>(L, dv))));
  }
};

// P = scale (Q K^T) * D / den and q_scaled = Q scale b_bar / den, with r = q.n on the way.
template <class T>
void scores(const MlstmForwardParams<T>& in, const Sequence& seq, const Chunk& chunk, const T* n, bool has_state,
            ForwardBuffers<T>& w) {
  const int64_t L = chunk.len, dqk = in.shape.head_dim_qk;
  const T* q = in.q.at(seq.row, seq.head, chunk.begin);
  T* r_out = in.r + (seq.row * in.shape.num_heads + seq.head) * in.shape.seqlen + chunk.begin;
  const T scale = static_cast<T>(in.options.scale);

  pack_cols(in.k.at(seq.row, seq.head, chunk.begin), in.k.time, dqk, L, w.packed);
  gemm_causal_out<T>(L, dqk, {q, in.q.time, 1}, {w.packed, dqk}, w.P, w.padded);
  for (int64_t t = 0; t < L; ++t) {
    T* row = w.P + t * w.padded;
    w.gates.decay_row(t, w.decay, w.padded);
    Vec<T> sum = splat<T>(0);
    for (int64_t s = 0; s <= t; s += kLanes<T>) {
      const Vec<T> x = first_lanes<T>(load(row + s), t + 1 - s) * scale * load(w.decay + s);
      store(row + s, x);
      sum += x;
    }
    const T inter = scale * static_cast<T>(w.gates.b_bar[t]);
    const T qn = has_state ? inter * dot(q + t * in.q.time, n, dqk) : 0;
    r_out[t] = qn + reduce_add<T>(sum);
    const T inverse = static_cast<T>(1 / w.gates.denominator_of(in.options, t, r_out[t]));
    for (int64_t s = 0; s < w.padded; s += kLanes<T>) {
      store(row + s, s <= t ? inverse * load(row + s) : splat<T>(0));
    }
    if (has_state) scale_row(w.q_scaled + t * dqk, inter * inverse, q + t * in.q.time, dqk);
  }
}

// h of a chunk, from the state before it. w.gates are of that chunk.
template <class T>
void output(const MlstmForwardParams<T>& in, const Sequence& seq, const Chunk& chunk, const StateRef<T>& state,
            bool has_state, ForwardBuffers<T>& w) {
  const int64_t dqk = in.shape.head_dim_qk, dv = in.shape.head_dim_v;
  scores(in, seq, chunk, state.n, has_state, w);
  T* h = in.h.at(seq.row, seq.head, chunk.begin);
  if (has_state) {
    pack_rows(state.C, dv, dqk, dv, w.packed);
    gemm<T>(chunk.len, dv, 0, dqk, {w.q_scaled, dqk, 1}, {w.packed, dqk}, h, in.h.time, 0);
  }
  pack_rows(in.v.at(seq.row, seq.head, chunk.begin), in.v.time, chunk.len, dv, w.packed);
  gemm_causal<T>(chunk.len, dv, w.P, w.padded, {w.packed, chunk.len}, h, in.h.time, has_state ? 1 : 0);
}

template <class T>
bool has_state(const CutSequence<T>& cut, int64_t c) {
  return (c > 0 || cut.in.initial_state.C) && cut.chunks[c].start == Start::carry;
}

template <class T>
void walk(const MlstmForwardParams<T>& in, const Sequence& seq, int64_t L, const Runtime& runtime) {
  const int64_t dv = in.shape.head_dim_v, num_chunks = cut_chunks(in, seq, L, nullptr);
  Arena count;
  count.take<Chunk>(num_chunks);
  ForwardBuffers<T>(count, in.shape, L);
  Arena arena(runtime.scratch(1, count.used()));
  Chunk* chunks = arena.take<Chunk>(num_chunks);
  ForwardBuffers<T> w(arena, in.shape, L);
  cut_chunks(in, seq, L, chunks);

  double M = in.initial_state.C ? in.initial_state.m[seq.state] : 0;
  const CutSequence<T> cut = {in, seq, L, chunks, &M};
  const StateRef<T> state = state_of(in.final_state, seq, in.shape);
  cut.load_initial(state, {0, dv});
  for (int64_t c = 0; c < num_chunks; ++c) {
    w.gates.compute(in, seq, chunks[c], M);
    output(in, seq, chunks[c], state, has_state(cut, c), w);
    advance_state<T>(in, seq, chunks[c], w.gates, state, state, {0, dv}, w.weights, w.packed);
    M = w.gates.M_out;
  }
  in.final_state.m[seq.state] = static_cast<T>(M);
}

template <class T>
void split(const MlstmForwardParams<T>& in, const Sequence& seq, int64_t L, const Runtime& runtime) {
  const int64_t num_chunks = cut_chunks(in, seq, L, nullptr), group = split_group<T>(in.shape, num_chunks, runtime);
  if (num_chunks == 0) return walk(in, seq, L, runtime);
  Chunk* chunks = nullptr;
  double* M = nullptr;
  StateRef<T>* states = nullptr;  // before each chunk of a group, and after the last one
  const auto place = [&](Arena arena) {
    chunks = arena.take<Chunk>(num_chunks);
    M = arena.take<double>(num_chunks + 1);
    states = place_states<T>(arena, group + 1, in.shape);
    return arena.used();
  };
  place(Arena(runtime.scratch(0, place(Arena()))));
  cut_chunks(in, seq, L, chunks);
  M[0] = in.initial_state.C ? in.initial_state.m[seq.state] : 0;
  const CutSequence<T> cut = {in, seq, L, chunks, M};
  for (int64_t first = 0; first < num_chunks; first += group) {
    const int64_t last = min_of(first + group, num_chunks);
    in_columns<T>(in.shape, group * L, runtime, [&](Columns columns) {
      if (first == 0)
        cut.load_initial(states[0], columns);
      else
        copy_columns(states[0], states[group], in.shape, columns);
      cut.advance(first, last, [&](int64_t j) { return states[j]; }, columns, runtime);
      if (last == num_chunks)
        copy_columns(state_of(in.final_state, seq, in.shape), states[last - first], in.shape, columns);
    });
    runtime.parallel(last - first, 1, [&](int64_t j) {
      auto w = thread_buffers<ForwardBuffers<T>>(runtime, in.shape, L);
      w.gates.compute(in, seq, chunks[first + j], M[first + j]);
      output(in, seq, chunks[first + j], states[j], has_state(cut, first + j), w);
    });
  }
  in.final_state.m[seq.state] = static_cast<T>(M[num_chunks]);
}

}  // namespace

template <class T>
void mlstm_fwd(const MlstmForwardParams<T>& p, const Runtime& runtime) {
  const int64_t L = chunk_size_of(p), sequences = p.shape.num_sequences * p.shape.num_heads;
  if (worth_splitting(p, L, runtime)) {
    for (int64_t item = 0; item < sequences; ++item) split(p, sequence_of(p.shape, item), L, runtime);
    return;
  }
  runtime.parallel(sequences, 1, [&](int64_t item) { walk(p, sequence_of(p.shape, item), L, runtime); });
}

template void mlstm_fwd<float>(const MlstmForwardParams<float>&, const Runtime&);
template void mlstm_fwd<double>(const MlstmForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
