#pragma once
// A row, one head at one token, in the registers of a team of 8 to 128 threads: 16 features each, as packs of four that
// lie a team apart. Teams of a warp, or one wider team, walk the tokens of a run. Accesses are whole where every row of
// the call starts at a multiple of their size: that is asked once, before the launch.
#include "cuda/norm/norm.h"
#include "cuda/norm/sums.h"
#include "cuda/packs.h"
#include "cuda/recurrent/cell_math.h"

namespace xlstm::cuda {

constexpr int kNormPacks = 4, kNormPack = 4;  // of a thread, of features
constexpr int kNormLeast = 8;                 // threads of a team: neighbouring packs of 16 bits are 64 bytes
static_assert(kNormThreads * kNormPacks * kNormPack == kNormRegisterDim);

template <class T>
using NormPack = device::Pack<T, kNormPack>;
using NormValues = float[kNormPacks][kNormPack];

inline int norm_team(int64_t dim) {
  int team = kNormLeast;
  while (team * kNormPacks * kNormPack < dim) team *= 2;
  return team;
}

// Of a thread: its head, its features, and the tokens that its team takes of a run.
struct NormWalk {
  int64_t run;
  int head, dim, team, rank;
  int turn, teams;  // the team's number among those of the run
  int rounds;       // the same in all of a block

  XLSTM_DEVICE NormWalk(const NormShape& shape, int team_size) : team(team_size) {
    const unsigned heads = static_cast<unsigned>(shape.heads), group = blockIdx.x / heads;  // 64 bits would be a call
    const int width = max(team, 32), runs = kNormThreads / width, thread = threadIdx.x;
    head = static_cast<int>(blockIdx.x - group * heads);
    dim = static_cast<int>(shape.dim);
    run = int64_t{group} * runs + thread / width;
    rank = thread % team;
    teams = width / team;
    turn = thread % width / team;
    const int64_t left = shape.tokens() - int64_t{group} * runs * kNormTokens;
    rounds = (static_cast<int>(min(left, kNormTokens)) + teams - 1) / teams;
  }

  XLSTM_DEVICE int64_t token(int round) const { return run * kNormTokens + round * teams + turn; }
  XLSTM_DEVICE int feature(int pack) const { return (pack * team + rank) * kNormPack; }
};

struct NormPlace {
  int64_t batch, time;
  bool inside;

  XLSTM_DEVICE NormPlace(const NormShape& shape, int64_t token) : inside(token < shape.tokens()) {
    const unsigned index = static_cast<unsigned>(token), seqlen = static_cast<unsigned>(shape.seqlen);
    batch = index / seqlen;
    time = index - static_cast<unsigned>(batch) * seqlen;
  }
};

template <class T>
struct NormRaw {
  NormPack<T> pack[kNormPacks];
};

// Zeros where there is nothing.
template <class T>
XLSTM_DEVICE NormRaw<T> load_row(const AnyView& x, const NormWalk& walk, const NormPlace& at, bool whole) {
  NormRaw<T> raw{};
  if (x.data == nullptr || !at.inside) return raw;
  const T* row = static_cast<const T*>(x.data) + x.offset(at.batch, walk.head, at.time);
#pragma unroll
  for (int k = 0; k < kNormPacks; ++k) {
    const int feature = walk.feature(k), count = walk.dim - feature;
    if (count > 0) raw.pack[k] = load_pack<NormPack<T>>(row + feature, count, whole);
  }
  return raw;
}

template <class T>
XLSTM_DEVICE void store_row_pack(const AnyView& x, const NormWalk& walk, const NormPlace& at, int k,
                                 const float (&values)[kNormPack], bool whole) {
  const int feature = walk.feature(k), count = walk.dim - feature;
  if (count <= 0) return;
  NormPack<T> pack;
#pragma unroll
  for (int c = 0; c < kNormPack; ++c) pack.x[c] = device::narrow<T>(values[c]);
  T* row = static_cast<T*>(const_cast<void*>(x.data)) + x.offset(at.batch, walk.head, at.time);
  store_pack(row + feature, pack, count, whole);
}

// A thread's part of a weight; past the last feature that of the last one, which nobody uses.
XLSTM_DEVICE void load_values(NormValues& to, const Any& x, const NormWalk& walk, float absent, float offset) {
#pragma unroll
  for (int i = 0; i < kNormPacks * kNormPack; ++i) to[i / kNormPack][i % kNormPack] = absent;
  if (x.data == nullptr) return;
  device::with_type(x.type, [&]<class W>() {
    const W* values = static_cast<const W*>(x.data) + int64_t{walk.head} * walk.dim;
#pragma unroll
    for (int i = 0; i < kNormPacks * kNormPack; ++i) {
      const int feature = min(walk.feature(i / kNormPack) + i % kNormPack, walk.dim - 1);
      to[i / kNormPack][i % kNormPack] = offset + device::widen<float>(values[feature]);
    }
  });
}

struct NormWeights {
  NormValues weight, bias, skip;

