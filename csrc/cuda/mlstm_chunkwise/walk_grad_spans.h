#pragma once
// The tokens of the walks of dq, dk and dv, span by span, and what the gates say of them.
#include "cuda/mlstm_chunkwise/outputs_block.h"
#include "cuda/mlstm_chunkwise/walk_block.h"
#include "cuda/mlstm_chunkwise/walk_grads.h"

namespace xlstm::cuda {
namespace {

// A span lies in 64 tokens of a chunk, which TMA brings: it is [first, end) of them. A boundary may come before its
// first token and nowhere else, so that it is a chunk of its own. What is said of other
// tokens is zero; nothing is said of rho and n for dv.
struct GradGates {
  Pair<float> y[kSpan], z[kSpan];
  float iota[kSpan], rho[kSpan];             // times the scale of q
  float of_rows[kSpan];                      // of the state in out. dq: b_bar iota; dk, dv: a_bar
  float weights[kSpan];                      // of a token in the state. dq: a_bar; dk, dv: b_bar iota
  float n_of_rows[kSpan], n_weights[kSpan];  // the same for n, with rho in the place of iota
  float decay;                               // g_bar; 0 behind a boundary
  int token;                                 // of the sequence: the first of the 64
  int first, end;
  int count;    // 0: the walk is over
  bool behind;  // backward: a boundary lies between it and the span before. What the walk brings is dropped
  int chunk;    // that the walk enters at its last token; -1: none
};

// What the gates of 64 tokens are made of, as it is in memory.
struct RawGates {
  Pair<float> y[kSpan], z[kSpan];
  int32_t start[kSpan];
  float iota[kSpan], rho[kSpan];
  Pair<float> M;  // the stabiliser that enters them
};

// By all lanes of a warp, each with two tokens of 64: its own one and that 32 further. What a span is made of comes to
// `raw` before it is asked for: in registers there is no room for it.
template <OutputKind O>
class GradSpans {
 public:
  static constexpr bool kForward = O == OutputKind::dq;

  template <class S>
  XLSTM_DEVICE GradSpans(const MlstmStatesParams<float>& p_, S& s)
      : p(p_),
        block(s.blocks[0]),
        raw(s.extra.raw),
        begin(block.range.first * p.chunk_size),
        end(max(begin, min(block.range.end * p.chunk_size, block.length))) {
    load();
  }

  XLSTM_DEVICE bool over() const { return begin >= end; }
  XLSTM_DEVICE int first() const { return (kForward ? begin : end - 1) / kSpan * kSpan; }

  // Describes the next span, and goes on behind it; or says that there is none.
  XLSTM_DEVICE void describe(GradGates& to) {
    if (over()) {
      if (threadIdx.x % 32 == 0) to.count = 0, to.behind = behind;
      return;
    }
    if (!XLSTM_MUTANT("mlstm_walk_grads: gates are read before they are there")) cp_async_wait_all();
    __syncwarp();
    const int token = first();
    const uint64_t cuts = boundaries();
    const Rows of = tokens_of(cuts, max(begin - token, 0), min(end - token, kSpan));
    const bool fresh = cuts >> of.first & 1;
    const Pair<float> M = raw.M, last = raw.z[of.end - 1];
#pragma unroll
    for (int i = 0; i < 2; ++i) describe(to, threadIdx.x % 32 + 32 * i, of, fresh, M, last);
    if (threadIdx.x % 32 == 0) {
      const int stop = token + of.end;
      to.decay = fresh || behind ? 0 : decay<true>(M, last);
      to.behind = behind;
      to.token = token, to.first = of.first, to.end = of.end, to.count = of.end - of.first;
      to.chunk = stop % p.chunk_size == 0 || stop == block.length ? token / p.chunk_size : -1;
    }
    if (kForward) {
      begin = token + of.end;
    } else {
      end = token + of.first;
      behind = fresh && !XLSTM_MUTANT("mlstm_walk_grads: a NaN crosses a boundary");
    }
    __syncwarp();
    load();
  }

