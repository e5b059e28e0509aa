#pragma once
// The cells of the recurrent family as functors over one hidden unit (docs/kernels/recurrent.md), on the functions of M
// (cell_math.h).
//
// A cell has kStates carried values, kGrads carried gradients and 5 saved values per hidden unit. The kernel calls
//   load_state, store_state   between the public state (h, c, n, m) and the carried values
//   forward                   raw gates -> new state, h and what a backward pass needs
//   load_grad, store_grad     between gradients of the public final or initial state and the carried ones
//   backward                  gradient of h -> gradients of the raw gates and of the state before
// The same functions, on vectors: csrc/cpu/simd/recurrent_cells.h.
#include "core/gates.h"
#include "core/recurrent.h"
#include "cuda/recurrent/cell_math.h"

namespace xlstm::cuda {

// Public state of one hidden unit, without h.
template <class A>
struct UnitState {
  A c, n, m;
};

// a (1 - x), rounded once.
template <class A>
XLSTM_DEVICE A rest_of(A a, A x) {
  return std::fma(-a, x, a);
}

template <class M>
struct LstmCell {
  using A = typename M::Number;
  static constexpr int kStates = 1;  // c
  static constexpr int kGrads = 1;   // dc

  XLSTM_DEVICE static void load_state(const UnitState<A>& s, A (&state)[kStates]) { state[0] = s.c; }
  XLSTM_DEVICE static UnitState<A> store_state(const A (&state)[kStates]) { return {state[0], 0, 0}; }

  // raw: i, f, g, o. saved: sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), c before.
  XLSTM_DEVICE static A forward(const A (&raw)[kGates], A (&state)[kStates], A (&saved)[kSaved]) {
    saved[0] = M::sigmoid(raw[0]);
    saved[1] = M::sigmoid(raw[1]);
    saved[2] = M::tanh(raw[2]);
    saved[3] = M::sigmoid(raw[3]);
    saved[4] = state[0];
    state[0] = saved[1] * state[0] + saved[0] * saved[2];
    return saved[3] * M::tanh(state[0]);
  }

  XLSTM_DEVICE static void load_grad(const UnitState<A>&, const UnitState<A>& grad, A (&d)[kGrads]) { d[0] = grad.c; }
  XLSTM_DEVICE static UnitState<A> store_grad(const UnitState<A>&, const A (&d)[kGrads]) { return {d[0], 0, 0}; }

  XLSTM_DEVICE static void backward(const A (&saved)[kSaved], A dh, A (&d)[kGrads], A (&draw)[kGates]) {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3], c_before = saved[4];
    const A kept = f * c_before, written = i * g;
    const Tanh<A> t = M::tanh_and_slope(kept + written);
    const A dt = dh * o, dc = d[0] + dt * t.slope, dc_written = dc * written;
    draw[0] = rest_of(dc_written, i);
    draw[1] = rest_of(dc * kept, f);
    draw[2] = dc * i * (1 - g * g);
    draw[3] = rest_of(dt * t.value, o);
    d[0] = dc * f;
  }
};

// c_bar = c / n, nu = log n and m; an empty unit has nu = kEmptyLog and keeps nothing, whatever f is.
template <class M>
struct SlstmCell {
  using A = typename M::Number;
  static constexpr int kStates = 3;  // c_bar, nu, m
  static constexpr int kGrads = 3;   // dc_bar, dl, mu: gradient of l = nu + m, and of m beyond its part in l
  static constexpr A kEmpty = static_cast<A>(kEmptyLog);

  bool exp_forget;  // the forget gate is exp(f), not sigmoid(f): a selection, so that a kernel has one code for both

  // Well above kEmptyLog, far below any log that a unit can reach.
  XLSTM_DEVICE static bool is_empty(A log) { return log < static_cast<A>(kEmptyLog / 10); }

  XLSTM_DEVICE static void load_state(const UnitState<A>& s, A (&state)[kStates]) {
    const bool empty = s.n == 0;
    state[0] = empty ? A{0} : s.c / s.n;
    state[1] = empty ? kEmpty : std::log(s.n);
    state[2] = empty ? A{0} : s.m;
  }

