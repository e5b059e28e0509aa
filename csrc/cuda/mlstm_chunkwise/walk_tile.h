#pragma once
// What the warpgroups of every walk do: a warpgroup has 64 rows b of the state, St, and its columns a as accumulators.
//
//   out = (St X^T) of_rows + Z^T P^T       P = weights applied to X Y^T, rows of P are tokens of out
//   St  = decay St + (weights Z)^T Y
//
// St in bfloat16 and Z^T are operands in registers; X, Y and P lie in shared memory as they are.
#include "cuda/mlstm_chunkwise/outputs_block.h"
#include "cuda/mlstm_chunkwise/walk_block.h"

namespace xlstm::cuda {
namespace {

template <class S>
struct WalkTile {
  using F = Fragments<kProduct>;
  using Gates = typename S::Gates;
  using Values = F::A[kSlabSteps];  // Z^T of the warp's rows, all tokens of a span
  using Scores = float[kSpan / 2];
  static constexpr int kDepth = S::kDepth;

  S& s;
  const Block& block;
  const int group;
  int span = 0;
  const int m = thread_of_team() / 32 * 16;  // the warp's rows of 64, of the state or of tokens
  State<kProduct, kDepth> state;
  float out[kSpan / 2];

  XLSTM_DEVICE WalkTile(S& s_, int group_) : s(s_), block(s_.blocks[group_]), group(group_) {}

  XLSTM_DEVICE void sync(bool left_out = false) const {
    if (!left_out) barrier_sync(kFirstTeamBarrier + group, kGroupThreads);
  }
  // The first of this lane's two rows b; the other one is 8 further.
  XLSTM_DEVICE int first_row() const { return s.first_column + group * kSlabColumns + m + lane_group(); }
  XLSTM_DEVICE Ring stage_of(int of) const { return s.ring().at(of); }
  XLSTM_DEVICE bool on_duty(int of) const { return S::kGroups == 1 || (of & (uniform(s.groups) - 1)) == group; }
  XLSTM_DEVICE const Gates& gates_of(const Ring& stage) const { return s.spans[stage.stage()]; }
  XLSTM_DEVICE bool begins(const Ring& stage) const { return uniform(gates_of(stage).count) != 0; }
  XLSTM_DEVICE void await(const Ring& stage) const {
    if (!XLSTM_MUTANT("mlstm_walk: a stage is read before it is filled")) stage.await_full();
  }
  // Goes to the next span; TMA writes where ordinary loads have read.
  XLSTM_DEVICE void advance() {
    fence_proxy_async();
    stage_of(span).release();
    ++span;
  }

  static XLSTM_DEVICE uint32_t x_of(const Ring& stage) { return stage.memory(); }
  static XLSTM_DEVICE uint32_t y_of(const Ring& stage) { return stage.memory() + S::kDepthSlabs * kSlabBytes; }
  XLSTM_DEVICE uint32_t z() const { return y_of(stage_of(span)) + (S::kDepthSlabs + group) * kSlabBytes; }

  template <int kCount>
  using Blocks = float[kCount / 4][4];
  // wgmma and mma have the same accumulators for the 16 rows of a warp.
  template <int kCount>
  static XLSTM_DEVICE Blocks<kCount>& in_blocks(float (&x)[kCount]) {
    return reinterpret_cast<Blocks<kCount>&>(x);
  }
  using Sums = float[kDepth / 2];
  XLSTM_DEVICE Sums& sums() { return reinterpret_cast<Sums&>(state.C); }

  static XLSTM_DEVICE bool is_finite(uint32_t two) {
    return (((two & 0x7f807f80) + 0x00800080) & 0x80008000) == 0;  // exponents of ones carry into the signs
  }
  static XLSTM_DEVICE bool is_finite(float x) { return x - x == 0; }
  // What a product in flight has read may change.
  template <int kCount>
  static XLSTM_DEVICE void finish(F::A (&operands)[kCount]) {
#pragma unroll
    for (F::A& of_step : operands) wgmma_operands(of_step.x);
  }

  // ---- the state in memory. kTransposed: its rows b are columns of C ----

