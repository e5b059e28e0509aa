#pragma once
// The warpgroups of the forward walk that have the state.
#include "cuda/mlstm_chunkwise/walk_block.h"

namespace xlstm::cuda {
namespace {

template <int kDepth, int kGroups>
struct Consumer {
  using F = Fragments<kProduct>;
  using S = Shared<kDepth, kGroups>;
  using Values = F::A[kSlabSteps];  // V^T of the warp's rows, all tokens of a span
  using Scores = float[kSpan / 2];

  const MlstmWalkParams& p;
  const Block& block;
  S& s;
  const int group, groups;
  Ring ring, ahead;  // stages of this span and, once it has begun, of the next one
  int span = 0;
  const int m = thread_of_team() / 32 * 16;  // the warp's rows of 64, of the state or of tokens
  float state[kDepth / 2], out[kSpan / 2];

  XLSTM_DEVICE Consumer(const MlstmWalkParams& p_, const Block& block_, S& s_, int group_, int groups_)
      : p(p_), block(block_), s(s_), group(group_), groups(groups_), ring(s_.ring()), ahead(s_.ring()) {}

  XLSTM_DEVICE void run() {
    load_start();
    await(ahead);
    bool more = begins(ahead);
    if (more && on_duty(span)) {
      Scores scores;
      begin_scores(scores);
      wgmma_wait<0>();
      finish_scores(scores, span);
    }
#pragma unroll 1
    while (more) {
      const SpanGates& gates = s.spans[ring.stage()];
      if (p.states.states && gates.chunk >= 0) store_chunk(gates.chunk);
      add_state(gates);
      await_scores();
      add_values();
      Values values;
      begin_update(gates, values);
      store_h(gates);
      ahead.advance();
      await(ahead);
      more = begins(ahead);
      prepare_next(gates, values, more);
      fence_proxy_async();  // TMA writes where ordinary loads have read
      ring.release();
      ring.advance();
      ++span;
    }
    store_end();
  }

 private:
  XLSTM_DEVICE void sync(bool left_out = false) const {
    if (!left_out) barrier_sync(kFirstTeamBarrier + group, kGroupThreads);
  }
  XLSTM_DEVICE bool on_duty(int of) const { return of % groups == group; }
  XLSTM_DEVICE bool begins(const Ring& stage) const { return uniform(s.spans[stage.stage()].count) != 0; }
  XLSTM_DEVICE void await(const Ring& stage) const {
    if (!XLSTM_MUTANT("mlstm_walk: a stage is read before it is filled")) stage.await_full();
  }

  static XLSTM_DEVICE uint32_t q_of(const Ring& stage) { return stage.memory(); }
  static XLSTM_DEVICE uint32_t k_of(const Ring& stage) { return stage.memory() + S::kDepthSlabs * kSlabBytes; }
  XLSTM_DEVICE uint32_t values() const { return k_of(ring) + (S::kDepthSlabs + group) * kSlabBytes; }

  template <int kCount>
  using Sums = float[kCount / 4][4];
  // wgmma and mma have the same accumulators for the 16 rows of a warp.
  template <int kCount>
  static XLSTM_DEVICE Sums<kCount>& in_blocks(float (&x)[kCount]) {
    return reinterpret_cast<Sums<kCount>&>(x);
  }
  static XLSTM_DEVICE bool is_finite(uint32_t two) {
    return (((two & 0x7f807f80) + 0x00800080) & 0x80008000) == 0;  // exponents of ones carry into the signs
  }
  static XLSTM_DEVICE bool is_finite(float x) { return x - x == 0; }
  static XLSTM_DEVICE float scaled(float x, float g) { return g == 0 ? 0 : g * x; }

  // ---- the state at both ends of the walk ----

  // visit(x, index, inside) for every value of the state; index: into (Dqk, Dv).
  template <class Visit>
  XLSTM_DEVICE void for_state(Visit visit) {
    const int64_t dqk = p.states.shape.head_dim_qk, dv = p.states.shape.head_dim_v;
    const int row = 2 * lane_pair(), column = block.first_column + group * kSlabColumns + m + lane_group();
#pragma unroll
    for (int j = 0; j < kDepth / 2; ++j) {
      const int a = row + j / 4 * 8 + j % 2, b = column + j / 2 % 2 * 8;
      visit(state[j], a * dv + b, a < dqk && b < dv);
    }
  }

