#pragma once
// The warpgroups of the walks of dq, dk and dv. Their state is C or dC (dq, dk), or dC transposed (dv).
#include "cuda/mlstm_chunkwise/walk_grad_spans.h"
#include "cuda/mlstm_chunkwise/walk_tile.h"

namespace xlstm::cuda {
namespace {

// What the warpgroups share besides.
template <int kGroups>
struct GradShared {
  float dots[kGroups][kTeamWarps];         // of the state
  float sums[kGroups][kTeamWarps][kSpan];  // of factor * out, by token: of each warp's rows
  RawGates raw;
};
template <int kDepth, int kGroups>
using WalkGradsShared = Shared<GradGates, GradShared<kGroups>, kDepth, kGroups>;

template <OutputKind O, class S>
struct GradsConsumer : WalkTile<S> {
  using Tile = WalkTile<S>;
  using F = typename Tile::F;
  using Scores = typename Tile::Scores;
  using Values = typename Tile::Values;
  using Tile::kDepth, Tile::s, Tile::block, Tile::group, Tile::span, Tile::m, Tile::out;
  using Tile::stage_of, Tile::sync, Tile::on_duty, Tile::state, Tile::sums;

  const MlstmWalkGradsParams& p;
  const Team<float> team;

  XLSTM_DEVICE GradsConsumer(const MlstmWalkGradsParams& p_, S& s_, int group_)
      : Tile(s_, group_), p(p_), team{s_.extra.dots[group_], kFirstTeamBarrier + group_} {}

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
      const GradGates& gates = this->gates_of(stage_of(span));
      if constexpr (O == OutputKind::dk) {
        if (gates.chunk >= 0) store_dot(gates);
      }
      if constexpr (kUsesRho<O>) begin_factor(gates);
      this->add_state(gates.of_rows);
      this->await_scores();
      if constexpr (kUsesRho<O>) add_n(gates);
      this->add_values([](int token, int value) { return sees(token, value); });
      if constexpr (kUsesRho<O>) {
        for (float& x : state.n) x = times_weight(x, gates.decay);
      }
      Values values;
      this->begin_update(gates.decay, gates.weights, values, [&](const typename F::A& a, int token) {
        if constexpr (kUsesRho<O>) F::dot(state.n, a, gates.n_weights + token);
      });
      store_out(gates);
      const Ring next = stage_of(span + 1);
      this->await(next);
      more = this->begins(next);
      prepare_next(next, values, more);
      this->advance();
    }
    if constexpr (O == OutputKind::dk) store_end();
  }

 private:
  // Whether the token of a row of P sees that of a column, both among the 64 of a span.
  static XLSTM_DEVICE bool sees(int row, int column) { return kRowsAreQueries<O> ? column <= row : column >= row; }

  XLSTM_DEVICE void load_start() {
    this->template load_C<O == OutputKind::dv>(p.states);
    if constexpr (kUsesRho<O>) load_n(p.states);
  }

  // A row's first lane has all of it: sums are taken over four.
  XLSTM_DEVICE void load_n(const MlstmStatesParams<float>& of) {
    const int64_t dqk = of.shape.head_dim_qk;
    const int row = this->first_row();
    const auto element = [&](const float* n, int half) {
      const int b = row + 8 * half;
      return n && lane_pair() == 0 && b < dqk ? n[b] : 0;
    };
    const float* n = of.start.n ? of.start.n + block.state * dqk : nullptr;
    for (int half = 0; half < 2; ++half) state.n[half] = element(n, half);
#pragma unroll 1
    for (int i = 0; i < block.segment; ++i) {
      const float decay = decay_over(of, block, chunks_of(of, block.chunks, i));
      const float* own = of.own.n + own_state(of, block, i) * dqk;
      for (int half = 0; half < 2; ++half) state.n[half] = times_weight(state.n[half], decay) + element(own, half);
    }
  }

  // ---- dk: what is computed of the state ----

