#pragma once
// The warpgroups of the forward walk that have the state, St = C^T: X, Y, Z are Q, K, V.
#include "cuda/mlstm_chunkwise/outputs_block.h"
#include "cuda/mlstm_chunkwise/walk.h"
#include "cuda/mlstm_chunkwise/walk_spans.h"
#include "cuda/mlstm_chunkwise/walk_tile.h"

namespace xlstm::cuda {
namespace {

// What the warpgroups share besides.
template <int kDepth>
struct ForwardShared {
  float n[2][kDepth];       // that enters a span
  float of_rows[2][kSpan];  // what h of a token is multiplied by
};
template <int kDepth, int kGroups>
using WalkShared = Shared<SpanGates, ForwardShared<kDepth>, kDepth, kGroups>;

template <class S>
struct Consumer : WalkTile<S> {
  using Tile = WalkTile<S>;
  using F = typename Tile::F;
  using Scores = typename Tile::Scores;
  using Values = typename Tile::Values;
  using Tile::kDepth, Tile::s, Tile::block, Tile::group, Tile::span, Tile::m, Tile::out;
  using Tile::stage_of, Tile::sync, Tile::on_duty, Tile::sums;

  const MlstmWalkParams& p;

  XLSTM_DEVICE Consumer(const MlstmWalkParams& p_, S& s_, int group_) : Tile(s_, group_), p(p_) {}

  XLSTM_DEVICE void run() {
    load_start();
    this->await(stage_of(span));
    bool more = this->begins(stage_of(span));
    if (more && on_duty(span)) {
      Scores scores;
      begin_scores(scores, stage_of(span));
      wgmma_wait<0>();
      finish_scores(scores, stage_of(span), span);
    }
#pragma unroll 1
    while (more) {
      const SpanGates& gates = this->gates_of(stage_of(span));
      if (p.states.states && gates.chunk >= 0) store_chunk(gates.chunk);
      this->add_state(gates.of_state);
      this->await_scores();
      this->add_values([](int token, int value) { return value <= token; });
      Values values;
      this->begin_update(gates.decay, gates.weights, values, [](const F::A&, int) {});
      store_h(gates);
      const Ring next = stage_of(span + 1);
      this->await(next);
      more = this->begins(next);
      prepare_next(next, gates, values, more);
      this->advance();
    }
    store_end();
  }

 private:
  // ---- the state at both ends of the walk ----

  XLSTM_DEVICE void load_start() {
    this->template load_C<true>(p.states);
    if (on_duty(0)) load_n(p.states);
  }

  XLSTM_DEVICE void load_n(const MlstmStatesParams<float>& of) const {
    const int64_t dqk = of.shape.head_dim_qk;
    const float* n = of.start.n ? of.start.n + block.state * dqk : nullptr;
    for (int a = thread_of_team(); a < kDepth; a += kGroupThreads) s.extra.n[0][a] = n && a < dqk ? n[a] : 0;
#pragma unroll 1
    for (int i = 0; i < block.segment; ++i) {
      const float decay = decay_over(of, block, chunks_of(of, block.chunks, i));
      const float* own = of.own.n + own_state(of, block, i) * dqk;
      for (int a = thread_of_team(); a < kDepth; a += kGroupThreads) {
        float& x = s.extra.n[0][a];
        x = times_weight(x, decay) + (a < dqk ? own[a] : 0);
      }
    }
    sync();
  }

  // Where the sequence ends.
  XLSTM_DEVICE void store_end() {
    const MlstmStatesParams<float>& of = p.states;
    if (block.segment != of.segments - 1) return;
    const int64_t dqk = of.shape.head_dim_qk;
    float* C = of.end.C + block.state * dqk * of.shape.head_dim_v;
    this->template for_state<true>(of.shape, [C](float x, int64_t index, bool inside) {
      if (inside) C[index] = x;
    });
    if (on_duty(span)) store_n(of.end.n + block.state * dqk, span);
  }

  XLSTM_DEVICE void store_n(float* to, int of) const {
    if (!has_n(block)) return;
    for (int a = thread_of_team(); a < p.states.shape.head_dim_qk; a += kGroupThreads) to[a] = s.extra.n[of % 2][a];
  }

  XLSTM_DEVICE void store_chunk(int chunk) {
    const MlstmShape& shape = p.states.shape;
    const int64_t slot = block.slot + chunk, size = shape.head_dim_qk * shape.head_dim_v;
    T* C = static_cast<T*>(p.states.states) + slot * size;
#pragma unroll
    for (int slab = 0; slab < S::kDepthSlabs; ++slab) {
      const int row = slab * kSlabColumns, rows = static_cast<int>(shape.head_dim_qk) - row;
      this->store_transposed(reinterpret_cast<float (&)[S::kDepthSlabs][kSpan / 2]>(sums())[slab],
                             C + row * shape.head_dim_v, shape.head_dim_v, shape.head_dim_v, 0, rows);
    }
  }