  // take(x, y) for the state and n, y those of C and n; null: zero. n by the group whose duty begins.
  template <class Take>
  XLSTM_DEVICE void take(const float* C, const float* n, Take take) {
    for_state([&](float& x, int64_t index, bool inside) { take(x, C && inside ? C[index] : 0); });
    if (!on_duty(0)) return;
    for (int a = thread_of_team(); a < kDepth; a += kGroupThreads) {
      take(s.n[0][a], n && a < p.states.shape.head_dim_qk ? n[a] : 0);
    }
  }

  // From the sequence's start to that of the segment.
  XLSTM_DEVICE void load_start() {
    const MlstmStatesParams<float>& of = p.states;
    const int64_t dqk = of.shape.head_dim_qk, size = dqk * of.shape.head_dim_v;
    take(of.start.C ? of.start.C + block.state * size : nullptr, of.start.n ? of.start.n + block.state * dqk : nullptr,
         [](float& x, float y) { x = y; });
#pragma unroll 1
    for (int i = 0; i < block.segment; ++i) {
      const float decay = decay_over(of, block, chunks_of(of, block.chunks, i));
      const int64_t own = own_state(of, block, i);
      take(of.own.C + own * size, of.own.n + own * dqk, [decay](float& x, float y) { x = scaled(x, decay) + y; });
    }
    sync();  // n
  }

  // Where the sequence ends.
  XLSTM_DEVICE void store_end() {
    const MlstmStatesParams<float>& of = p.states;
    if (block.segment != of.segments - 1) return;
    const int64_t dqk = of.shape.head_dim_qk;
    float* C = of.end.C + block.state * dqk * of.shape.head_dim_v;
    for_state([C](float x, int64_t index, bool inside) {
      if (inside) C[index] = x;
    });
    if (on_duty(span)) store_n(of.end.n + block.state * dqk, span);
  }

  XLSTM_DEVICE void store_n(float* to, int of) const {
    if (!has_n(block)) return;
    for (int a = thread_of_team(); a < p.states.shape.head_dim_qk; a += kGroupThreads) to[a] = s.n[of % 2][a];
  }

  // ---- out, of this span ----

  XLSTM_DEVICE void store_chunk(int chunk) {
    const MlstmShape& shape = p.states.shape;
    const int64_t slot = block.slot + chunk, size = shape.head_dim_qk * shape.head_dim_v;
    T* C = static_cast<T*>(p.states.states) + slot * size;
#pragma unroll
    for (int slab = 0; slab < S::kDepthSlabs; ++slab) {
      const int row = slab * kSlabColumns, rows = static_cast<int>(shape.head_dim_qk) - row;
      store_transposed(reinterpret_cast<float (&)[S::kDepthSlabs][kSpan / 2]>(state)[slab], C + row * shape.head_dim_v,
                       shape.head_dim_v, rows);
    }
  }

  XLSTM_DEVICE void add_state(const SpanGates& gates) {
#pragma unroll
    for (float& x : out) x = 0;
    constexpr int kSlabs = S::kDepthSlabs == 2 ? 2 : 1;  // at once: more would not fit the registers
#pragma unroll
    for (int slab = 0; slab < S::kDepthSlabs; slab += kSlabs) {
      F::A a[kSlabs * kSlabSteps];
#pragma unroll
      for (int step = 0; step < kSlabs * kSlabSteps; ++step) {
        F::to_a(a[step], in_blocks(state), slab * kSlabSteps + step);
        wgmma_operands(a[step].x);
      }
      wgmma_operands(out);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kSlabs * kSlabSteps; ++step) {
        const uint32_t tokens = q_of(ring) + (slab + step / kSlabSteps) * kSlabBytes;
        wgmma_rs<T, kSpan>(out, a[step].x, k_major(tokens, step % kSlabSteps));
      }
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_operands(out);
#pragma unroll
      for (F::A& of_step : a) wgmma_operands(of_step.x);
    }
    for_tokens(out, gates.of_state, [](float& x, float weight) { x = scaled(x, weight); });
  }