  // At the end of a chunk.
  XLSTM_DEVICE void store_dot(const GradGates& gates) {
    if (!gates.behind) return store_chunk_dot(state, team, p.states, block, gates.chunk);
    if (thread_of_team() == 0) p.states.chunk_dots[(block.slot + gates.chunk) * block.tiles + block.tile] = 0;
  }

  // Where the walk ends.
  XLSTM_DEVICE void store_end() {
    if (this->gates_of(stage_of(span)).behind) {
#pragma unroll
      for (float& x : sums()) x = 0;
      for (float& x : state.n) x = 0;
    }
    cuda::store_end(state, team, p.states, block, false);
  }

  // ---- out ----

  XLSTM_DEVICE void add_n(const GradGates& gates) {
    const float n[2] = {sum_of_row(state.n[0]), sum_of_row(state.n[1])};
#pragma unroll
    for (int i = 0; i < kSpan / 2; ++i) {
      out[i] += times_weight(n[i / 2 % 2], gates.n_of_rows[i / 4 * 8 + 2 * lane_pair() + i % 2]);
    }
  }

  // Of the group's columns: what dots of out are taken with. It comes to where out is transposed later.
  XLSTM_DEVICE void begin_factor(const GradGates& gates) const {
    constexpr int kPieces = kSlabColumns / 8, kRowsAtOnce = kGroupThreads / kPieces;
    const int thread = opaque(thread_of_team()), piece = thread % kPieces * 8,
              column = s.first_column + group * kSlabColumns + piece;
    const T* from = static_cast<const T*>(p.factor.data) +
                    p.factor.offset(block.tokens.row, block.head, block.tokens.begin + gates.token) + column;
    sync();  // the last span's out has left
#pragma unroll
    for (int i = 0; i < kSpan / kRowsAtOnce; ++i) {
      const int row = i * kRowsAtOnce + thread / kPieces;
      const bool inside = gates.first <= row && row < gates.end && column < p.states.shape.head_dim_qk;
      const T* at = inside ? from + row * p.factor.time : static_cast<const T*>(p.factor.data);
      cp_async<16>(piece_of_row(s.output(group), row, piece), at, inside);
    }
    cp_async_commit();
  }

  XLSTM_DEVICE void store_out(const GradGates& gates) {
    if constexpr (kUsesRho<O>) sum_up();
    const int64_t columns = kUsesRho<O> ? p.states.shape.head_dim_qk : p.states.shape.head_dim_v;
    T* to = static_cast<T*>(const_cast<void*>(p.out.data)) +
            p.out.offset(block.tokens.row, block.head, block.tokens.begin + gates.token);
    this->store_transposed(out, to, p.out.time, columns, gates.first, gates.end);
    if constexpr (kUsesRho<O>) store_sums(gates);
  }

