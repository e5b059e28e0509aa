#pragma once
// The cells of the recurrent family as functors over vectors of hidden units (docs/kernels/recurrent.md).
//
// A cell has kStates carried values and 5 saved ones per hidden unit. The kernel calls
//   load/store   between the public state (h, c, n, m) and the carried values, one vector of units at a time
//   forward      raw gates -> new state, h and what the backward pass needs
//   backward     gradient of h -> gradient of the raw gates and of the state before
#include <cmath>

#include "core/gates.h"
#include "core/recurrent.h"
#include "cpu/simd/math.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// Public state of one vector of hidden units, without h.
template <class T>
struct PublicState {
  Vec<T> c, n, m;
};

template <class T>
struct LstmCell {
  static constexpr int kStates = 1;  // c
  static constexpr int kGrads = 1;   // dc

  XLSTM_INLINE_MEMBER static void load_state(const PublicState<T>& s, Vec<T>* state) { state[0] = s.c; }
  XLSTM_INLINE_MEMBER static PublicState<T> store_state(const Vec<T>* state) { return {state[0], Vec<T>{}, Vec<T>{}}; }

  // raw: i, f, g, o. saved: sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), c before.
  XLSTM_INLINE_MEMBER static Vec<T> forward(const Vec<T>* raw, Vec<T>* state, Vec<T>* saved) {
    saved[0] = sigmoid<T>(raw[0]);
    saved[1] = sigmoid<T>(raw[1]);
    saved[2] = tanh<T>(raw[2]);
    saved[3] = sigmoid<T>(raw[3]);
    saved[4] = state[0];
    state[0] = saved[1] * state[0] + saved[0] * saved[2];
    return saved[3] * tanh<T>(state[0]);
  }

  XLSTM_INLINE_MEMBER static void load_grad(const PublicState<T>&, const PublicState<T>& grad, Vec<T>* d) {
    d[0] = grad.c;
  }

  XLSTM_INLINE_MEMBER static void backward(const Vec<T>* saved, Vec<T> dh, Vec<T>* d, Vec<T>* draw) {
    const Vec<T> i = saved[0], f = saved[1], g = saved[2], o = saved[3], c_before = saved[4];
    const Vec<T> t = tanh<T>(f * c_before + i * g);
    const Vec<T> dc = d[0] + dh * o * (1 - t * t);
    draw[0] = dc * g * i * (1 - i);
    draw[1] = dc * c_before * f * (1 - f);
    draw[2] = dc * i * (1 - g * g);
    draw[3] = dh * t * o * (1 - o);
    d[0] = dc * f;
  }

  XLSTM_INLINE_MEMBER static PublicState<T> store_grad(const PublicState<T>&, const Vec<T>* d) {
    return {d[0], Vec<T>{}, Vec<T>{}};
  }
};

// The two-state form: c_bar = c / n in [-1, 1], l = log n + m; m only to return it. With log f the log forget gate,
//   u = i - log f - l     alpha = sigmoid(u)     c_bar += alpha (tanh z - c_bar)     l = log(e^i + e^(log f + l))
// An empty unit has l = kEmptyLog, so that alpha = 1 at the first input.
template <class T, bool kExpForget>
struct SlstmCell {
  static constexpr int kStates = 3;  // c_bar, l, m
  static constexpr int kGrads = 3;   // dc_bar, dl, mu: the gradient of m beyond its part in l

  static constexpr T kEmpty = static_cast<T>(kEmptyLog);
  // Well above kEmptyLog, far below any log a unit can reach.
  XLSTM_INLINE_MEMBER static IntVec<T> is_empty(Vec<T> l) { return l < static_cast<T>(kEmptyLog / 10); }

  XLSTM_INLINE_MEMBER static void load_state(const PublicState<T>& s, Vec<T>* state) {
    Vec<T> log_n{};
    for (int j = 0; j < kLanes<T>; ++j) log_n[j] = std::log(s.n[j]);
    const IntVec<T> full = s.n > 0;
    state[0] = select<T>(full, s.c / s.n, splat<T>(0));
    state[1] = select<T>(full, log_n + s.m, splat(kEmpty));
    state[2] = select<T>(full, s.m, splat<T>(0));
  }

