// Gate gradients of the chunkwise mLSTM (docs/kernels/mlstm.md): one block per head of a sequence walks its tokens in
// tiles, from the last one to the first. Both sums are over the later tokens: that of q.dq - k.dk ends with the
// document or the chunk, and so inside a warp; that of kappa goes on from warp to warp and from tile to tile.
#include "core/gates.h"
#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/gate_grads.h"
#include "cuda/mlstm_chunkwise/token_scan.h"

namespace xlstm::cuda {
namespace {

using namespace device;

// The gradient of m before 256 tokens as a function of that after them: nothing passes them where they are cut.
struct WarpMap {
  double sum;
  bool cut;
};

struct GateGradsShared {
  WarpMap maps[2][kMaxScanThreads / 32];  // of tiles in turn: one is written while the other may still be read
};

// ---- sums over the later tokens ----

// Lanes whose tokens are summed together, and where their sums end: a cut token adds its own value to its sum, and
// passes nothing on to the token before it.
struct Lanes {
  int lane, last;  // last: of its group
  unsigned cuts;   // those at or after this lane that hold a cut

  XLSTM_DEVICE Lanes(int lanes, bool cut) {
    lane = threadIdx.x % 32;
    last = lane / lanes * lanes + lanes - 1;
    cuts = __ballot_sync(~0u, cut) & (~0u >> (31 - last)) & (~0u << lane);
  }
  XLSTM_DEVICE bool cut_behind() const { return (cuts & ~(1u << lane)) != 0; }
  // Lanes up to the one where this lane's sum ends.
  XLSTM_DEVICE int reach() const { return (cuts ? __ffs(static_cast<int>(cuts)) - 1 : last) - lane; }
};

// Each token's value becomes the sum up to the next cut token or the end of the group; returns what the lane passes on
// to the lane before it.
XLSTM_DEVICE double suffix_sums(double (&values)[kTokens], unsigned cuts, const Lanes& at) {
  double sum = 0;
#pragma unroll
  for (int j = kTokens - 1; j >= 0; --j) {
    sum += values[j];
    values[j] = sum;
    if (has(cuts, j)) sum = 0;
  }
  const int reach = at.reach();
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const double after = __shfl_down_sync(~0u, sum, step);
    if (reach >= step) sum += after;
  }
  const double after = __shfl_down_sync(~0u, sum, 1);
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    if (at.lane < at.last && cuts >> j < 2) values[j] += after;
  }
  return sum;
}

// ---- a thread's tokens ----

// Sets: boundary; forget: a boundary where f is below kHardForget; wins: m follows i there, not the m before it.
struct Tokens {
  int in_sequence, count;           // in_sequence: index of the first one
  int64_t first;                    // in the batch row
  int64_t at;                       // in (B, H, S)
  double di[kTokens], df[kTokens];  // df: of log f
  unsigned boundary, forget, wins;
  unsigned open;  // no cut between the token and the warp's end
};

template <class A>
XLSTM_DEVICE bool greater(Pair<A> x, Pair<A> y) {
  return x.hi > y.hi || (x.hi == y.hi && x.lo > y.lo);
}

// The sum of the parts of one number.
template <class A>
XLSTM_DEVICE double sum_parts(const A* parts, int64_t count) {
  double sum = 0;
  for (int64_t n = 0; n < count; ++n) sum += parts[n];
  return sum;
}

// Adds a (B, H, row_tiles, S) tensor's parts in order.
template <class A>
XLSTM_DEVICE void load_row_sums(double (&to)[kTokens], const MlstmGateGradsParams<A>& p, const A* parts,
                                const Item& item, const Tokens& tokens) {
#pragma unroll
  for (int j = 0; j < kTokens; ++j) to[j] = 0;
  for (int64_t n = 0; n < p.row_tiles; ++n) {
    const A* part = parts + (item.batch_head * p.row_tiles + n) * p.shape.seqlen + tokens.first;
    take_tokens(part, 1, tokens.count, [&](int j, A sum) { to[j] += sum; });
  }
}

template <class A>
XLSTM_DEVICE void find_boundaries(const MlstmGateGradsParams<A>& p, const Item& item, Tokens& tokens) {
  int32_t start[kTokens];
  load_tokens(start, p.gates.start + tokens.at, tokens.count);
  tokens.boundary = tokens.forget = 0;
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    tokens.boundary |= unsigned{j < tokens.count && start[j] == tokens.first + j} << j;
  }
#pragma unroll 1
  for (unsigned left = tokens.boundary; left; left &= left - 1) {
    const int j = __ffs(static_cast<int>(left)) - 1;
    const int64_t at = p.f.offset(item.tokens.row, item.head, tokens.first + j);
    // So far below zero f is its own log sigmoid.
    tokens.forget |= unsigned{load_any<double>(p.f.data, p.f.type, at) < kHardForget} << j;
  }
}