  // Eight lanes have rows of eight columns. Each time two of them share out the columns that are left, and add them up.
  template <int kLeft>
  static XLSTM_DEVICE void share_out(float (&dots)[8], int mask) {
    const bool upper = threadIdx.x & mask;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const float other = __shfl_xor_sync(~0u, upper ? dots[i] : dots[i + kLeft], mask);
      dots[i] = (upper ? dots[i + kLeft] : dots[i]) + other;
    }
  }

  // Sums of factor * out over the warp's rows, half of the tokens at a time: for more there are no registers.
  XLSTM_DEVICE void sum_up() {
    cp_async_wait_all();
    sync(XLSTM_MUTANT("mlstm_walk_grads: factors are read before they are there"));
    float* to = s.extra.sums[group][thread_of_team() / 32];
#pragma unroll
    for (int first = 0; first < kSlabSteps; first += 2) {
      float dots[8];  // of tokens 16 first + 8 (i / 2) + 2 lane_pair() + i % 2
#pragma unroll
      for (int step = 0; step < 2; ++step) dots_of_step(first + step, dots + 4 * step);
      share_out<4>(dots, 16), share_out<2>(dots, 8), share_out<1>(dots, 4);
      const int lane = threadIdx.x % 32, i = lane / 16 % 2 * 4 + lane / 8 % 2 * 2 + lane / 4 % 2;
      to[first * F::kDepth + i / 2 * 8 + 2 * lane_pair() + i % 2] = dots[0];
    }
  }

  // This lane's part, of 16 tokens.
  XLSTM_DEVICE void dots_of_step(int step, float* dots) const {
    typename F::A f;
    ldmatrix_trans(f.x, transposed_fragment_row(s.output(group), step * F::kDepth, m));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float *low = out + 8 * step + 4 * half, *high = low + 2;
      const uint32_t f_low = f.x[2 * half], f_high = f.x[2 * half + 1];
      dots[2 * half] = low[0] * F::low(f_low) + high[0] * F::low(f_high);
      dots[2 * half + 1] = low[1] * F::high(f_low) + high[1] * F::high(f_high);
    }
  }

  // After a barrier of the group.
  XLSTM_DEVICE void store_sums(const GradGates& gates) const {
    const int row = thread_of_team();
    if (row < gates.first || row >= gates.end) return;
    float sum = 0;
    for (const auto& of_warp : s.extra.sums[group]) sum += of_warp[row];
    const int64_t tiles = (p.states.shape.head_dim_qk + kSlabColumns - 1) / kSlabColumns;
    const int64_t tile = s.first_column / kSlabColumns + group;
    p.row_sums[(block.batch_head * tiles + tile) * p.states.shape.seqlen + block.tokens.begin + gates.token + row] =
        sum;
  }

  // ---- of the next span ----

  // Ends the update. Meanwhile whoever has the duty computes scores, if there is a next span.
  XLSTM_DEVICE void prepare_next(const Ring& next, Values& values, bool more) {
    if (!on_duty(span + 1) || !more) return this->finish_update(values);
    Scores scores;
    begin_scores(scores, next);
    this->finish_update(values);
    finish_scores(scores, next, span + 1);
  }

  XLSTM_DEVICE void begin_scores(Scores& scores, const Ring& stage) const {
    const GradGates& gates = this->gates_of(stage);
    Tile::begin_scores(scores, stage, uniform(gates.first), uniform(gates.end));
  }

  XLSTM_DEVICE void finish_scores(Scores& scores, const Ring& stage, int of) const {
    wgmma_operands(scores);
    weigh(scores, this->gates_of(stage));
    this->store_scores(scores, of);
    this->publish(of);
  }

  XLSTM_DEVICE void weigh(Scores& scores, const GradGates& gates) const {
    const int row = m + lane_group(), first = gates.first, end = gates.end;
    const Pair<float>*rows = kRowsAreQueries<O> ? gates.z : gates.y, *columns = kRowsAreQueries<O> ? gates.y : gates.z;
    const Pair<float> of_row[2] = {rows[row], rows[row + 8]};
    const float iota[2] = {gates.iota[row], gates.iota[row + 8]}, rho[2] = {gates.rho[row], gates.rho[row + 8]};
#pragma unroll
    for (int i = 0; i < kSpan / 2; ++i) {
      const int column = i / 4 * 8 + 2 * lane_pair() + i % 2, half = i / 2 % 2;
      float score = scores[i] * (kRowsAreQueries<O> ? iota[half] : gates.iota[column]);
      if constexpr (kUsesRho<O>) score += kRowsAreQueries<O> ? rho[half] : gates.rho[column];
      const Pair<float> of_column = columns[column];
      score *= kRowsAreQueries<O> ? decay(of_column, of_row[half]) : decay(of_row[half], of_column);
      const bool visible = sees(row + 8 * half, column) && first <= column && column < end;
      scores[i] = visible ? score : 0;
    }
  }
};

}  // namespace
}  // namespace xlstm::cuda
