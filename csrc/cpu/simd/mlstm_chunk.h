#pragma once
// What the forward and the backward pass of the chunkwise mLSTM share: cutting a sequence into chunks, the gate vectors
// of a chunk (arXiv 2503.14376, and docs/kernels/mlstm.md), and the update of the state.
#include <cmath>
#include <initializer_list>

#include "core/gates.h"
#include "core/mlstm_chunkwise.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/math.h"
#include "cpu/simd/rows.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// State that a chunk starts from. A reset or a forget gate of exactly zero always starts a chunk, so nothing inside one
// ever crosses such a boundary.
enum class Start { carry, empty, forget };  // the state before it | the empty state, m = 0 | zero, m = -inf

struct Chunk {
  int64_t begin, len;
  Start start;
  bool reset;  // also where `start` is forget: the two may coincide
};

// One head of one sequence: tokens [begin, end) of batch row `row`; its states are number `state` of (N, H).
struct Sequence {
  int64_t row, head, begin, end, state;
};

XLSTM_INLINE Sequence sequence_of(const MlstmShape& shape, int64_t item) {
  const int64_t n = item / shape.num_heads, head = item % shape.num_heads;
  if (shape.cu_seqlens) return {0, head, shape.cu_seqlens[n], shape.cu_seqlens[n + 1], item};
  return {n, head, 0, shape.seqlen, item};
}

template <class T>
XLSTM_INLINE Start start_at(const MlstmForwardParams<T>& in, const Sequence& seq, int64_t t) {
  if (*in.f.at(seq.row, seq.head, t) < static_cast<T>(kHardForget)) return Start::forget;
  return in.reset.at(seq.row, t) ? Start::empty : Start::carry;
}

// Cuts a sequence; returns the number of chunks and, where `chunks` is given, writes them.
template <class T>
static int64_t cut_chunks(const MlstmForwardParams<T>& in, const Sequence& seq, int64_t chunk_size, Chunk* chunks) {
  int64_t count = 0;
  for (int64_t t = seq.begin; t < seq.end; ++count) {
    const Start start = start_at(in, seq, t);
    int64_t end = t + 1;
    while (end < seq.end && end < t + chunk_size && start_at(in, seq, end) == Start::carry) ++end;
    if (chunks) chunks[count] = {t, end - t, start, in.reset.at(seq.row, t)};
    t = end;
  }
  return count;
}

// Buffers of a chunk grow with the square of its size.
constexpr int64_t kMaxChunk = 512;
// With more elements of C a pass over C costs more than the larger triangle of a chunk twice as long.
constexpr int64_t kSmallState = 64 * 64, kLargeState = 256 * 512 - 1;

template <class T>
XLSTM_INLINE int64_t chunk_size_of(const MlstmForwardParams<T>& in) {
  const int64_t state = in.shape.head_dim_qk * in.shape.head_dim_v;
  const int64_t chosen = state <= kSmallState ? 32 : state <= kLargeState ? 64 : 128;
  const int64_t wanted = in.options.chunk_size > 0 ? in.options.chunk_size : chosen;
  return max_of(1, min_of(min_of(wanted, kMaxChunk), in.shape.seqlen));
}

// Gate vectors of a chunk, local index t (kernels' notation):
//   b_t = sum of log forget gates   y_s = log input gate - b_s   z_t = max(M, max_{s<=t} y_s)   m_t = b_t + z_t
//   D_ts = exp(y_s - z_t)   b_bar_t = exp(M - z_t)   a_bar_s = exp(y_s - z_L)   g_bar = exp(M - z_L)
// All exponents are <= 0. Sums and differences are taken in double whatever T is.
template <class T>
struct Gates {
  double *log_f, *log_i, *y, *z, *m;
  double *b_bar, *a_bar;
  T *y_high, *y_low;  // y = y_high + y_low: keeps differences accurate in float
  double M, g_bar, M_out;

  void place(Arena& arena, int64_t L) {
    const int64_t padded = ceil_div(L, 16) * 16;
    for (double** p : {&log_f, &log_i, &y, &z, &m, &b_bar, &a_bar}) *p = arena.take<double>(padded);
    for (T** p : {&y_high, &y_low}) *p = arena.take<T>(padded);
  }

  void compute(const MlstmForwardParams<T>& in, const Sequence& seq, const Chunk& chunk, double M_in) {
    const int64_t L = chunk.len, padded = ceil_div(L, 16) * 16;
    const bool exp_gate = !in.options.sigmoid_gate;
    for (int64_t t = 0; t < padded; ++t) {
      log_f[t] = t < L ? *in.f.at(seq.row, seq.head, chunk.begin + t) : 0;
      log_i[t] = t < L ? *in.i.at(seq.row, seq.head, chunk.begin + t) : -INFINITY;
    }
    for (int64_t t = 0; t < padded; t += kLanes<double>) {
      store(log_f + t, log_sigmoid<double>(load(log_f + t)));
      if (!exp_gate) store(log_i + t, log_sigmoid<double>(load(log_i + t)));
    }
    if (chunk.start == Start::forget) log_f[0] = 0;
    scan(L, padded, exp_gate, chunk, M_in);
    for (int64_t t = 0; t < padded; t += kLanes<double>) {
      store(b_bar + t, exp_nonpositive<double>(M - load(z + t)));
      store(a_bar + t, exp_nonpositive<double>(load(y + t) - z[L - 1]));
    }
    g_bar = b_bar[L - 1];
  }