// y_t > z_{t-1}: the same as i_t > log f_t + m_{t-1}, without its rounding. In a chunk's first token M stands for
// z_{t-1}; after a boundary the stabiliser of the empty state does.
template <class A>
XLSTM_DEVICE void find_wins(const MlstmGateGradsParams<A>& p, const Item& item, Tokens& tokens) {
  tokens.wins = 0;
  if (tokens.count == 0 || p.sigmoid_gate) return;
  Pair<A> y[kTokens], z[kTokens];
  load_tokens(y, p.gates.y + tokens.at, tokens.count);
  load_tokens(z, p.gates.z + tokens.at, tokens.count);
  const bool starts_chunk = tokens.in_sequence % p.chunk_size == 0;
  Pair<A> before = starts_chunk ? p.gates.M[item.slot + tokens.in_sequence / p.chunk_size] : p.gates.z[tokens.at - 1];
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    if (has(tokens.boundary, j)) before = {has(tokens.forget, j) ? static_cast<A>(kEmptyLog) : A{0}, A{0}};
    if (XLSTM_MUTANT("mlstm_gate_grads: i compared with its own m")) before = z[j];
    tokens.wins |= unsigned{j < tokens.count && greater(y[j], before)} << j;
    before = z[j];
  }
}

// di = k.dk and the part of d log f that does not come through m.
template <class A>
XLSTM_DEVICE void product_grads(const MlstmGateGradsParams<A>& p, const Item& item, Tokens& tokens) {
  load_row_sums(tokens.df, p, p.q_dq, item, tokens);
  load_row_sums(tokens.di, p, p.k_dk, item, tokens);
  const int last = tokens.count - 1, end = tokens.in_sequence + tokens.count;
  const bool partial = end == item.tokens.end - item.tokens.begin;
  const bool ends_chunk = last >= 0 && (end % p.chunk_size == 0 ||
                                        (partial && !XLSTM_MUTANT("mlstm_gate_grads: partial chunks end nowhere")));
  const double dot =
      ends_chunk ? sum_parts(p.chunk_dots + (item.slot + tokens.in_sequence / p.chunk_size) * p.dot_tiles, p.dot_tiles)
                 : 0;
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    tokens.df[j] -= tokens.di[j];
    if (j == last) tokens.df[j] += dot;
  }
  const int lanes = XLSTM_MUTANT("mlstm_gate_grads: sums run on from chunk to chunk") ? 32 : p.chunk_size / kTokens;
  suffix_sums(tokens.df, tokens.boundary, Lanes(lanes, tokens.boundary != 0));
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    if (has(tokens.boundary, j)) tokens.df[j] = 0;
  }
}

// To i where m follows i, else to f.
XLSTM_DEVICE void add_stabiliser_grad(Tokens& tokens, unsigned set, const double (&grad)[kTokens]) {
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    const double added = has(set, j) ? grad[j] : 0;
    tokens.di[j] += has(tokens.wins, j) ? added : 0;
    tokens.df[j] += has(tokens.wins, j) ? 0 : added;
  }
}

// The gradient of m_t that arises in this warp, and what the warp makes of that of the warps after it.
template <class A>
XLSTM_DEVICE void stabiliser_grads(const MlstmGateGradsParams<A>& p, const Item& item, Tokens& tokens, WarpMap& map) {
  double kappa[kTokens] = {};
  unsigned cuts = 0;
  if (p.sigmoid_gate) {  // m passes through, and only a reset clears it
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      cuts |= unsigned{j < tokens.count && p.reset.at(item.tokens.row, tokens.first + j)} << j;
    }
  } else {
    take_tokens(p.kappa + tokens.at, 1, tokens.count, [&](int j, A x) { kappa[j] = x; });
    cuts = tokens.wins | (XLSTM_MUTANT("mlstm_gate_grads: m goes on past a boundary") ? 0 : tokens.boundary);
  }
  const Lanes warp(32, cuts != 0);
  const double sum = suffix_sums(kappa, cuts, warp);
  tokens.open = p.sigmoid_gate || warp.cut_behind() ? 0 : cuts ? ~0u << last_of(cuts) : ~0u;
  add_stabiliser_grad(tokens, ~0u, kappa);
  if (warp.lane == 0) map = {sum, warp.cuts != 0};
}

// The gradient of m in front of the last `count` warps of a tile, and after warp `mine`. All threads add in one order.
XLSTM_DEVICE double fold(const WarpMap (&maps)[kMaxScanThreads / 32], int count, double grad, int mine,
                         double& grad_mine) {
  for (int w = count - 1; w >= 0; --w) {
    if (w == mine) grad_mine = grad;
    grad = maps[w].cut ? maps[w].sum : grad + maps[w].sum;
  }
  return grad;
}

