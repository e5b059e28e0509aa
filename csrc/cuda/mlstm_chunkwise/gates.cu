// Gate scan of the chunkwise mLSTM (docs/kernels/mlstm.md): one block per head of a sequence walks its tokens in tiles.
// A thread owns eight consecutive tokens, so that a chunk lies inside a warp and its sums and maxima need shuffles
// only. From chunk to chunk goes a single number, the stabiliser M, through one small map per chunk.
#include "core/gates.h"
#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/gates.h"
#include "cuda/mlstm_chunkwise/token_scan.h"
#include "cuda/mlstm_chunkwise/weights.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kMaxChunks = kMaxScanThreads * kTokens / kMinChunk;  // of a tile
constexpr double kLog2e = 1.4426950408889634;

// The stabiliser after a chunk, of M before it: max(M + shift, floor); `floor` where a boundary cuts it off from M.
struct ChunkMap {
  double shift, floor;
  bool cut;
};

struct GatesShared {
  ChunkMap maps[2][kMaxChunks];  // of tiles in turn: one is written while the other may still be read
};

// NaN stays: every comparison with it is false.
XLSTM_DEVICE double max_nan(double x, double y) {
  return y > x || y != y ? y : x;
}

// x log2(e) in two parts. Infinities and NaN have no second one.
template <class A>
XLSTM_DEVICE Pair<A> split(double x) {
  x *= kLog2e;
  const A hi = static_cast<A>(rint(x));
  return {hi, hi - hi == 0 ? static_cast<A>(x - hi) : A{0}};
}

// ---- a chunk by itself ----

// Tokens past the sequence's end forget nothing and write nothing.
struct LogGates {
  double i[kTokens], f[kTokens];
  unsigned reset, forget;  // forget: f is below kHardForget
};

template <class A>
XLSTM_DEVICE LogGates load_gates(const MlstmGatesParams<A>& p, const Item& item, int64_t first, int count) {
  LogGates gates = {};
  gates.reset = gates.forget = 0;
  const int loaded = XLSTM_MUTANT("mlstm_gates: whole vectors at the last token") ? kTokens : count;
  // First i, then f: the code of types and of log sigmoid is there once.
#pragma unroll 1
  for (int gate = 0; gate < 2; ++gate) {
    const AnyView from = gate == 0 ? p.i : p.f;
#pragma unroll
    for (int j = 0; j < kTokens; ++j) gates.i[j] = gates.f[j];
    load_tokens(gates.f, from, from.offset(item.tokens.row, item.head, first), loaded);
    if (gate == 0 && !p.sigmoid_gate) continue;
#pragma unroll
    for (int j = 0; j < kTokens; ++j) gates.f[j] = log_sigmoid(gates.f[j]);
  }
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    const bool inside = j < count;
    if (!inside) gates.i[j] = -INFINITY;
    if (!inside) gates.f[j] = 0;
    gates.forget |= unsigned{gates.f[j] < kHardForget} << j;
    if (inside) gates.reset |= unsigned{p.reset.at(item.tokens.row, first + j)} << j;
  }
  return gates;
}

// Where a lane stands among those of its chunk.
struct ChunkLanes {
  int lane, first;   // first: of the chunk's lanes
  unsigned chunk;    // all of the chunk's lanes
  unsigned cuts;     // those with a boundary
  unsigned earlier;  // those of them before this lane
  int reach;         // lanes back to the chunk's start, or to the one that holds the last boundary

  XLSTM_DEVICE ChunkLanes(int chunk_size, bool boundary) {
    const int lanes = chunk_size / kTokens;
    lane = threadIdx.x % 32;
    first = lane / lanes * lanes;
    chunk = ~0u >> (32 - lanes) << first;
    cuts = __ballot_sync(~0u, boundary) & chunk;
    earlier = cuts & ((1u << lane) - 1);
    if (XLSTM_MUTANT("mlstm_gates: boundaries of earlier threads ignored")) earlier = 0;
    reach = lane - (boundary ? lane : earlier ? last_of(earlier) : first);
    if (XLSTM_MUTANT("mlstm_gates: sums run on into the next chunk") && !boundary && !earlier) reach = lane;
  }
  XLSTM_DEVICE bool last() const { return chunk >> lane == 1; }
};

// Over this lane and the `reach` lanes before it.
template <class Op>
XLSTM_DEVICE double inclusive_scan(double value, int reach, Op op) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const double before = __shfl_up_sync(~0u, value, step);
    if (reach >= step) value = op(before, value);
  }
  return value;
}