  // visit(x, index, inside) for every value of the state; index: into (Dqk, Dv).
  template <bool kTransposed, class Visit>
  XLSTM_DEVICE void for_state(const MlstmShape& shape, Visit visit) {
    const int64_t dqk = shape.head_dim_qk, dv = shape.head_dim_v;
    const int column = 2 * lane_pair(), row = first_row();
#pragma unroll
    for (int j = 0; j < kDepth / 2; ++j) {
      const int a = column + j / 4 * 8 + j % 2, b = row + j / 2 % 2 * 8;
      if (kTransposed) {
        visit(sums()[j], a * dv + b, a < dqk && b < dv);
      } else {
        visit(sums()[j], b * dv + a, b < dqk && a < dv);
      }
    }
  }

  // C or dC where the segment begins, from where the sequence begins.
  template <bool kTransposed>
  XLSTM_DEVICE void load_C(const MlstmStatesParams<float>& p) {
    const int64_t size = p.shape.head_dim_qk * p.shape.head_dim_v;
    const float* C = p.start.C ? p.start.C + block.state * size : nullptr;
    for_state<kTransposed>(p.shape, [C](float& x, int64_t index, bool inside) { x = C && inside ? C[index] : 0; });
#pragma unroll 1
    for (int i = 0; i < block.segment; ++i) {
      const float decay = decay_over(p, block, chunks_of(p, block.chunks, i));
      const float* own = p.own.C + own_state(p, block, i) * size;
      for_state<kTransposed>(p.shape, [decay, own](float& x, int64_t index, bool inside) {
        x = times_weight(x, decay) + (inside ? own[index] : 0);
      });
    }
  }

  // ---- out ----

  // Operands are made while others are multiplied: two sets, no larger than registers allow.
  XLSTM_DEVICE void add_state(const float* of_rows) {
    constexpr int kSteps = S::kDepthSlabs * kSlabSteps, kAtOnce = kDepth == kMaxDepth ? 2 : 4;
    F::A sets[2][kAtOnce];
#pragma unroll
    for (float& x : out) x = 0;
    wgmma_operands(out);
#pragma unroll
    for (int first = 0; first < kSteps; first += kAtOnce) {
      auto& a = sets[first / kAtOnce % 2];
      if (first >= 2 * kAtOnce) {
        wgmma_wait<1>();
        finish(a);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        F::to_a(a[i], in_blocks(sums()), first + i);
        wgmma_operands(a[i].x);
      }
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t tokens = x_of(stage_of(span)) + (first + i) / kSlabSteps * kSlabBytes;
        wgmma_rs<T, kSpan>(out, a[i].x, k_major(tokens, (first + i) % kSlabSteps));
      }
      wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_operands(out);
    finish(sets[0]);
    if constexpr (kSteps > kAtOnce) finish(sets[1]);
    for_tokens(of_rows, [](float& x, float weight) { x = times_weight(x, weight); });
  }

  // f(x, vector[t]) for out of tokens t
  template <class Apply>
  XLSTM_DEVICE void for_tokens(const float* vector, Apply f) {
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
      ldmatrix_trans(to[step].x, transposed_fragment_row(z(), step * F::kDepth, m));
    }
  }

