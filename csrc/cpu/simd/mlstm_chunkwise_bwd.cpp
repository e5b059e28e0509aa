// Chunkwise mLSTM, backward: one work item walks the chunks of one head of one sequence in reverse. The states that
// entered each chunk are recomputed, a group of chunks at a time, from checkpoints at the start of every group.
#include "cpu/simd/mlstm_chunk.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// States kept at a time stay below this; longer sequences are walked in groups of chunks.
constexpr int64_t kStateBytes = 32 << 20;

int64_t group_size(int64_t num_chunks, int64_t state_bytes) {
  if (num_chunks * state_bytes <= kStateBytes) return max_of(1, num_chunks);
  int64_t size = 1;
  while (size * size < num_chunks) ++size;
  return size;
}

template <class T>
class BackwardSequence {
 public:
  BackwardSequence(const MlstmBackwardParams<T>& params, const Sequence& sequence, int64_t chunk_size,
                   const Runtime& runtime)
      : p(params),
        in(params.forward),
        seq(sequence),
        L(chunk_size),
        dqk(in.shape.head_dim_qk),
        dv(in.shape.head_dim_v) {
    num_chunks = cut_chunks(in, seq, L, nullptr);
    Arena count;
    place(count);
    Arena arena(runtime.scratch(1, count.used()));
    place(arena);
    cut_chunks(in, seq, L, chunks);
    dC = p.initial_state_grad.C + seq.state * dqk * dv;
    dn = p.initial_state_grad.n + seq.state * dqk;
  }

  void run() {
    start_from_final_gradient();
    if (num_chunks > 0) {
      checkpoint_states();
      for (int64_t g = ceil_div(num_chunks, group) - 1; g >= 0; --g) {
        const int64_t first = g * group, last = min_of(first + group, num_chunks);
        recompute_states(g, first, last);
        for (int64_t c = last - 1; c >= first; --c) backward_chunk(c, states + (c - first), c == num_chunks - 1);
      }
    }
    finish_stabiliser();
  }

 private:
  const MlstmBackwardParams<T>& p;
  const MlstmForwardParams<T>& in;
  const Sequence seq;
  const int64_t L, dqk, dv;
  int64_t num_chunks, group, padded;
  Chunk* chunks;
  double* M;  // stabiliser entering each chunk, and the final one
  StateRef<T>*checkpoints,
      *states;  // state entering a group; states entering the chunks of the current group, and its end
  Gates<T> gates;
  T *dC, *dn;  // gradient of the state at the end of the current chunk
  T *decay, *P, *dS, *weights, *inverse_den, *rho, *packed;
  double *kappa, *q_dq, *k_dk;
  double dm = 0;             // gradient carried by the stabiliser's own path
  bool have_dstate = false;  // false: dC and dn are still all zero

  void place(Arena& arena) {
    padded = ceil_div(L, 16) * 16;
    group = group_size(num_chunks, static_cast<int64_t>(sizeof(T)) * dqk * (dv + 1));
    chunks = arena.take<Chunk>(num_chunks);
    M = arena.take<double>(num_chunks + 1);
    checkpoints = place_states(arena, ceil_div(num_chunks, group));
    states = place_states(arena, group + 1);
    gates.place(arena, L);
    for (T** x : {&P, &dS}) *x = arena.take<T>(L * padded);
    for (T** x : {&decay, &weights, &inverse_den, &rho}) *x = arena.take<T>(padded);
    for (double** x : {&kappa, &q_dq, &k_dk}) *x = arena.take<double>(padded);
    const int64_t wide = max_of(dqk, dv);
    packed = arena.take<T>(max_of(max_of(packed_size<T>(wide, L), packed_size<T>(L, wide)),
                                  max_of(packed_size<T>(dqk, dv), packed_size<T>(dv, dqk))));
  }

  StateRef<T>* place_states(Arena& arena, int64_t count) {
    StateRef<T>* refs = arena.take<StateRef<T>>(count);
    for (int64_t j = 0; j < count; ++j) {
      T *C = arena.take<T>(dqk * dv), *n = arena.take<T>(dqk);
      if (C) refs[j] = {C, n};
    }
    return refs;
  }