// Extends a thread's own scan, whose last value is `local`, by the lanes before it; returns the new last value.
template <class Op>
XLSTM_DEVICE double extend(double (&values)[kTokens], double local, unsigned boundary, const ChunkLanes& at, Op op) {
  const double total = inclusive_scan(local, at.reach, op);
  const double before = __shfl_up_sync(~0u, total, 1);
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    if (at.lane > at.first && !has_up_to(boundary, j)) values[j] = op(before, values[j]);
  }
  return total;
}

// Values of a thread's tokens that do not depend on M. All of them start anew at a boundary.
struct Tokens {
  double b[kTokens];  // sum of log forget gates
  double x[kTokens];  // max of y, and of the empty state after a boundary
  unsigned cut;       // no path from the chunk's incoming state
};

// b. A zero forget gate counts as one: `x` says that it empties the state.
XLSTM_DEVICE double sum_log_f(const LogGates& gates, const ChunkLanes& at, double (&b)[kTokens]) {
  double sum = 0;
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    sum = has(gates.forget, j) ? 0 : has(gates.reset, j) ? gates.f[j] : sum + gates.f[j];
    b[j] = sum;
  }
  return extend(b, sum, gates.reset | gates.forget, at, [](double x, double y) { return x + y; });
}

// x. The stabiliser of the empty state is 0 after a reset, and as good as -inf after a zero forget gate.
XLSTM_DEVICE double max_y(const LogGates& gates, const ChunkLanes& at, const double (&y)[kTokens],
                          double (&x)[kTokens]) {
  double most = -INFINITY;
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    most = max_nan(has(gates.forget, j) ? kEmptyLog : has(gates.reset, j) ? 0 : most, y[j]);
    x[j] = most;
  }
  return extend(x, most, gates.reset | gates.forget, at, max_nan);
}

// Token of the last boundary at or before each token, -1 where there is none; returns the tokens that have one.
XLSTM_DEVICE unsigned find_starts(unsigned boundary, const ChunkLanes& at, int64_t first, int32_t (&start)[kTokens]) {
  const int own = static_cast<int>(first) + last_of(boundary);
  const int before = __shfl_sync(~0u, own, at.earlier ? last_of(at.earlier) : at.lane);
  int32_t last = at.earlier ? before : -1;
  unsigned cut = 0;
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    if (has(boundary, j)) last = static_cast<int>(first) + j;
    start[j] = last;
    cut |= unsigned{last >= 0} << j;
  }
  return cut;
}

// Everything that does not depend on M: writes y and start, and the map of the chunk.
template <class A>
XLSTM_DEVICE void scan_chunks(const MlstmGatesParams<A>& p, const Item& item, int64_t first, int count, Tokens& tokens,
                              ChunkMap& map) {
  const LogGates gates = load_gates(p, item, first, count);
  const unsigned boundary = gates.reset | gates.forget;
  const ChunkLanes at(p.chunk_size, boundary != 0);
  const unsigned resets = __ballot_sync(~0u, gates.reset != 0) & at.chunk;
  const int64_t to = item.batch_head * p.shape.seqlen + first;

  int32_t start[kTokens];
  tokens.cut = find_starts(boundary, at, first, start);
  store_tokens(p.out.start + to, count, [&](int j) { return start[j]; });

  const double b = sum_log_f(gates, at, tokens.b);
  double y[kTokens];
#pragma unroll
  for (int j = 0; j < kTokens; ++j) y[j] = gates.i[j] - tokens.b[j];
  store_tokens(p.out.y + to, count, [&](int j) { return split<A>(y[j]); });

  const double x = max_y(gates, at, y, tokens.x);
  if (!at.last()) return;
  if (p.sigmoid_gate) {  // m passes through, and only a reset clears it
    map = {0, resets ? 0 : -INFINITY, resets != 0};
  } else {
    map = {b, max_nan(kEmptyLog, b + x), at.cuts != 0 && !XLSTM_MUTANT("mlstm_gates: M goes on past a boundary")};
  }
}

// ---- from chunk to chunk ----

// The stabiliser after `count` chunks, and the one that enters chunk `mine`. All threads add in the same order.
XLSTM_DEVICE double fold(const ChunkMap (&maps)[kMaxChunks], int count, double M, int mine, double& M_mine) {
  for (int c = 0; c < count; ++c) {
    if (c == mine) M_mine = M;
    const ChunkMap map = maps[c];
    M = map.cut ? map.floor : max_nan(M + map.shift, map.floor);
  }
  return M;
}