  XLSTM_DEVICE NormWeights(const NormForwardParams<void>& p, const NormWalk& walk) {
    load_values(weight, p.weight, walk, 1.f, static_cast<float>(p.options.weight_offset));
    load_values(bias, p.bias, walk, 0.f, 0.f);
    load_values(skip, p.skip_weight, walk, 1.f, 0.f);
  }
};

// sum / dim, to the last bit or its neighbour; a division may call a function.
XLSTM_DEVICE float mean_of(float sum, int dim) {
  const float count = static_cast<float>(dim), part = device::reciprocal_approx(count), mean = sum * part;
  return mean + (sum - mean * count) * part;
}

// h becomes n; returns 1 / sqrt(var + eps). Two passes: the squares of h itself would cancel where the mean is large.
template <class T>
XLSTM_DEVICE float normalise(NormValues& n, const NormRaw<T>& h, const NormOptions& options, const NormWalk& walk,
                             NormShared<float>& s, int& place) {
  float sum[1] = {0};
#pragma unroll
  for (int i = 0; i < kNormPacks * kNormPack; ++i) {
    n[i / kNormPack][i % kNormPack] = device::widen<float>(h.pack[i / kNormPack].x[i % kNormPack]);
    sum[0] += n[i / kNormPack][i % kNormPack];
  }
  if (!options.rms) {
    add_over_team(sum, walk.team, s, place);
    const float mean = mean_of(sum[0], walk.dim);
#pragma unroll
    for (int i = 0; i < kNormPacks * kNormPack; ++i) {
      const bool inside = walk.feature(i / kNormPack) + i % kNormPack < walk.dim ||
                          XLSTM_MUTANT("multihead_norm_gate: the variance counts what lies past a row");
      n[i / kNormPack][i % kNormPack] = inside ? n[i / kNormPack][i % kNormPack] - mean : 0.f;
    }
  }
  float squares[1] = {0};
#pragma unroll
  for (int i = 0; i < kNormPacks * kNormPack; ++i) {
    squares[0] += n[i / kNormPack][i % kNormPack] * n[i / kNormPack][i % kNormPack];
  }
  add_over_team(squares, walk.team, s, place);
  const float rstd = device::rsqrt_approx(mean_of(squares[0], walk.dim) + static_cast<float>(options.eps));
#pragma unroll
  for (int i = 0; i < kNormPacks * kNormPack; ++i) n[i / kNormPack][i % kNormPack] *= rstd;
  return rstd;
}

// act(gate) and its derivative; 1 and 0 without a gate.
struct NormGate {
  float value = 1, slope = 0;
};
template <class T>
XLSTM_DEVICE NormGate norm_gate(T gate, const NormOptions& options) {
  const float x = device::widen<float>(gate), sigmoid = data_sigmoid<T>(x), rest = 1 - sigmoid;
  if (options.sigmoid) return {sigmoid, sigmoid * rest};
  return {x * sigmoid, sigmoid * (1 + x * rest)};
}

// One block for each head of so many runs.
struct NormLaunch {
  device::Launch launch;
  int team;
  bool fits;
};

inline NormLaunch norm_launch(const char* name, const NormShape& shape, cudaStream_t stream) {
  NormLaunch l{};
  l.team = norm_team(shape.dim);
  const int64_t runs = kNormThreads / (l.team < 32 ? 32 : l.team), groups = (norm_runs(shape) + runs - 1) / runs;
  l.fits = shape.tokens() <= device::kMaxGridX && groups <= device::kMaxGridX / shape.heads;
  l.launch.grid = dim3(static_cast<unsigned>(l.fits ? groups * shape.heads : 0));
  l.launch.block = dim3(kNormThreads);
  l.launch.shared_bytes = sizeof(NormShared<float>);
  l.launch.name = name;
  l.launch.stream = stream;
  return l;
}

inline bool norm_packs_fit(const AnyView& x, int64_t dim) {
  return packs_fit(x, dim, kNormPack) && x.head % kNormPack == 0;
}

}  // namespace xlstm::cuda
