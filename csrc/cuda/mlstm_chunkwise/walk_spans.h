#pragma once
// The tokens of the forward walk, span by span, and what the gates say of them.
#include "cuda/mlstm_chunkwise/walk_block.h"

namespace xlstm::cuda {
namespace {

// A span has up to 64 tokens of a chunk, and a boundary before its first one or none. So it is a chunk of its own: no
// weight but those of later tokens is masked. z of the last token before it is its M.
struct SpanGates {
  Pair<float> y[kSpan], z[kSpan];
  float of_state[kSpan];  // b_bar
  float weights[kSpan];   // a_bar; 0 past the span
  float m[kSpan];         // the stabiliser
  float decay;            // g_bar; 0 behind a boundary
  int first, count;       // tokens, from the sequence's first one on. count 0: the walk is over
  int chunk;              // that it opens; -1: none
};

// By all lanes of a warp, each with two tokens of a span: its own one and that 32 further. What the gates of a span are
// made of is loaded before the span is asked for, all at once.
class Spans {
 public:
  template <class S>
  XLSTM_DEVICE Spans(const MlstmStatesParams<float>& p_, S& s)
      : p(p_),
        block(s.blocks[0]),
        position(block.range.first * p.chunk_size),
        end(min(block.range.end * p.chunk_size, block.length)) {
    load();
  }

  XLSTM_DEVICE bool over() const { return position >= end; }
  XLSTM_DEVICE int first() const { return position; }

  // Describes the span that begins at `first`, and goes on behind it; or says that there is none.
  XLSTM_DEVICE void describe(SpanGates& to) {
    const int lane = threadIdx.x % 32;
    if (over()) {
      if (lane == 0) to.count = 0;
      return;
    }
    const uint64_t cuts = boundaries();
    const bool fresh = cuts & 1;
    const int count = cuts >> 1 ? __ffsll(static_cast<long long>(cuts >> 1)) : stop() - position;
    const Pair<float> z = count > 32 ? tokens[1].z : tokens[0].z;
    const Pair<float> last = {__shfl_sync(~0u, z.hi, (count - 1) % 32), __shfl_sync(~0u, z.lo, (count - 1) % 32)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = lane + 32 * i;
      const Token token = at < count ? tokens[i] : Token{};
      to.y[at] = token.y, to.z[at] = token.z;
      to.of_state[at] = at < count && !fresh ? decay(M, token.z) : 0;
      to.weights[at] = at < count ? decay(token.y, last) : 0;
      to.m[at] = token.m;
    }
    if (lane == 0) {
      to.decay = fresh ? 0 : decay<true>(M, last);  // C is multiplied by it again and again
      to.first = position, to.count = count;
      to.chunk = opens() ? position / p.chunk_size : -1;
    }
    M = last;
    position += count;
    load();
  }

 private:
  struct Token {
    Pair<float> y = {0, 0}, z = {0, 0};
    float m = 0;
    int start = -1;
  };

  const MlstmStatesParams<float>& p;
  const Block& block;
  int position, end;
  Token tokens[2];
  Pair<float> M = {0, 0};  // the stabiliser that enters the span: z of the token before, but where a chunk begins

  XLSTM_DEVICE bool opens() const { return position % p.chunk_size == 0; }
  // Where the span ends at the latest.
  XLSTM_DEVICE int stop() const { return min(position / kSpan * kSpan + kSpan, end); }

  XLSTM_DEVICE void load() {
    const int lane = threadIdx.x % 32;
    const int64_t at = block.batch_head * p.shape.seqlen + block.tokens.begin + position + lane;
    if (opens() && !over()) M = p.gates.M[block.slot + position / p.chunk_size];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      tokens[i] = {};
      if (position + lane + 32 * i >= stop()) continue;
      const int64_t token = at + 32 * i;
      tokens[i] = {p.gates.y[token], p.gates.z[token], p.gates.m[token], p.gates.start[token]};
    }
  }

  // A bit for every token of the span that a boundary comes before.
  XLSTM_DEVICE uint64_t boundaries() const {
    const int own = static_cast<int>(block.tokens.begin) + position + threadIdx.x % 32;
    const uint64_t low = __ballot_sync(~0u, tokens[0].start == own),
                   high = __ballot_sync(~0u, tokens[1].start == own + 32);
    return XLSTM_MUTANT("mlstm_walk: boundaries ignored") ? 0 : high << 32 | low;
  }
};

}  // namespace
}  // namespace xlstm::cuda