  // Row t of D, zero beyond column t, for columns [0, padded).
  XLSTM_INLINE_MEMBER void decay_row(int64_t t, T* row, int64_t padded) const {
    const T high = static_cast<T>(z[t]), low = static_cast<T>(z[t] - high);
    for (int64_t s = 0; s < padded; s += kLanes<T>) {
      if (s > t) {
        store(row + s, splat<T>(0));
        continue;
      }
      const Vec<T> d = (load(y_high + s) - high) + (load(y_low + s) - low);
      store(row + s, first_lanes<T>(exp_nonpositive<T>(d), t + 1 - s));
    }
  }

  // Of a token.
  double floor_of(const MlstmOptions& options, int64_t t) const { return denominator_floor(options, m[t]); }
  double denominator_of(const MlstmOptions& options, int64_t t, double r) const {
    return denominator(options, r, floor_of(options, t));
  }

 private:
  void scan(int64_t L, int64_t padded, bool exp_gate, const Chunk& chunk, double M_in) {
    if (exp_gate && M_in < kEmptyLog) M_in = kEmptyLog;
    M = !exp_gate || chunk.start == Start::empty ? 0 : chunk.start == Start::forget ? kEmptyLog : M_in;
    double b = 0, running = M;
    for (int64_t t = 0; t < L; ++t) {
      b += log_f[t];
      y[t] = log_i[t] - b;
      running = y[t] > running || y[t] != y[t] ? y[t] : running;  // NaN stays
      z[t] = exp_gate ? running : -b;
      m[t] = b + z[t];
    }
    for (int64_t t = L; t < padded; ++t) y[t] = -INFINITY, z[t] = z[L - 1];
    for (int64_t t = 0; t < padded; ++t) {
      y_high[t] = static_cast<T>(y[t]);
      y_low[t] = y[t] == -INFINITY ? 0 : static_cast<T>(y[t] - y_high[t]);
    }
    // The sigmoid gate has no stabiliser: m passes through, and only a reset clears it.
    M_out = exp_gate ? (m[L - 1] < kEmptyLog ? kEmptyLog : m[L - 1]) : chunk.reset ? 0 : M_in;
  }
};

template <class T>
struct StateRef {
  T *C, *n;  // (Dqk, Dv), (Dqk)
};

// The state, or its gradient, of one head of a sequence.
template <class T>
XLSTM_INLINE StateRef<T> state_of(const MlstmState<T>& states, const Sequence& seq, const MlstmShape& shape) {
  return {states.C + seq.state * shape.head_dim_qk * shape.head_dim_v, states.n + seq.state * shape.head_dim_qk};
}

// Columns of C, whole panels of products: no bit depends on how C is cut. Who has the first one also has n.
struct Columns {
  int64_t begin, end;

  int64_t count() const { return end - begin; }
  bool has_n() const { return begin == 0; }
};

// to = from, these columns.
template <class T, class From>
XLSTM_INLINE void copy_columns(const StateRef<T>& to, const StateRef<From>& from, const MlstmShape& shape,
                               Columns columns) {
  const int64_t dqk = shape.head_dim_qk, dv = shape.head_dim_v;
  for (int64_t a = 0; a < dqk; ++a) {
    scale_row<T>(to.C + a * dv + columns.begin, 1, from.C + a * dv + columns.begin, columns.count());
  }
  if (columns.has_n()) scale_row<T>(to.n, 1, from.n, dqk);
}

// state = 0, these columns.
template <class T>
XLSTM_INLINE void clear_columns(const StateRef<T>& state, const MlstmShape& shape, Columns columns) {
  for (int64_t a = 0; a < shape.head_dim_qk; ++a) {
    fill_row<T>(state.C + a * shape.head_dim_v + columns.begin, 0, columns.count());
  }
  if (columns.has_n()) fill_row<T>(state.n, 0, shape.head_dim_qk);
}

// next = g_bar state + K^T (a_bar V); `next` may be `state`. Where the chunk does not carry, or forgets all, `state` is
// not read.
template <class T>
static void advance_state(const MlstmForwardParams<T>& in, const Sequence& seq, const Chunk& chunk,
                          const Gates<T>& gates, const StateRef<T>& state, const StateRef<T>& next, Columns columns,
                          T* weights, T* packed) {
  const int64_t L = chunk.len, dqk = in.shape.head_dim_qk, dv = in.shape.head_dim_v;
  const T* k = in.k.at(seq.row, seq.head, chunk.begin);
  const T g = chunk.start == Start::carry ? static_cast<T>(gates.g_bar) : 0;
  if (g != 0 && state.C != next.C) copy_columns(next, state, in.shape, columns);
  for (int64_t s = 0; s < L; ++s) weights[s] = static_cast<T>(gates.a_bar[s]);
  pack_rows(in.v.at(seq.row, seq.head, chunk.begin) + columns.begin, in.v.time, L, columns.count(), packed, weights);
  gemm<T>(dqk, columns.count(), 0, L, {k, 1, in.k.time}, {packed, L}, next.C + columns.begin, dv, g);
  if (columns.has_n()) add_rows<T>(next.n, g, next.n, weights, k, in.k.time, L, dqk);
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