 private:
  struct Rows {
    int first, end;
  };

  const MlstmStatesParams<float>& p;
  const Block& block;
  RawGates& raw;
  int begin, end;       // of the tokens that are left
  bool behind = false;  // backward: a boundary lies behind them. The state is dropped there, NaN times 0 as well

  // Token `at` of the 64.
  XLSTM_DEVICE void describe(GradGates& to, int at, Rows of, bool fresh, Pair<float> M, Pair<float> last) const {
    const bool inside = of.first <= at && at < of.end;
    const auto scale = static_cast<float>(p.scale);
    const Pair<float> y = raw.y[at], z = raw.z[at];
    const float a_bar = inside ? decay(y, last) : 0, b_bar = inside && !fresh ? decay(M, z) : 0;
    const float of_state = behind ? 0 : a_bar;
    const float iota = inside ? scale * raw.iota[at] : 0;
    to.y[at] = inside ? y : Pair<float>{0, 0}, to.z[at] = inside ? z : Pair<float>{0, 0};
    to.iota[at] = iota;
    to.of_rows[at] = kForward ? times_weight(iota, b_bar) : of_state;
    to.weights[at] = kForward ? a_bar : times_weight(iota, b_bar);
    if constexpr (!kUsesRho<O>) return;
    const float rho = inside ? scale * raw.rho[at] : 0;
    to.rho[at] = rho;
    to.n_of_rows[at] = kForward ? times_weight(rho, b_bar) : of_state;
    to.n_weights[at] = kForward ? a_bar : times_weight(rho, b_bar);
  }

  // The span among the tokens [from, until) that are left of the 64: the first one, or the last.
  XLSTM_DEVICE static Rows tokens_of(uint64_t cuts, int from, int until) {
    if (kForward) {
      const uint64_t later = cuts >> from >> 1;
      return {from, later ? min(until, from + __ffsll(static_cast<long long>(later))) : until};
    }
    const uint64_t earlier = cuts & (~uint64_t{0} >> (kSpan - until));
    return {earlier ? kSpan - 1 - __clzll(static_cast<long long>(earlier)) : from, until};
  }

  XLSTM_DEVICE void load() const {
    if (over()) return;
    const int token = first();
    const int64_t of_64 = block.batch_head * p.shape.seqlen + block.tokens.begin + token;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = threadIdx.x % 32 + 32 * i;
      const bool inside = token + at < end;
      const int64_t from = inside ? of_64 + at : 0;
      cp_async<8>(shared_address(&raw.y[at]), p.gates.y + from, inside);
      cp_async<8>(shared_address(&raw.z[at]), p.gates.z + from, inside);
      cp_async<4>(shared_address(&raw.start[at]), p.gates.start + from, inside);
      cp_async<4>(shared_address(&raw.iota[at]), p.iota + from, inside);
      if (kUsesRho<O>) cp_async<4>(shared_address(&raw.rho[at]), p.rho + from, inside);
    }
    if (threadIdx.x % 32 != 0) return;
    const bool opens = token % p.chunk_size == 0;
    cp_async<8>(shared_address(&raw.M), opens ? p.gates.M + block.slot + token / p.chunk_size : p.gates.z + of_64 - 1);
  }

  // A bit for every one of the 64 tokens that a boundary comes before.
  XLSTM_DEVICE uint64_t boundaries() const {
    const int lane = threadIdx.x % 32, own = static_cast<int>(block.tokens.begin) + first() + lane;
    const uint64_t low = __ballot_sync(~0u, raw.start[lane] == own),
                   high = __ballot_sync(~0u, raw.start[lane + 32] == own + 32);
    return XLSTM_MUTANT("mlstm_walk_grads: boundaries ignored") ? 0 : high << 32 | low;
  }
};

}  // namespace
}  // namespace xlstm::cuda
