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

// c_bar = c / n in [-1, 1], m and nu = log n: what the definition carries, without a division and without overflow.
// With log f the log forget gate, both arguments of the max below are <= 0 and one of them is 0 or nearly so:
//   m = max(i, log f + m)     input = i - m     decayed = log f + m_before - m + nu     u = input - decayed
//   alpha = sigmoid(u)        c_bar += alpha (tanh z - c_bar)                           nu = log(e^input + e^decayed)
// An empty unit has nu = kEmptyLog and keeps nothing, whatever f is: alpha = 1 at its first input.
template <class T, bool kExpForget>
struct SlstmCell {
  static constexpr int kStates = 3;  // c_bar, nu, m
  static constexpr int kGrads = 3;   // dc_bar, dl, mu: gradient of l = nu + m, and of m beyond its part in l
  static constexpr T kEmpty = static_cast<T>(kEmptyLog);

  // Well above kEmptyLog, far below any log that a unit can reach.
  XLSTM_INLINE_MEMBER static IntVec<T> is_empty(Vec<T> log) { return log < static_cast<T>(kEmptyLog / 10); }

  XLSTM_INLINE_MEMBER static void load_state(const PublicState<T>& s, Vec<T>* state) {
    Vec<T> log_n{};
    for (int j = 0; j < kLanes<T>; ++j) log_n[j] = std::log(s.n[j]);
    const IntVec<T> empty = s.n == 0;
    state[0] = select<T>(empty, splat<T>(0), s.c / s.n);
    state[1] = select<T>(empty, splat(kEmpty), log_n);
    state[2] = select<T>(empty, splat<T>(0), s.m);
  }

  XLSTM_INLINE_MEMBER static PublicState<T> store_state(const Vec<T>* state) {
    Vec<T> n{};
    for (int j = 0; j < kLanes<T>; ++j) n[j] = std::exp(state[1][j]);  // exp(kEmpty) is 0
    return {state[0] * n, n, state[2]};
  }

  // raw: i, f, z, o. saved: alpha (its sign bit: m follows i), f, tanh(z), sigmoid(o), c_bar before.
  XLSTM_INLINE_MEMBER static Vec<T> forward(const Vec<T>* raw, Vec<T>* state, Vec<T>* saved) {
    const Vec<T> i = raw[0], log_f = kExpForget ? raw[1] : log_sigmoid<T>(raw[1]), none = splat<T>(-INFINITY);
    const IntVec<T> was_empty = is_empty(state[1]);
    const Vec<T> kept = select<T>(was_empty, none, log_f + state[2]);
    const IntVec<T> input_wins = was_empty | (i > kept);
    const Vec<T> m = select<T>(input_wins, i, kept);
    const Vec<T> input = i - m, decayed = kept - m + state[1], u = input - decayed;
    const Vec<T> e = exp_nonpositive<T>(-abs<T>(u));
    const IntVec<T> now_empty = (i == none) & (m == none);  // nothing kept and nothing written
    const Vec<T> z = tanh<T>(raw[2]), zero = splat<T>(0);
    const Vec<T> alpha =
        select<T>(now_empty, zero, quotient<T>(select<T>(u < 0, e, splat<T>(1)), e + static_cast<T>(1)));
    saved[0] = select<T>(input_wins, -alpha, alpha);
    saved[1] = select<T>(was_empty, zero, raw[1]);
    saved[2] = z;
    saved[3] = select<T>(now_empty, zero, sigmoid<T>(raw[3]));
    saved[4] = state[0];
    state[0] = select<T>(now_empty, zero, state[0] + alpha * (z - state[0]));
    state[1] = select<T>(now_empty, splat(kEmpty), max<T>(input, decayed) + log1p_unit<T>(e));
    state[2] = select<T>(now_empty, zero, m);
    return saved[3] * state[0];
  }

  // At the end c = c_bar n and n = exp(l - m): gradients of c_bar and l, and mu for what m itself is asked for.
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

// Calls f with the cell's functor.
template <class T, class F>
XLSTM_INLINE void with_cell(Cell cell, F f) {
  switch (cell) {
    case Cell::lstm:
      return f(LstmCell<T>{});
    case Cell::slstm:
      return f(SlstmCell<T, false>{});
    case Cell::slstm_exp:
      return f(SlstmCell<T, true>{});
  }
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
