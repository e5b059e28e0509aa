// Chunkwise mLSTM, forward: one work item walks the chunks of one head of one sequence.
#include "cpu/simd/mlstm_chunk.h"
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

template <class T>
void forward_sequence(const MlstmForwardParams<T>& in, const Sequence& seq, int64_t L, const Runtime& runtime) {
  const int64_t dqk = in.shape.head_dim_qk, dv = in.shape.head_dim_v;
  Arena count;
  const int64_t num_chunks = cut_chunks(in, seq, L, nullptr);
  count.take<Chunk>(num_chunks);
  ForwardBuffers<T>(count, in.shape, L);
  Arena arena(runtime.scratch(1, count.used()));
  Chunk* chunks = arena.take<Chunk>(num_chunks);
  ForwardBuffers<T> w(arena, in.shape, L);
  cut_chunks(in, seq, L, chunks);

  T *C = in.final_state.C + seq.state * dqk * dv, *n = in.final_state.n + seq.state * dqk;
  double M = 0;
  bool has_state = in.initial_state.C != nullptr;
  if (has_state) {
    scale_row<T>(C, 1, in.initial_state.C + seq.state * dqk * dv, dqk * dv);
    scale_row<T>(n, 1, in.initial_state.n + seq.state * dqk, dqk);
    M = in.initial_state.m[seq.state];
  } else {
    fill_row<T>(C, 0, dqk * dv);
    fill_row<T>(n, 0, dqk);
  }
  for (int64_t c = 0; c < num_chunks; ++c) {
    const Chunk& chunk = chunks[c];
    has_state = has_state && chunk.start == Start::carry;
    w.gates.compute(in, seq, chunk, M);
    scores(in, seq, chunk, n, has_state, w);
    T* h = in.h.at(seq.row, seq.head, chunk.begin);
    if (has_state) {
      pack_rows(C, dv, dqk, dv, w.packed);
      gemm<T>(chunk.len, dv, 0, dqk, {w.q_scaled, dqk, 1}, {w.packed, dqk}, h, in.h.time, 0);
    }
    pack_rows(in.v.at(seq.row, seq.head, chunk.begin), in.v.time, chunk.len, dv, w.packed);
    gemm_causal<T>(chunk.len, dv, w.P, w.padded, {w.packed, chunk.len}, h, in.h.time, has_state ? 1 : 0);
    advance_state<T>(in, seq, chunk, w.gates, {C, n}, {C, n}, w.weights, w.packed);
    M = w.gates.M_out;
    has_state = true;
  }
  in.final_state.m[seq.state] = static_cast<T>(M);
}

}  // namespace

template <class T>
void mlstm_fwd(const MlstmForwardParams<T>& p, const Runtime& runtime) {
  const MlstmShape& shape = p.shape;
  const int64_t L = chunk_size_of(p);
  runtime.parallel(shape.num_sequences * shape.num_heads, 1,
                   [&](int64_t item) { forward_sequence(p, sequence_of(shape, item), L, runtime); });
}

template void mlstm_fwd<float>(const MlstmForwardParams<float>&, const Runtime&);
template void mlstm_fwd<double>(const MlstmForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
