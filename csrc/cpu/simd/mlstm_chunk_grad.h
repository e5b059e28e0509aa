#pragma once
// Chunkwise mLSTM, backward: the gradients of one chunk, given the states and the state gradients at both its ends.
#include "cpu/simd/mlstm_chunk.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// Of a token: the gradients of its log gates without what comes by way of the stabiliser m.
struct GateGrad {
  double di, dlog_f;
  double slope_f;   // of the log forget gate in its pre-activation
  double kappa;     // what eps adds to the gradient of m
  bool input_wins;  // the input gate is the larger argument of the max
};

// <dC, C> + <dn, n>: gradient of a common log factor of C and n.
template <class T>
XLSTM_INLINE double state_product(const StateRef<T>& grad, const StateRef<T>& state, const MlstmShape& shape) {
  const int64_t dqk = shape.head_dim_qk, dv = shape.head_dim_v;
  double sum = dot(grad.n, state.n, dqk);
  for (int64_t a = 0; a < dqk; ++a) sum += dot(grad.C + a * dv, state.C + a * dv, dv);
  return sum;
}

// The buffers of one thread, and what it computes in them for a chunk at a time: enter(), then the rest.
template <class T>
class ChunkGrad {
 public:
  ChunkGrad(Arena& arena, const MlstmBackwardParams<T>& params, const Sequence& sequence, int64_t L)
      : p(params),
        in(params.forward),
        seq(sequence),
        dqk(in.shape.head_dim_qk),
        dv(in.shape.head_dim_v),
        padded(ceil_div(L, 16) * 16) {
    gates.place(arena, L);
    for (T** x : {&P, &dS}) *x = arena.take<T>(L * padded);
    for (T** x : {&decay, &weights, &inverse_den, &rho}) *x = arena.take<T>(padded);
    for (double** x : {&kappa, &q_dq, &k_dk}) *x = arena.take<double>(padded);
    const int64_t wide = max_of(dqk, dv);
    packed = arena.take<T>(max_of(max_of(packed_size<T>(wide, L), packed_size<T>(L, wide)),
                                  max_of(packed_size<T>(dqk, dv), packed_size<T>(dv, dqk))));
  }

  void enter(const Chunk& chunk, double M) {
    gates.compute(in, seq, chunk, M);
    token_factors(chunk);
  }

  // The state at the end of the chunk from that at its start. Returns the stabiliser there.
  double advance(const Chunk& chunk, double M, const StateRef<T>& state, const StateRef<T>& next) {
    gates.compute(in, seq, chunk, M);
    advance_state<T>(in, seq, chunk, gates, state, next, {0, dv}, weights, packed);
    return gates.M_out;
  }

  // Everything but the gradient of the state. state, next: at the start and at the end; dnext: the gradient at the end,
  // which is zero and not read without has_dnext. Returns <dC, C> + <dn, n> there.
  double gradients(const Chunk& chunk, const StateRef<T>& state, const StateRef<T>& next, const StateRef<T>& dnext,
                   bool has_dnext, GateGrad* gate_grads) {
    const double decay_grad = has_dnext ? state_product(dnext, next, in.shape) : 0;
    scores(chunk);
    query_grad(chunk, state);
    key_grad(chunk, dnext, has_dnext);
    value_grad(chunk, dnext, has_dnext);
    gate_grad(chunk, decay_grad, gate_grads);
    return decay_grad;
  }

  // dC at the start = g_bar dC + Q^T (scale b_bar dh / den), dn = g_bar dn + Q^T (scale b_bar rho), from dC and dn at
  // the end; these columns. Both may be one memory.
  void state_grad(const Chunk& chunk, const StateRef<T>& dnext, const StateRef<T>& dstate, Columns columns) {
    if (chunk.start != Start::carry) return clear_columns(dstate, in.shape, columns);
    const T* q = in.q.at(seq.row, seq.head, chunk.begin);
    const T* dh = p.dh.at(seq.row, seq.head, chunk.begin) + columns.begin;
    const T g = static_cast<T>(gates.g_bar);
    if (dnext.C != dstate.C) copy_columns(dstate, dnext, in.shape, columns);
    const auto inter = [&](int64_t t) { return static_cast<T>(in.options.scale * gates.b_bar[t]); };
    for (int64_t t = 0; t < chunk.len; ++t) weights[t] = inter(t) * inverse_den[t];
    pack_rows(dh, p.dh.time, chunk.len, columns.count(), packed, weights);
    gemm<T>(dqk, columns.count(), 0, chunk.len, {q, 1, in.q.time}, {packed, chunk.len}, dstate.C + columns.begin, dv,
            g);
    if (!columns.has_n()) return;
    for (int64_t t = 0; t < chunk.len; ++t) weights[t] = inter(t) * rho[t];
    add_rows<T>(dstate.n, g, dstate.n, weights, q, in.q.time, chunk.len, dqk);
  }