  XLSTM_INLINE_MEMBER static PublicState<T> store_state(const Vec<T>* state) {
    const IntVec<T> empty = is_empty(state[1]);
    Vec<T> n{};
    for (int j = 0; j < kLanes<T>; ++j) n[j] = std::exp(state[1][j] - state[2][j]);
    n = select<T>(empty, splat<T>(0), n);
    return {state[0] * n, n, select<T>(empty, splat<T>(0), state[2])};
  }

  // raw: i, f, z, o. saved: alpha (its sign bit: m follows i), f, tanh(z), sigmoid(o), c_bar before.
  XLSTM_INLINE_MEMBER static Vec<T> forward(const Vec<T>* raw, Vec<T>* state, Vec<T>* saved) {
    const Vec<T> log_f = at_least<T>(kExpForget ? raw[1] : log_sigmoid<T>(raw[1]), kEmpty);
    const Vec<T> i = at_least<T>(raw[0], kEmpty), before = state[1];
    const IntVec<T> was_empty = is_empty(before);
    const Vec<T> decayed = at_least<T>(log_f + before, kEmpty);
    const Vec<T> u = i - decayed;
    const Vec<T> e = exp_nonpositive<T>(-abs<T>(u));
    Vec<T> alpha = select<T>(u < 0, e, splat<T>(1)) / (e + static_cast<T>(1));
    const Vec<T> l = max<T>(i, decayed) + log1p_unit<T>(e);
    const IntVec<T> now_empty = is_empty(l);
    const IntVec<T> input_wins = was_empty | (i > log_f + state[2]);
    const Vec<T> z = tanh<T>(raw[2]);
    alpha = select<T>(now_empty, splat<T>(0), alpha);
    saved[0] = select<T>(input_wins, -alpha, alpha);
    saved[1] = raw[1];
    saved[2] = z;
    saved[3] = select<T>(now_empty, splat<T>(0), sigmoid<T>(raw[3]));
    saved[4] = state[0];
    state[0] = select<T>(now_empty, splat<T>(0), state[0] + alpha * (z - state[0]));
    state[1] = select<T>(now_empty, splat(kEmpty), l);
    state[2] = select<T>(now_empty, splat<T>(0), select<T>(input_wins, i, log_f + state[2]));
    return saved[3] * state[0];
  }

  // c = c_bar n and n = exp(l - m) at the end: gradients of c_bar and l, and mu for what m itself is asked for.
  XLSTM_INLINE_MEMBER static void load_grad(const PublicState<T>& final, const PublicState<T>& grad, Vec<T>* d) {
    const IntVec<T> full = final.n > 0;
    const Vec<T> dl = grad.c * final.c + grad.n * final.n;
    d[0] = grad.c * final.n;
    d[1] = select<T>(full, dl, splat<T>(0));
    d[2] = select<T>(full, grad.m - dl, splat<T>(0));
  }

  XLSTM_INLINE_MEMBER static void backward(const Vec<T>* saved, Vec<T> dh, Vec<T>* d, Vec<T>* draw) {
    const Vec<T> alpha = abs<T>(saved[0]), f = saved[1], z = saved[2], o = saved[3], before = saved[4];
    const IntVec<T> input_wins = (IntVec<T>)saved[0] < 0;  // the sign bit, also of -0
    const Vec<T> c_bar = before + alpha * (z - before);
    const Vec<T> dc = d[0] + dh * o;
    const Vec<T> du = alpha * ((1 - alpha) * dc * (z - before) + d[1]);
    const Vec<T> dl = d[1] - du;
    const Vec<T> dlog_f = dl + select<T>(input_wins, splat<T>(0), d[2]);
    draw[0] = du + select<T>(input_wins, d[2], splat<T>(0));
    draw[1] = kExpForget ? dlog_f : dlog_f * sigmoid<T>(-f);
    draw[2] = dc * alpha * (1 - z * z);
    draw[3] = dh * c_bar * o * (1 - o);
    d[0] = dc * (1 - alpha);
    d[1] = dl;
    d[2] = select<T>(input_wins, splat<T>(0), d[2]);
  }

  XLSTM_INLINE_MEMBER static PublicState<T> store_grad(const PublicState<T>& initial, const Vec<T>* d) {
    const IntVec<T> full = initial.n > 0;
    const Vec<T> n = select<T>(full, initial.n, splat<T>(1)), dc = d[0] / n;
    const Vec<T> dn = (d[1] - dc * initial.c) / n, dm = d[1] + d[2], zero = splat<T>(0);
    return {select<T>(full, dc, zero), select<T>(full, dn, zero), select<T>(full, dm, zero)};
  }
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