template <class A>
XLSTM_DEVICE void store_grads(const MlstmGateGradsParams<A>& p, const Item& item, Tokens& tokens, double dm) {
  double grad[kTokens];
#pragma unroll
  for (int j = 0; j < kTokens; ++j) grad[j] = dm;
  add_stabiliser_grad(tokens, tokens.open, grad);
  // First those of i, then those of f: the code of types and of sigmoid is there once.
#pragma unroll 1
  for (int gate = 0; gate < 2; ++gate) {
    const AnyView from = gate == 0 ? p.i : p.f, to = gate == 0 ? p.di : p.df;
    const unsigned none = gate == 0 ? 0 : tokens.forget;
    if (gate == 1 || p.sigmoid_gate) {
      double x[kTokens];
      load_tokens(x, from, from.offset(item.tokens.row, item.head, tokens.first), tokens.count);
#pragma unroll
      for (int j = 0; j < kTokens; ++j) tokens.di[j] = has(none, j) ? 0 : tokens.di[j] * sigmoid(-x[j]);
    }
    const int64_t at = to.offset(item.tokens.row, item.head, tokens.first);
    store_tokens(to, at, tokens.count, [&](int j) { return tokens.di[j]; });
#pragma unroll
    for (int j = 0; j < kTokens; ++j) tokens.di[j] = tokens.df[j];
  }
}

// The gradient that enters after the last token. A common log factor of C_T and n_T is none of m_T.
template <class A>
XLSTM_DEVICE double final_grad(const MlstmGateGradsParams<A>& p, const Item& item) {
  const double dm = p.dm ? p.dm[item.state] : 0;
  const int length = static_cast<int>(item.tokens.end - item.tokens.begin);
  if (p.sigmoid_gate || length == 0) return dm;
  return dm - sum_parts(p.chunk_dots + (item.slot + (length - 1) / p.chunk_size) * p.dot_tiles, p.dot_tiles);
}

template <class A>
XLSTM_DEVICE void store_start(const MlstmGateGradsParams<A>& p, const Item& item, double dm) {
  const bool empty = item.tokens.begin == item.tokens.end;
  if (p.start_dots && !p.sigmoid_gate && !empty) dm += sum_parts(p.start_dots + item.state * p.dot_tiles, p.dot_tiles);
  p.d_initial_m[item.state] = static_cast<A>(dm);
}

template <class A>
__global__ void __launch_bounds__(kMaxScanThreads) gate_grads(MlstmGateGradsParams<A> p) {
  XLSTM_SHARED(GateGradsShared, s);
  const Item item = locate(p.shape, p.chunk_size);
  const int thread = threadIdx.x, warp = thread / 32, tile = static_cast<int>(blockDim.x) * kTokens;
  const int length = static_cast<int>(item.tokens.end - item.tokens.begin);
  double dm = final_grad(p, item);
  int buffer = 0;
  for (int begin = (length - 1) / tile * tile; begin >= 0 && length > 0; begin -= tile) {
    const int warps = (min(tile, length - begin) + kWarpTokens - 1) / kWarpTokens;
    Tokens tokens;
    tokens.in_sequence = begin + thread * kTokens;
    tokens.count = device::clamped(length - tokens.in_sequence, kTokens);
    tokens.first = item.tokens.begin + tokens.in_sequence;
    tokens.at = item.batch_head * p.shape.seqlen + tokens.first;
    if (warp < warps) {
      find_boundaries(p, item, tokens);
      find_wins(p, item, tokens);
      product_grads(p, item, tokens);
      stabiliser_grads(p, item, tokens, s.maps[buffer][warp]);
    }
    sync_threads(XLSTM_MUTANT("mlstm_gate_grads: no barrier before the maps are read"));
    double dm_warp = 0;
    dm = fold(s.maps[buffer], warps, dm, warp, dm_warp);
    if (warp < warps) store_grads(p, item, tokens, dm_warp);
    buffer ^= XLSTM_MUTANT("mlstm_gate_grads: maps overwritten while they are read") ? 0 : 1;
  }
  if (thread == 0) store_start(p, item, dm);
}

}  // namespace

template <class A>
cudaError_t mlstm_gate_grads(const MlstmGateGradsParams<A>& p, cudaStream_t stream) {
  return launch_scan("mlstm gate_grads", sizeof(GateGradsShared), gate_grads<A>, p, stream);
}

template cudaError_t mlstm_gate_grads<float>(const MlstmGateGradsParams<float>&, cudaStream_t);
template cudaError_t mlstm_gate_grads<double>(const MlstmGateGradsParams<double>&, cudaStream_t);

}  // namespace xlstm::cuda