  XLSTM_DEVICE static UnitState<A> store_state(const A (&state)[kStates]) {
    const A n = std::exp(state[1]);  // exp(kEmpty) is 0
    return {state[0] * n, n, state[2]};
  }

  // raw: i, f, z, o. saved: alpha (its sign bit: m follows i), f, tanh(z), sigmoid(o), c_bar before.
  XLSTM_DEVICE A forward(const A (&raw)[kGates], A (&state)[kStates], A (&saved)[kSaved]) const {
    const A i = raw[0], log_f = exp_forget ? raw[1] : log_sigmoid<M>(raw[1]), none = -INFINITY;
    const bool was_empty = is_empty(state[1]);
    const A kept = was_empty ? none : log_f + state[2];
    const bool input_wins = was_empty || i > kept;
    const A m = input_wins ? i : kept;
    const A input = i - m, decayed = kept - m + state[1], z = M::tanh(raw[2]);
    const Logistic<A> u = M::logistic(input - decayed);
    const bool now_empty = i == none && m == none;  // nothing kept and nothing written
    const A alpha = now_empty ? A{0} : u.sigmoid;
    saved[0] = input_wins ? -alpha : alpha;
    saved[1] = was_empty ? A{0} : raw[1];
    saved[2] = z;
    saved[3] = now_empty ? A{0} : M::sigmoid(raw[3]);
    saved[4] = state[0];
    state[0] = now_empty ? A{0} : state[0] + alpha * (z - state[0]);
    state[1] = now_empty ? kEmpty : (input > decayed ? input : decayed) + u.log1p;
    state[2] = now_empty ? A{0} : m;
    return saved[3] * state[0];
  }

  // At the end c = c_bar n and n = exp(l - m): gradients of c_bar and l, and mu for what m itself is asked for.
  XLSTM_DEVICE static void load_grad(const UnitState<A>& final, const UnitState<A>& grad, A (&d)[kGrads]) {
    const bool full = final.n > 0;
    const A dl = grad.c * final.c + grad.n * final.n;
    d[0] = grad.c * final.n;
    d[1] = full ? dl : A{0};
    d[2] = full ? grad.m - dl : A{0};
  }

  XLSTM_DEVICE static UnitState<A> store_grad(const UnitState<A>& initial, const A (&d)[kGrads]) {
    if (!(initial.n > 0)) return {0, 0, 0};
    const A dc = d[0] / initial.n;
    return {dc, (d[1] - dc * initial.c) / initial.n, d[1] + d[2]};
  }

  XLSTM_DEVICE void backward(const A (&saved)[kSaved], A dh, A (&d)[kGrads], A (&draw)[kGates]) const {
    const A alpha = std::fabs(saved[0]), f = saved[1], z = saved[2], o = saved[3], before = saved[4];
    const bool input_wins = std::signbit(saved[0]);  // also of -0
    const A c_bar = before + alpha * (z - before);
    const A dc = d[0] + dh * o, dc_before = rest_of(dc, alpha);
    const A du = alpha * (dc_before * (z - before) + d[1]);
    const A dl = d[1] - du;
    const A dlog_f = dl + (input_wins ? A{0} : d[2]);
    draw[0] = du + (input_wins ? d[2] : A{0});
    draw[1] = exp_forget ? dlog_f : dlog_f * M::sigmoid(-f);
    draw[2] = dc * alpha * (1 - z * z);
    draw[3] = rest_of(dh * c_bar * o, o);
    d[0] = dc_before;
    d[1] = dl;
    d[2] = input_wins ? A{0} : d[2];
  }
};

// Calls f with the cell's functor.
template <class M, class F>
XLSTM_DEVICE void with_cell(Cell cell, F f) {
  if (cell == Cell::lstm) return f(LstmCell<M>{});
  f(SlstmCell<M>{cell == Cell::slstm_exp});
}

}  // namespace xlstm::cuda