  // dC, dn live in the output: after the walk they are the gradient of the initial state.
  void start_from_final_gradient() {
    const MlstmState<const T>& grad = p.final_state_grad;
    if (grad.C)
      scale_row<T>(dC, 1, grad.C + seq.state * dqk * dv, dqk * dv);
    else
      fill_row<T>(dC, 0, dqk * dv);
    if (grad.n)
      scale_row<T>(dn, 1, grad.n + seq.state * dqk, dqk);
    else
      fill_row<T>(dn, 0, dqk);
    if (grad.m) dm = grad.m[seq.state];
    have_dstate = grad.C || grad.n;
  }

  void checkpoint_states() {
    StateRef<T> first = checkpoints[0];
    if (in.initial_state.C) {
      scale_row<T>(first.C, 1, in.initial_state.C + seq.state * dqk * dv, dqk * dv);
      scale_row<T>(first.n, 1, in.initial_state.n + seq.state * dqk, dqk);
    } else {
      fill_row<T>(first.C, 0, dqk * dv);
      fill_row<T>(first.n, 0, dqk);
    }
    M[0] = in.initial_state.m ? in.initial_state.m[seq.state] : 0;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const int64_t g = c / group;
      gates.compute(in, seq, chunks[c], M[c]);
      M[c + 1] = gates.M_out;
      if ((g + 1) * group >= num_chunks) continue;  // nothing after the last group needs its states here
      const StateRef<T> from = c % group == 0 ? checkpoints[g] : checkpoints[g + 1];
      advance(c, from, checkpoints[g + 1]);
    }
  }

  void recompute_states(int64_t g, int64_t first, int64_t last) {
    scale_row<T>(states[0].C, 1, checkpoints[g].C, dqk * dv);
    scale_row<T>(states[0].n, 1, checkpoints[g].n, dqk);
    for (int64_t c = first; c < last; ++c) {
      gates.compute(in, seq, chunks[c], M[c]);
      advance(c, states[c - first], states[c - first + 1]);
    }
  }

  void advance(int64_t c, StateRef<T> from, StateRef<T> to) {
    advance_state<T>(in, seq, chunks[c], gates, {from.C, from.n}, to, weights, packed);
  }

  // <dC, C> + <dn, n>: gradient of a common log factor of C and n.
  double state_product(const StateRef<T>& state) const {
    if (!have_dstate) return 0;
    double sum = dot(dn, state.n, dqk);
    for (int64_t a = 0; a < dqk; ++a) sum += dot(dC + a * dv, state.C + a * dv, dv);
    return sum;
  }

  void backward_chunk(int64_t c, const StateRef<T>* state, bool last) {
    const Chunk& chunk = chunks[c];
    gates.compute(in, seq, chunk, M[c]);
    const double decay_grad = state_product(state[1]);
    if (last && !in.options.sigmoid_gate) dm -= decay_grad;
    token_factors(chunk);
    scores(chunk);
    query_grad(chunk, state[0]);
    key_grad(chunk);
    value_grad(chunk);
    state_grad(chunk);
    gate_grad(c, decay_grad);
  }

  // iota = 1 / den, rho = gradient of r, kappa = what eps adds to the gradient of m.
  void token_factors(const Chunk& chunk) {
    const T* r = p.r + (seq.row * in.shape.num_heads + seq.head) * in.shape.seqlen + chunk.begin;
    const MlstmOptions& o = in.options;
    for (int64_t t = 0; t < chunk.len; ++t) {
      const double iota = 1 / gates.denominator_of(o, t, r[t]);
      inverse_den[t] = static_cast<T>(iota);
      rho[t] = 0;
      kappa[t] = 0;
      if (!o.normalize || !o.norm_grad) continue;
      const T* dh = p.dh.at(seq.row, seq.head, chunk.begin + t);
      const double dh_h = dot(dh, p.h.at(seq.row, seq.head, chunk.begin + t), dv);
      if (std::fabs(r[t]) > gates.floor_of(o, t)) rho[t] = static_cast<T>((r[t] > 0 ? -iota : iota) * dh_h);
      if (!o.sigmoid_gate) kappa[t] = -iota * o.eps * dh_h;
    }
  }

  // P = scale (Q K^T) * D and dS = scale (dh V^T / den + rho) * D, both lower triangular.
  void scores(const Chunk& chunk) {
    const int64_t n = chunk.len;
    const T* dh = p.dh.at(seq.row, seq.head, chunk.begin);
    const T scale = static_cast<T>(in.options.scale);
    pack_cols(in.k.at(seq.row, seq.head, chunk.begin), in.k.time, dqk, n, packed);
    gemm_causal_out<T>(n, dqk, {in.q.at(seq.row, seq.head, chunk.begin), in.q.time, 1}, {packed, dqk}, P, padded);
    pack_cols(in.v.at(seq.row, seq.head, chunk.begin), in.v.time, dv, n, packed);
    gemm_causal_out<T>(n, dv, {dh, p.dh.time, 1}, {packed, dv}, dS, padded);
    for (int64_t t = 0; t < n; ++t) {
      gates.decay_row(t, decay, padded);
      T *P_row = P + t * padded, *dS_row = dS + t * padded;
      for (int64_t s = 0; s < padded; s += kLanes<T>) {
        const Vec<T> d = scale * load(decay + s);
        // selected, not multiplied by zero: rho may be anything
        const Vec<T> x = d * load(P_row + s), y = d * (inverse_den[t] * load(dS_row + s) + rho[t]);
        store(P_row + s, s <= t ? first_lanes<T>(x, t + 1 - s) : splat<T>(0));
        store(dS_row + s, s <= t ? first_lanes<T>(y, t + 1 - s) : splat<T>(0));
      }
    }
  }

  // dq_t = sum_s dS_ts k_s + scale b_bar_t (C dh_t / den + rho_t n)
  void query_grad(const Chunk& chunk, const StateRef<T>& state) {
    const int64_t n = chunk.len;
    T* dq = p.dq.at(seq.row, seq.head, chunk.begin);
    const bool carry = chunk.start == Start::carry;
    if (carry) {
      pack_cols(state.C, dv, dv, dqk, packed);
      gemm<T>(n, dqk, 0, dv, {p.dh.at(seq.row, seq.head, chunk.begin), p.dh.time, 1}, {packed, dv}, dq, p.dq.time, 0);
      for (int64_t t = 0; t < n; ++t) {
        const T inter = static_cast<T>(in.options.scale * gates.b_bar[t]);
        axpby_row(dq + t * p.dq.time, inter * inverse_den[t], inter * rho[t], state.n, dqk);
      }
    }
    pack_rows(in.k.at(seq.row, seq.head, chunk.begin), in.k.time, n, dqk, packed);
    gemm_causal<T>(n, dqk, dS, padded, {packed, n}, dq, p.dq.time, carry ? 1 : 0);
    for (int64_t t = 0; t < n; ++t) {
      q_dq[t] = dot(in.q.at(seq.row, seq.head, chunk.begin + t), dq + t * p.dq.time, dqk);
    }
  }

  // dk_s = sum_t dS_ts q_t + a_bar_s (dC v_s + dn)
  void key_grad(const Chunk& chunk) {
    const int64_t n = chunk.len;
    T* dk = p.dk.at(seq.row, seq.head, chunk.begin);
    if (have_dstate) {
      pack_cols(dC, dv, dv, dqk, packed);
      gemm<T>(n, dqk, 0, dv, {in.v.at(seq.row, seq.head, chunk.begin), in.v.time, 1}, {packed, dv}, dk, p.dk.time, 0);
      for (int64_t s = 0; s < n; ++s) {
        const T a = static_cast<T>(gates.a_bar[s]);
        axpby_row(dk + s * p.dk.time, a, a, dn, dqk);
      }
    }
    pack_rows(in.q.at(seq.row, seq.head, chunk.begin), in.q.time, n, dqk, packed);
    gemm_causal_transposed<T>(n, dqk, dS, padded, {packed, n}, dk, p.dk.time, have_dstate ? 1 : 0);
    for (int64_t s = 0; s < n; ++s) {
      k_dk[s] = dot(in.k.at(seq.row, seq.head, chunk.begin + s), dk + s * p.dk.time, dqk);
    }
  }

  // dv_s = sum_t P_ts dh_t / den + a_bar_s dC^T k_s
  void value_grad(const Chunk& chunk) {
    const int64_t n = chunk.len;
    T* out = p.dv.at(seq.row, seq.head, chunk.begin);
    if (have_dstate) {
      pack_rows(dC, dv, dqk, dv, packed);
      gemm<T>(n, dv, 0, dqk, {in.k.at(seq.row, seq.head, chunk.begin), in.k.time, 1}, {packed, dqk}, out, p.dv.time, 0);
      for (int64_t s = 0; s < n; ++s) {
        scale_row(out + s * p.dv.time, static_cast<T>(gates.a_bar[s]), out + s * p.dv.time, dv);
      }
    }
    pack_rows(p.dh.at(seq.row, seq.head, chunk.begin), p.dh.time, n, dv, packed, inverse_den);
    gemm_causal_transposed<T>(n, dv, P, padded, {packed, n}, out, p.dv.time, have_dstate ? 1 : 0);
  }

  // dC <- g_bar dC + Q^T (scale b_bar dh / den), dn <- g_bar dn + Q^T (scale b_bar rho): what enters the chunk.
  // The last reader of rho, which it scales in place.
  void state_grad(const Chunk& chunk) {
    have_dstate = chunk.start == Start::carry;
    if (!have_dstate) {
      fill_row<T>(dC, 0, dqk * dv);
      fill_row<T>(dn, 0, dqk);
      return;
    }
    const T* q = in.q.at(seq.row, seq.head, chunk.begin);
    const T g = static_cast<T>(gates.g_bar);
    for (int64_t t = 0; t < chunk.len; ++t) {
      weights[t] = static_cast<T>(in.options.scale * gates.b_bar[t]) * inverse_den[t];
      rho[t] *= static_cast<T>(in.options.scale * gates.b_bar[t]);
    }
    add_rows<T>(dn, g, dn, rho, q, in.q.time, chunk.len, dqk);
    pack_rows(p.dh.at(seq.row, seq.head, chunk.begin), p.dh.time, chunk.len, dv, packed, weights);
    gemm<T>(dqk, dv, 0, chunk.len, {q, 1, in.q.time}, {packed, chunk.len}, dC, dv, g);
  }

  // Log-domain identities: di = k.dk, d log f_t = sum_{t' >= t} (q.dq - k.dk) + <dC, C> + <dn, n>; and the path
  // through the stabiliser m, which follows the larger argument of its max.
  void gate_grad(int64_t c, double decay_grad) {
    const Chunk& chunk = chunks[c];
    const bool sigmoid_gate = in.options.sigmoid_gate;
    for (int64_t t = chunk.len - 1; t >= 0; --t) {
      const int64_t at = chunk.begin + t;
      double di = k_dk[t];
      decay_grad += q_dq[t] - k_dk[t];
      double dlog_f = t == 0 && chunk.start != Start::carry ? 0 : decay_grad;
      if (sigmoid_gate) {
        di *= xlstm::sigmoid(-static_cast<double>(*in.i.at(seq.row, seq.head, at)));
      } else {
        dm += kappa[t];
        const double m_before = t > 0 ? gates.m[t - 1] : gates.M;
        const bool input_wins = gates.log_i[t] > gates.log_f[t] + m_before;
        (input_wins ? di : dlog_f) += dm;
        if (input_wins) dm = 0;
      }
      if (t == 0 && chunk.start == Start::forget) dlog_f = 0;
      *p.di.at(seq.row, seq.head, at) = static_cast<T>(di);
      *p.df.at(seq.row, seq.head, at) =
          static_cast<T>(dlog_f * xlstm::sigmoid(-static_cast<double>(*in.f.at(seq.row, seq.head, at))));
    }
    // Before a reset nothing is seen. The sigmoid gate hands m through unless a reset clears it.
    if (chunk.reset || (chunk.start == Start::forget && !sigmoid_gate)) dm = 0;
  }

  void finish_stabiliser() {
    if (!in.options.sigmoid_gate && in.initial_state.C && num_chunks > 0 && have_dstate) {
      dm += state_product(checkpoints[0]);
    }
    p.initial_state_grad.m[seq.state] = static_cast<T>(dm);
  }
};

}  // namespace

template <class T>
void mlstm_bwd(const MlstmBackwardParams<T>& p, const Runtime& runtime) {
  const MlstmShape& shape = p.forward.shape;
  const int64_t L = chunk_size_of(p.forward);
  runtime.parallel(shape.num_sequences * shape.num_heads, 1,
                   [&](int64_t item) { BackwardSequence<T>(p, sequence_of(shape, item), L, runtime).run(); });
}

template void mlstm_bwd<float>(const MlstmBackwardParams<float>&, const Runtime&);
template void mlstm_bwd<double>(const MlstmBackwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