 private:
  const MlstmBackwardParams<T>& p;
  const MlstmForwardParams<T>& in;
  const Sequence seq;
  const int64_t dqk, dv, padded;
  Gates<T> gates;
  T *decay, *P, *dS, *weights, *inverse_den, *rho, *packed;
  double *kappa, *q_dq, *k_dk;

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
  void key_grad(const Chunk& chunk, const StateRef<T>& dnext, bool has_dnext) {
    const int64_t n = chunk.len;
    T* dk = p.dk.at(seq.row, seq.head, chunk.begin);
    if (has_dnext) {
      pack_cols(dnext.C, dv, dv, dqk, packed);
      gemm<T>(n, dqk, 0, dv, {in.v.at(seq.row, seq.head, chunk.begin), in.v.time, 1}, {packed, dv}, dk, p.dk.time, 0);
      for (int64_t s = 0; s < n; ++s) {
        const T a = static_cast<T>(gates.a_bar[s]);
        axpby_row(dk + s * p.dk.time, a, a, dnext.n, dqk);
      }
    }
    pack_rows(in.q.at(seq.row, seq.head, chunk.begin), in.q.time, n, dqk, packed);
    gemm_causal_transposed<T>(n, dqk, dS, padded, {packed, n}, dk, p.dk.time, has_dnext ? 1 : 0);
    for (int64_t s = 0; s < n; ++s) {
      k_dk[s] = dot(in.k.at(seq.row, seq.head, chunk.begin + s), dk + s * p.dk.time, dqk);
    }
  }

  // dv_s = sum_t P_ts dh_t / den + a_bar_s dC^T k_s
  void value_grad(const Chunk& chunk, const StateRef<T>& dnext, bool has_dnext) {
    const int64_t n = chunk.len;
    T* out = p.dv.at(seq.row, seq.head, chunk.begin);
    if (has_dnext) {
      pack_rows(dnext.C, dv, dqk, dv, packed);
      gemm<T>(n, dv, 0, dqk, {in.k.at(seq.row, seq.head, chunk.begin), in.k.time, 1}, {packed, dqk}, out, p.dv.time, 0);
      for (int64_t s = 0; s < n; ++s) {
        scale_row(out + s * p.dv.time, static_cast<T>(gates.a_bar[s]), out + s * p.dv.time, dv);
      }
    }
    pack_rows(p.dh.at(seq.row, seq.head, chunk.begin), p.dh.time, n, dv, packed, inverse_den);
    gemm_causal_transposed<T>(n, dv, P, padded, {packed, n}, out, p.dv.time, has_dnext ? 1 : 0);
  }

  // Log-domain identities: di = k.dk, d log f_t = sum_{t' >= t} (q.dq - k.dk) + <dC, C> + <dn, n>.
  void gate_grad(const Chunk& chunk, double decay_grad, GateGrad* grads) {
    for (int64_t t = chunk.len - 1; t >= 0; --t) {
      const int64_t at = chunk.begin + t;
      decay_grad += q_dq[t] - k_dk[t];
      GateGrad& grad = grads[t];
      grad.di = k_dk[t];
      grad.dlog_f = t == 0 && chunk.start != Start::carry ? 0 : decay_grad;
      if (in.options.sigmoid_gate) grad.di *= slope(*in.i.at(seq.row, seq.head, at));
      grad.slope_f = slope(*in.f.at(seq.row, seq.head, at));
      grad.kappa = kappa[t];
      grad.input_wins = gates.log_i[t] > gates.log_f[t] + (t > 0 ? gates.m[t - 1] : gates.M);
    }
  }

  // Of log sigmoid(x).
  static double slope(T x) { return xlstm::sigmoid(-static_cast<double>(x)); }
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