  // ---- of the next span ----

  // Ends the update. Meanwhile whoever has the duty computes what the next span needs, if there is one.
  XLSTM_DEVICE void prepare_next(const Ring& next, const SpanGates& gates, Values& values, bool more) {
    if (!on_duty(span + 1)) {
      this->finish_update(values);
    } else if (!more) {
      advance_n(gates);
      this->finish_update(values);
    } else {
      Scores scores;
      begin_scores(scores, next);
      advance_n(gates);
      this->finish_update(values);
      finish_scores(scores, next, span + 1);
    }
  }

  XLSTM_DEVICE void begin_scores(Scores& scores, const Ring& stage) const {
    Tile::begin_scores(scores, stage, 0, uniform(this->gates_of(stage).count));
  }

  // n of the next span, from K of this one.
  XLSTM_DEVICE void advance_n(const SpanGates& gates) const {
    const float* from = s.extra.n[span % 2];
    float* to = s.extra.n[(span + 1) % 2];
#pragma unroll 1
    for (int slab = 0; slab < S::kDepthSlabs; ++slab) {
      float dots[2] = {};
#pragma unroll
      for (int step = 0; step < kSlabSteps; ++step) {
        typename F::A a;
        ldmatrix_trans(a.x,
                       transposed_fragment_row(Tile::y_of(stage_of(span)) + slab * kSlabBytes, step * F::kDepth, m));
        F::dot(dots, a, gates.weights + step * F::kDepth);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = slab * kSlabColumns + m + lane_group() + 8 * half;
        const float sum = sum_of_row(dots[half]);
        if (lane_pair() == 0) to[row] = times_weight(from[row], gates.decay) + sum;
      }
    }
    sync(XLSTM_MUTANT("mlstm_walk: n is read before it is there"));
  }

  // P, and what h of its rows is multiplied by.
  XLSTM_DEVICE void finish_scores(Scores& scores, const Ring& stage, int of) const {
    wgmma_operands(scores);
    const SpanGates& gates = this->gates_of(stage);
    if (p.states.normalisers && gates.chunk >= 0) {
      store_n(p.states.normalisers + (block.slot + gates.chunk) * p.states.shape.head_dim_qk, of);
    }
    float r[2];
    dots_with_n(stage, of, r);
    const int row = m + lane_group();
#pragma unroll
    for (int half = 0; half < 2; ++half) r[half] = times_weight(r[half], gates.of_state[row + 8 * half]);
    weigh(scores, gates, r);
    this->store_scores(scores, of);
#pragma unroll
    for (int half = 0; half < 2; ++half) finish_row(gates, of, row + 8 * half, r[half]);
    this->publish(of);
  }

  // This lane's parts of q.n
  XLSTM_DEVICE void dots_with_n(const Ring& stage, int of, float (&dots)[2]) const {
    dots[0] = dots[1] = 0;
#pragma unroll 4
    for (int step = 0; step < S::kDepthSlabs * kSlabSteps; ++step) {
      typename F::A a;
      ldmatrix(a.x, fragment_row(Tile::x_of(stage) + step / kSlabSteps * kSlabBytes, m, step % kSlabSteps));
      F::dot(dots, a, s.extra.n[of % 2] + step * F::kDepth);
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

  // sum: this lane's part of r, without the scale of q.
  XLSTM_DEVICE void finish_row(const SpanGates& gates, int of, int row, float sum) const {
    const float scale = static_cast<float>(p.options.scale), r = scale * sum_of_row(sum);
    if (lane_pair() != 0) return;
    s.extra.of_rows[of % 2][row] = scale / denominator(p.options, r, denominator_floor(p.options, gates.m[row]));
    if (!has_n(block) || row >= gates.count) return;
    p.r[block.batch_head * p.states.shape.seqlen + block.tokens.begin + gates.first + row] = r;
  }

  XLSTM_DEVICE void store_h(const SpanGates& gates) {
    this->for_tokens(s.extra.of_rows[span % 2], [](float& x, float of_row) { x *= of_row; });
    T* to = static_cast<T*>(const_cast<void*>(p.h.data)) +
            p.h.offset(block.tokens.row, block.head, block.tokens.begin + gates.first);
    this->store_transposed(out, to, p.h.time, p.states.shape.head_dim_v, 0, gates.count);
  }
};

}  // namespace
}  // namespace xlstm::cuda