template <class A>
XLSTM_DEVICE double z_of(const MlstmGatesParams<A>& p, const Tokens& tokens, int j, double M) {
  if (p.sigmoid_gate) return -tokens.b[j];
  return has(tokens.cut, j) ? tokens.x[j] : max_nan(M, tokens.x[j]);
}

template <class A>
XLSTM_DEVICE void store_stabilised(const MlstmGatesParams<A>& p, const Item& item, int64_t first, int count,
                                   const Tokens& tokens, double M) {
  const int64_t to = item.batch_head * p.shape.seqlen + first;
  store_tokens(p.out.z + to, count, [&](int j) { return split<A>(z_of(p, tokens, j, M)); });
  store_tokens(p.out.m + to, count,
               [&](int j) { return p.sigmoid_gate ? A{0} : static_cast<A>(tokens.b[j] + z_of(p, tokens, j, M)); });
}

// By the chunk's last thread: past the sequence's end b and x stay as they are at the last token.
template <class A>
XLSTM_DEVICE void store_chunk(const MlstmGatesParams<A>& p, const Item& item, int64_t first, const Tokens& tokens,
                              double M) {
  const int last = kTokens - 1;
  const Pair<A> entering = split<A>(p.sigmoid_gate ? 0 : M), leaving = split<A>(z_of(p, tokens, last, M));
  const int64_t to = item.slot + (first - item.tokens.begin) / p.chunk_size;
  p.out.M[to] = entering;
  p.out.g_bar[to] = state_weight<true>(entering, leaving, has(tokens.cut, last) ? 0 : -1);
}

// m before the first token. Clamped only for use: of a sequence without tokens it is returned as it is.
template <class A>
XLSTM_DEVICE double initial_m(const MlstmGatesParams<A>& p, const Item& item) {
  const double m = p.initial_m ? p.initial_m[item.state] : 0;
  if (p.sigmoid_gate || item.tokens.begin == item.tokens.end) return m;
  return XLSTM_MUTANT("mlstm_gates: m0 as it is") ? m : max_nan(kEmptyLog, m);
}

template <class A>
__global__ void __launch_bounds__(kMaxScanThreads) gate_scan(MlstmGatesParams<A> p) {
  XLSTM_SHARED(GatesShared, s);
  const Item item = locate(p.shape, p.chunk_size);
  const int thread = threadIdx.x, tile = static_cast<int>(blockDim.x) * kTokens;
  const int chunk = thread * kTokens / p.chunk_size;  // of the tile
  double M = initial_m(p, item);
  int buffer = 0;
  for (int64_t begin = item.tokens.begin; begin < item.tokens.end; begin += tile) {
    const int64_t first = begin + thread * kTokens, left = item.tokens.end - first;
    const int size = static_cast<int>(min(int64_t{tile}, item.tokens.end - begin));
    const int chunks = (size + p.chunk_size - 1) / p.chunk_size;
    const int count = static_cast<int>(max(int64_t{0}, min(int64_t{kTokens}, left)));
    const bool warp_has_tokens = thread / 32 * kWarpTokens < size;
    Tokens tokens;
    if (warp_has_tokens) scan_chunks(p, item, first, count, tokens, s.maps[buffer][chunk]);
    sync_threads(XLSTM_MUTANT("mlstm_gates: no barrier before the maps are read"));
    double M_chunk = 0;
    M = fold(s.maps[buffer], chunks, M, chunk, M_chunk);
    if (warp_has_tokens) store_stabilised(p, item, first, count, tokens, M_chunk);
    const bool last = (thread + 1) * kTokens % p.chunk_size == 0;
    if (chunk < chunks && last) store_chunk(p, item, first, tokens, M_chunk);
    buffer ^= XLSTM_MUTANT("mlstm_gates: maps overwritten while they are read") ? 0 : 1;
  }
  if (thread == 0) p.final_m[item.state] = static_cast<A>(M);
}

}  // namespace

template <class A>
cudaError_t mlstm_gates(const MlstmGatesParams<A>& p, cudaStream_t stream) {
  return launch_scan("mlstm gates", sizeof(GatesShared), gate_scan<A>, p, stream);
}

template cudaError_t mlstm_gates<float>(const MlstmGatesParams<float>&, cudaStream_t);
template cudaError_t mlstm_gates<double>(const MlstmGatesParams<double>&, cudaStream_t);

}  // namespace xlstm::cuda