  // Values that are not finite would reach tokens that do not see them, as NaN times their zero in P: they are added
  // one by one. sees(token, value): whether it does.
  template <class Sees>
  XLSTM_DEVICE void add_values(Sees sees) {
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
    finish(of_span);
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
    if (opaque(static_cast<int>(odd))) add_odd(sees);  // asked anew, so that the products above are there once
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

  template <class Sees>
  XLSTM_DEVICE void add_odd(Sees sees) {
#pragma unroll 1
    for (int value = 0; value < kSpan; ++value) {
      const int row = m + lane_group();
      const float x[2] = {element(z(), value, row), element(z(), value, row + 8)};
      const bool odd[2] = {!is_finite(x[0]), !is_finite(x[1])};
      if (!odd[0] && !odd[1]) continue;
#pragma unroll
      for (int i = 0; i < kSpan / 2; ++i) {
        const int token = i / 4 * 8 + 2 * lane_pair() + i % 2, half = i / 2 % 2;
        if (odd[half] && sees(token, value)) out[i] += element(s.scores(span), token, value) * x[half];
      }
    }
  }

  // ---- the state of the next span ----

  // Begins; nothing may touch the state and `values` until finish_update. look(values): before they get their weights.
  template <class Look>
  XLSTM_DEVICE void begin_update(float decay, const float* weights, Values& values, Look look) {
    if (XLSTM_MUTANT("mlstm_walk: the state does not decay")) decay = 1;
#pragma unroll
    for (float& x : sums()) x *= decay;
    if (decay == 0) {  // also what is not finite
#pragma unroll
      for (float& x : sums()) x = 0;
    }
    load_values(values);
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      look(values[step], step * F::kDepth);
      F::weigh(values[step], weights + step * F::kDepth);
      wgmma_operands(values[step].x);
    }
    wgmma_operands(sums());
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      wgmma_rs<T, kDepth, true>(sums(), values[step].x, mn_major(y_of(stage_of(span)), step));
    }
    wgmma_commit();
  }

  XLSTM_DEVICE void finish_update(Values& values) {
    wgmma_wait<0>();
    wgmma_operands(sums());
    finish(values);
  }

  // ---- scores of a span, mostly of the next one ----

  // first, end: rows of its stage that are tokens of the span.
  XLSTM_DEVICE void begin_scores(Scores& scores, const Ring& stage, int first, int end) const {
    if ((first > 0 || end < kSpan) && !XLSTM_MUTANT("mlstm_walk: tokens past the span are kept")) {
      clear_others(stage, first, end);
    }
#pragma unroll
    for (float& x : scores) x = 0;
    wgmma_operands(scores);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < S::kDepthSlabs * kSlabSteps; ++step) {
      const uint32_t slab = step / kSlabSteps * kSlabBytes;
      wgmma_ss<T, kSpan>(scores, k_major(x_of(stage) + slab, step % kSlabSteps),
                         k_major(y_of(stage) + slab, step % kSlabSteps));
    }
    wgmma_commit();
  }

  // TMA knows no spans: what it brought of other tokens' Y and Z becomes zero.
  XLSTM_DEVICE void clear_others(const Ring& stage, int first, int end) const {
    constexpr int kPieces = kSlabRow / 16;
#pragma unroll 1
    for (int i = thread_of_team(); i < kSpan * kPieces; i += kGroupThreads) {
      const int row = i / kPieces;
      if (first <= row && row < end) continue;
      const uint32_t at = y_of(stage) + row * kSlabRow + i % kPieces * 16;
      for (int slab = 0; slab < S::kDepthSlabs + s.groups; ++slab) s.template at<uint4>(at + slab * kSlabBytes) = {};
    }
    fence_proxy_async();
    sync();
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

  // P of span `of` is there, and whatever else was written for it.
  XLSTM_DEVICE void publish(int of) const {
    fence_proxy_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(shared_address(&s.scores_full[of % 2]));
  }

  // ---- to memory ----

  // The group's columns of a matrix at `to`, rows of which are columns of x: rows first .. end - 1.
  XLSTM_DEVICE void store_transposed(float (&x)[kSpan / 2], T* to, int64_t pitch, int64_t columns, int first, int end) {
    const int thread = opaque(thread_of_team()), lane = thread % 32, row = lane / 16 * 8 + lane % 8,
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
              first_column = s.first_column + group * kSlabColumns + piece;
    if (first_column >= columns) return;
    uint4 pieces[kSpan / kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kSpan / kRowsAtOnce; ++i) {
      pieces[i] = s.template at<uint4>(piece_of_row(slab, i * kRowsAtOnce + first_row, piece));
    }
    to += first_row * pitch + first_column;
#pragma unroll
    for (int i = 0; i < kSpan / kRowsAtOnce; ++i) {
      const int at = i * kRowsAtOnce, of = at + first_row;
      if (first <= of && of < end) store_whole(reinterpret_cast<uint4*>(to + at * pitch), pieces[i]);
    }
  }
};

}  // namespace
}  // namespace xlstm::cuda