  // f(x, vector[t]) for out of tokens t
  template <class Out, class Apply>
  static XLSTM_DEVICE void for_tokens(Out& out, const float* vector, Apply f) {
#pragma unroll
    for (int j = 0; j < kSpan / 8; ++j) {
      const float* of = vector + 8 * j + 2 * lane_pair();
      const float even = of[0], odd = of[1];
      f(out[4 * j], even), f(out[4 * j + 1], odd), f(out[4 * j + 2], even), f(out[4 * j + 3], odd);
    }
  }

  XLSTM_DEVICE void await_scores() const {
    if (XLSTM_MUTANT("mlstm_walk: scores are read before they are there")) return;
    mbarrier_wait(shared_address(&s.scores_full[span % 2]), span / 2 % 2, {"scores"});
  }

  XLSTM_DEVICE void load_values(Values& to) const {
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      ldmatrix_trans(to[step].x, transposed_fragment_row(values(), step * F::kDepth, m));
    }
  }

  // Values that are not finite would reach earlier tokens, as NaN times their zero in P: they are added one by one.
  XLSTM_DEVICE void add_values() {
    Values of_span;
    load_values(of_span);
    bool odd = false;
#pragma unroll
    for (F::A& of_step : of_span) {
#pragma unroll
      for (uint32_t two : of_step.x) odd |= !is_finite(two);
    }
    odd = __any_sync(~0u, odd) && !XLSTM_MUTANT("mlstm_walk: a NaN reaches earlier tokens");
    if (odd) clear_odd(of_span);
#pragma unroll
    for (F::A& of_step : of_span) wgmma_operands(of_step.x);
    wgmma_operands(out);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      wgmma_rs<T, kSpan>(out, of_span[step].x, k_major(s.scores(span), step));
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_operands(out);
    finish(of_span);
    if (opaque(static_cast<int>(odd))) add_odd();  // asked anew, so that the products above are there once
    __syncwarp();
  }

  static XLSTM_DEVICE void clear_odd(Values& values) {
#pragma unroll
    for (F::A& of_step : values) {
#pragma unroll
      for (uint32_t& two : of_step.x) {
        if (!is_finite(two & 0xffff)) two &= 0xffff0000;
        if (!is_finite(two & 0xffff0000)) two &= 0xffff;
      }
    }
  }

  XLSTM_DEVICE float element(uint32_t slab, int row, int column) const {
    return static_cast<float>(s.template at<const T>(piece_of_row(slab, row, column) + column % 8 * sizeof(T)));
  }

  XLSTM_DEVICE void add_odd() {
#pragma unroll 1
    for (int key = 0; key < kSpan; ++key) {
      const int row = m + lane_group();
      const float value[2] = {element(values(), key, row), element(values(), key, row + 8)};
      const bool odd[2] = {!is_finite(value[0]), !is_finite(value[1])};
      if (!odd[0] && !odd[1]) continue;
#pragma unroll
      for (int i = 0; i < kSpan / 2; ++i) {
        const int token = i / 4 * 8 + 2 * lane_pair() + i % 2, half = i / 2 % 2;
        if (odd[half] && key <= token) out[i] += element(s.scores(span), token, key) * value[half];
      }
    }
  }

  // ---- the state of the next span ----

  // Begins; nothing may touch the state and `values` until it is waited for.
  XLSTM_DEVICE void begin_update(const SpanGates& gates, Values& values) {
    const float decay = XLSTM_MUTANT("mlstm_walk: the state does not decay") ? 1 : gates.decay;
#pragma unroll
    for (float& x : state) x *= decay;
    if (decay == 0) {  // also what is not finite
#pragma unroll
      for (float& x : state) x = 0;
    }
    load_values(values);
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      F::weigh(values[step], gates.weights + step * F::kDepth);
      wgmma_operands(values[step].x);
    }
    wgmma_operands(state);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      wgmma_rs<T, kDepth, true>(state, values[step].x, mn_major(k_of(ring), step));
    }
    wgmma_commit();
  }

  static XLSTM_DEVICE void finish(Values& values) {
#pragma unroll
    for (F::A& of_step : values) wgmma_operands(of_step.x);
  }
  XLSTM_DEVICE void finish_update(Values& values) {
    wgmma_wait<0>();
    wgmma_operands(state);
    finish(values);
  }

  // Ends the update. Meanwhile whoever has the duty computes what the next span needs, if there is one.
  XLSTM_DEVICE void prepare_next(const SpanGates& gates, Values& values, bool more) {
    if (!on_duty(span + 1)) {
      finish_update(values);
    } else if (!more) {
      advance_n(gates);
      finish_update(values);
    } else {
      Scores scores;
      begin_scores(scores);
      advance_n(gates);
      finish_update(values);
      finish_scores(scores, span + 1);
    }
  }

  // n of the next span, from K of this one.
  XLSTM_DEVICE void advance_n(const SpanGates& gates) const {
    const float* from = s.n[span % 2];
    float* to = s.n[(span + 1) % 2];
#pragma unroll 1
    for (int slab = 0; slab < S::kDepthSlabs; ++slab) {
      float sums[2] = {};
#pragma unroll
      for (int step = 0; step < kSlabSteps; ++step) {
        F::A a;
        ldmatrix_trans(a.x, transposed_fragment_row(k_of(ring) + slab * kSlabBytes, step * F::kDepth, m));
        F::dot(sums, a, gates.weights + step * F::kDepth);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = slab * kSlabColumns + m + lane_group() + 8 * half;
        const float sum = sum_of_row(sums[half]);
        if (lane_pair() == 0) to[row] = scaled(from[row], gates.decay) + sum;
      }
    }
    sync(XLSTM_MUTANT("mlstm_walk: n is read before it is there"));
  }

  // ---- scores of the next span ----

  XLSTM_DEVICE void begin_scores(Scores& scores) const {
    const SpanGates& gates = s.spans[ahead.stage()];
    const int count = uniform(gates.count);
    if (count < kSpan && !XLSTM_MUTANT("mlstm_walk: tokens past the span are kept")) clear_rest(count);
#pragma unroll
    for (float& x : scores) x = 0;
    wgmma_operands(scores);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < S::kDepthSlabs * kSlabSteps; ++step) {
      const uint32_t slab = step / kSlabSteps * kSlabBytes;
      wgmma_ss<T, kSpan>(scores, k_major(q_of(ahead) + slab, step % kSlabSteps),
                         k_major(k_of(ahead) + slab, step % kSlabSteps));
    }
    wgmma_commit();
  }

  // TMA knows no spans: what it brought of other tokens' keys and values becomes zero.
  XLSTM_DEVICE void clear_rest(int count) const {
    constexpr int kPieces = kSlabRow / 16;
#pragma unroll 1
    for (int i = thread_of_team(); i < (kSpan - count) * kPieces; i += kGroupThreads) {
      const uint32_t at = k_of(ahead) + (count + i / kPieces) * kSlabRow + i % kPieces * 16;
      for (int slab = 0; slab < S::kDepthSlabs + groups; ++slab) s.template at<uint4>(at + slab * kSlabBytes) = {};
    }
    fence_proxy_async();
    sync();
  }

  // P, and what h of its rows is multiplied by.
  XLSTM_DEVICE void finish_scores(Scores& scores, int of) const {
    wgmma_operands(scores);
    const SpanGates& gates = s.spans[ahead.stage()];
    if (p.states.normalisers && gates.chunk >= 0) {
      store_n(p.states.normalisers + (block.slot + gates.chunk) * p.states.shape.head_dim_qk, of);
    }
    float r[2];
    dots_with_n(of, r);
    const int row = m + lane_group();
#pragma unroll
    for (int half = 0; half < 2; ++half) r[half] = scaled(r[half], gates.of_state[row + 8 * half]);
    weigh(scores, gates, r);
    store_scores(scores, of);
#pragma unroll
    for (int half = 0; half < 2; ++half) finish_row(gates, of, row + 8 * half, r[half]);
    fence_proxy_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(shared_address(&s.scores_full[of % 2]));
  }

  // This lane's parts of q.n
  XLSTM_DEVICE void dots_with_n(int of, float (&sums)[2]) const {
    sums[0] = sums[1] = 0;
#pragma unroll 4
    for (int step = 0; step < S::kDepthSlabs * kSlabSteps; ++step) {
      F::A a;
      ldmatrix(a.x, fragment_row(q_of(ahead) + step / kSlabSteps * kSlabBytes, m, step % kSlabSteps));
      F::dot(sums, a, s.n[of % 2] + step * F::kDepth);
    }
  }

  // Scores become P; sums of its rows, before they are rounded, are added to r.
  XLSTM_DEVICE void weigh(Scores& scores, const SpanGates& gates, float (&r)[2]) const {
    const int row = m + lane_group(), blind = XLSTM_MUTANT("mlstm_walk: a token does not see itself");
    const Pair<float> z[2] = {gates.z[row], gates.z[row + 8]};
#pragma unroll
    for (int i = 0; i < kSpan / 2; ++i) {
      const int key = i / 4 * 8 + 2 * lane_pair() + i % 2, half = i / 2 % 2;
      const float weighted = scores[i] * decay(gates.y[key], z[half]);
      scores[i] = key + blind <= row + 8 * half ? weighted : 0;
      r[half] += scores[i];
    }
  }

  XLSTM_DEVICE void store_scores(Scores& scores, int of) const {
    const int lane = threadIdx.x % 32, row = m + lane % 16, column = lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      F::A a;
      F::to_a(a, in_blocks(scores), step);
      stmatrix(piece_of_row(s.scores(of), row, step * F::kDepth + column), a.x);
    }
  }

  // sum: this lane's part of r, without the scale of q.
  XLSTM_DEVICE void finish_row(const SpanGates& gates, int of, int row, float sum) const {
    const float scale = static_cast<float>(p.options.scale), r = scale * sum_of_row(sum);
    if (lane_pair() != 0) return;
    s.of_rows[of % 2][row] = scale / denominator(p.options, r, denominator_floor(p.options, gates.m[row]));
    if (!has_n(block) || row >= gates.count) return;
    p.r[block.batch_head * p.states.shape.seqlen + block.tokens.begin + gates.first + row] = r;
  }

  // ---- to memory ----

  XLSTM_DEVICE void store_h(const SpanGates& gates) {
    for_tokens(out, s.of_rows[span % 2], [](float& x, float of_row) { x *= of_row; });
    T* to = static_cast<T*>(const_cast<void*>(p.h.data)) +
            p.h.offset(block.tokens.row, block.head, block.tokens.begin + gates.first);
    store_transposed(out, to, p.h.time, gates.count);
  }

  // The group's columns of a matrix at `to`, rows of which are columns of x.
  XLSTM_DEVICE void store_transposed(float (&x)[kSpan / 2], T* to, int64_t pitch, int rows) {
    const int thread = thread_of_team(), lane = thread % 32, row = lane / 16 * 8 + lane % 8,
              column = m + lane / 8 % 2 * 8;
    const uint32_t slab = s.output(group);
    sync(XLSTM_MUTANT("mlstm_walk: a tile is overwritten while it is stored"));
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      F::A a;
      F::to_a(a, in_blocks(x), step);
      stmatrix_trans(piece_of_row(slab, step * F::kDepth + row, column), a.x);
    }
    sync(XLSTM_MUTANT("mlstm_walk: a tile is stored before it is there"));
    constexpr int kPieces = kSlabColumns / 8, kRowsAtOnce = kGroupThreads / kPieces;
    const int first_row = thread / kPieces, piece = thread % kPieces * 8,
              first_column = block.first_column + group * kSlabColumns + piece;
    if (first_column >= p.states.shape.head_dim_v) return;
    uint4 pieces[kSpan / kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kSpan / kRowsAtOnce; ++i) {
      pieces[i] = s.template at<uint4>(piece_of_row(slab, i * kRowsAtOnce + first_row, piece));
    }
    to += first_row * pitch + first_column;
#pragma unroll
    for (int i = 0; i < kSpan / kRowsAtOnce; ++i) {
      const int at = i * kRowsAtOnce;
      if (at + first_row < rows) store_whole(reinterpret_cast<uint4*>(to + at * pitch), pieces[i]);
    }
  }
};

}  // namespace
}  // namespace xlstm::cuda
