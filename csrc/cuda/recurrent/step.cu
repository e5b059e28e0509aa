// LSTM and sLSTM decode step in one kernel (docs/kernels/recurrent.md): a block multiplies the weights of some units of
// one head with h of a batch tile, reading each weight once, and then advances these units.
#include "cuda/device/device.h"
#include "cuda/recurrent/cells.h"
#include "cuda/recurrent/step.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kBlocks = 3;  // per SM at least: up to 168 registers per thread
constexpr int kLoads = 8;   // 16-byte loads of R in flight per thread

// Each thread's part. Vectors run along `in` where rows of R are contiguous: a thread then has all gates of one unit.
// Else they run along `out`, and a thread has one gate of as many units as a vector holds.
template <class T, bool kRows, int kTile>
struct StepTraits {
  using Data = T;
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  static constexpr bool kInContiguous = kRows;
  static constexpr int kBatch = kTile;                                           // batch rows per block
  static constexpr int kVector = Vector<T>::kCount;                              // weights per load
  static constexpr int kAcross = kRows ? 8 : 2;                                  // lanes along the contiguous dimension
  static constexpr int kAlong = 32 / kAcross;                                    // and along the other one
  static constexpr int kSums = kRows ? kGates : kVector;                         // per thread and batch row
  static constexpr int kFewUnits = kTile == 1 ? 2 : 4;                           // fewer units per block: more blocks
  static constexpr int kUnits = kRows ? kFewUnits * kAlong : kAcross * kVector;  // per block
  static constexpr int kSplits = kWarps / (kRows ? kFewUnits : kGates);          // warps with the same units and gates
  static constexpr int kInputs = kRows ? kAcross * kVector : kAlong;             // of a warp at once
  static constexpr int kPerRound = kRows ? kGates : 1;                           // loads of a thread for the same input
  static constexpr int kRounds = kLoads / kPerRound;
  static constexpr int kRoundInputs = kSplits * kInputs;  // of the block at once
  static constexpr int kSlab = kRounds * kRoundInputs;    // inputs between two barriers
  static constexpr int kQuad = 16 / sizeof(A);            // elements of h in one access
  static_assert(kUnits * kBatch <= kThreads);             // a thread advances at most one unit
};

template <class P>
struct StepShared {
  using A = typename P::A;
  alignas(16) A h[P::kBatch][P::kSlab];
  A partial[P::kSplits][kGates][P::kBatch][P::kUnits];
};

// First batch row, head and first unit of a block. Blocks that read the same weights are neighbours.
struct Block {
  int64_t row, head;
  int unit;
};

template <class P>
XLSTM_DEVICE Block block_at(int index, int batch_tiles, int unit_tiles) {
  const int rest = index / batch_tiles;
  return {int64_t{index % batch_tiles} * P::kBatch, rest / unit_tiles, rest % unit_tiles * P::kUnits};
}

// The products of a thread: from this unit of the block on, of this gate (of all gates where rows are contiguous), with
// inputs from this one on, interleaved with the other splits.
struct ThreadPart {
  int unit, gate, split, input;
};

template <class P>
XLSTM_DEVICE ThreadPart thread_part() {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, across = lane % P::kAcross, along = lane / P::kAcross;
  if constexpr (P::kInContiguous) {
    return {warp / P::kSplits * P::kAlong + along, 0, warp % P::kSplits, across * P::kVector};
  } else {
    return {across * P::kVector, warp % kGates, warp / kGates, along};
  }
}

// ---- R h ----

// This thread's next weights. It moves on from round to round: addresses computed anew would be kept in registers.
template <class P>
struct Cursor {
  const typename P::Data* from;
  int64_t gate, step;  // strides: to the next gate and to the next round
  int units, inputs;   // left, up to the edges of the matrix
};

template <class P>
XLSTM_DEVICE Cursor<P> cursor_at(const RecurrentStepParams<void>& p, const Block& block, const ThreadPart& at) {
  const bool rows = P::kInContiguous != XLSTM_MUTANT("recurrent_step: rows of R taken for columns");
  const int64_t out = rows ? p.R.out : 1, in = rows ? 1 : p.R.in;
  const int64_t head = XLSTM_MUTANT("recurrent_step: R of the first head for all") ? 0 : block.head;
  const int unit = block.unit + at.unit, input = at.split * P::kInputs + at.input;
  const int64_t offset = at.gate * p.R.gate + head * p.R.head + unit * out + input * in;
  const int D = static_cast<int>(p.shape.head_dim);
  return {static_cast<const typename P::Data*>(p.R.data) + offset, p.R.gate, P::kRoundInputs * in, D - unit, D - input};
}

// The weights of one round, zeros past the edges. kWhole: all vectors are aligned and none of them crosses an edge.
template <bool kWhole, class P>
XLSTM_DEVICE void load_weights(uint4 (&weights)[P::kPerRound], Cursor<P>& cursor) {
  const bool inside = cursor.units > 0 && cursor.inputs > 0;
  const int count = !inside ? 0 : P::kInContiguous ? cursor.inputs : cursor.units;
#pragma unroll
  for (int gate = 0; gate < P::kPerRound; ++gate) {
    const auto* from = cursor.from + gate * cursor.gate;
    if constexpr (kWhole) {
      weights[gate] = inside ? *reinterpret_cast<const uint4*>(from) : uint4{};
    } else {
      weights[gate] = bits_as<uint4>(load_elements(from, count));
    }
  }
  cursor.from += cursor.step;
  cursor.inputs -= P::kRoundInputs;
}

// Where input `i` of a slab lies in a row of shared memory. A thread reads kVector inputs in accesses of 16 bytes; the
// lanes of a warp do so side by side.
template <class P>
XLSTM_DEVICE int slab_position(int i) {
  if constexpr (P::kInContiguous) {
    const int of_warp = i % P::kInputs, across = of_warp / P::kVector, element = of_warp % P::kVector;
    return i - of_warp + (element / P::kQuad * P::kAcross + across) * P::kQuad + element % P::kQuad;
  } else {
    return i;
  }
}

// h of the batch tile for inputs [first, first + kSlab), rounded to T; zeros past the last input and batch row.
template <class P>
XLSTM_DEVICE void stage(StepShared<P>& s, const RecurrentStepParams<void>& p, const Block& block, int first) {
  using T = typename P::Data;
  using A = typename P::A;
  constexpr int kAtOnce = P::kSlab < kThreads ? kThreads / P::kSlab : 1;  // batch rows
  if (threadIdx.x / P::kSlab >= P::kBatch) return;
  const int D = static_cast<int>(p.shape.head_dim);
  const int64_t hidden = p.shape.hidden(), rows = p.shape.batch - block.row;
#pragma unroll
  for (int i = threadIdx.x % P::kSlab; i < P::kSlab; i += kThreads) {
    int b = threadIdx.x / P::kSlab;
    const A* h = static_cast<const A*>(p.state.h) + (block.row + b) * hidden + block.head * D + first + i;
#pragma unroll
    for (int x = 0; x < P::kBatch; x += kAtOnce, b += kAtOnce, h += kAtOnce * hidden) {
      s.h[b][slab_position<P>(i)] = b < rows && first + i < D ? widen<A>(narrow<T>(*h)) : A{0};
    }
  }
}

template <class P, class A>
XLSTM_DEVICE void accumulate(A (&sums)[P::kSums * P::kBatch], const uint4 (&weights)[P::kPerRound],
                             const StepShared<P>& s, const ThreadPart& at, int round) {
  using T = typename P::Data;
  const int column = round * P::kRoundInputs + at.split * P::kInputs;
  if constexpr (P::kInContiguous) {
#pragma unroll
    for (int quad = 0; quad < P::kVector / P::kQuad; ++quad) {
#pragma unroll
      for (int b = 0; b < P::kBatch; ++b) {
        const int from = column + (quad * P::kAcross + at.input / P::kVector) * P::kQuad;
        const Vector<A> h = load_vector(&s.h[b][from]);
#pragma unroll
        for (int x = 0; x < kGates * P::kQuad; ++x) {
          const int gate = x / P::kQuad, e = x % P::kQuad;
          sums[gate * P::kBatch + b] += widen<A>(bits_as<Vector<T>>(weights[gate]).x[quad * P::kQuad + e]) * h.x[e];
        }
      }
    }
  } else {
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
      const A h = s.h[b][column + at.input];
#pragma unroll
      for (int u = 0; u < P::kVector; ++u) sums[u * P::kBatch + b] += widen<A>(bits_as<Vector<T>>(weights[0]).x[u]) * h;
    }
  }
}

// Adds up kCount sums over the lanes whose numbers differ in the bits kDistance, kDistance / 2, .. kLast. In each step
// a lane gives half of its sums away, as long as it has several; it ends with max(1, kCount / lanes) of them, from the
// one returned on, in sums[0] on. Lanes that end with the same one: `first` is -1 in all but one.
template <int kCount, int kDistance, int kLast, class A>
XLSTM_DEVICE int scatter_sums(A* sums, int first = 0) {
  const int lane = threadIdx.x % 32;
  if constexpr (kDistance < kLast) {
    return first;
  } else if constexpr (kCount == 1) {
    sums[0] += __shfl_xor_sync(~0u, sums[0], kDistance);
    return scatter_sums<1, kDistance / 2, kLast>(sums, lane & kDistance ? -1 : first);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = lane & kDistance;
#pragma unroll
    for (int x = 0; x < kHalf; ++x) {
      const A give = upper ? sums[x] : sums[x + kHalf], keep = upper ? sums[x + kHalf] : sums[x];
      sums[x] = keep + __shfl_xor_sync(~0u, give, kDistance);
    }
    return scatter_sums<kHalf, kDistance / 2, kLast>(sums, upper ? first + kHalf : first);
  }
}

// The sums of each warp.
template <class P, class A>
XLSTM_DEVICE void store_partial(StepShared<P>& s, A (&sums)[P::kSums * P::kBatch], const ThreadPart& at) {
  constexpr int kCount = P::kSums * P::kBatch, kLanes = P::kInContiguous ? P::kAcross : P::kAlong;
  constexpr int kDistance = P::kInContiguous ? P::kAcross / 2 : 16, kLast = P::kInContiguous ? 1 : P::kAcross;
  const int first = scatter_sums<kCount, kDistance, kLast>(sums);
  if (first < 0) return;
#pragma unroll
  for (int x = 0; x < (kCount > kLanes ? kCount / kLanes : 1); ++x) {
    const int sum = (first + x) / P::kBatch, b = (first + x) % P::kBatch;
    const int gate = P::kInContiguous ? sum : at.gate, unit = P::kInContiguous ? at.unit : at.unit + sum;
    s.partial[at.split][gate][b][unit] = sums[x];
  }
}

// ---- the cell: one thread per batch row and unit of the block ----

template <class P>
struct Unit {
  using A = typename P::A;
  bool exists;
  int64_t offset;  // in a state
  typename P::Data x[kGates];
  UnitState<A> state{};  // before
};

// Read before R and used at the end, as it lies in memory: a conversion would wait here.
template <class P>
XLSTM_DEVICE Unit<P> load_unit(const RecurrentStepParams<void>& p, const Block& block) {
  using T = typename P::Data;
  using A = typename P::A;
  const int row = threadIdx.x / P::kUnits, unit = block.unit + threadIdx.x % P::kUnits;
  const int64_t b = block.row + row, hidden = p.shape.hidden(), of_row = block.head * p.shape.head_dim + unit;
  const bool in_batch = b < p.shape.batch || XLSTM_MUTANT("recurrent_step: rows past the batch");
  Unit<P> u;
  u.exists = row < P::kBatch && unit < p.shape.head_dim && in_batch;
  if (!u.exists) return u;
  u.offset = b * hidden + of_row;
  const T* x = static_cast<const T*>(p.x.data) + b * p.x.batch + block.head * p.x.head + unit;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) u.x[gate] = x[gate * p.x.gate];
  u.state.c = static_cast<const A*>(p.state.c)[u.offset];
  if (p.state.n) u.state.n = static_cast<const A*>(p.state.n)[u.offset];
  if (p.state.m) u.state.m = static_cast<const A*>(p.state.m)[u.offset];
  return u;
}

template <class P>
XLSTM_DEVICE void load_bias(typename P::A (&raw)[kGates], const RecurrentStepParams<void>& p, const Block& block) {
  const int64_t hidden = p.shape.hidden(), of_row = block.head * p.shape.head_dim + block.unit;
  load_any(raw, p.b.data, p.b.type, of_row + threadIdx.x % P::kUnits, hidden);
}

// raw: the bias, without R h and x.
template <class P, class A>
XLSTM_DEVICE void advance(const RecurrentStepParams<void>& p, const StepShared<P>& s, Unit<P>& u, A (&raw)[kGates]) {
  using T = typename P::Data;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    raw[gate] += widen<A>(u.x[gate]);
    for (int split = 0; split < P::kSplits; ++split) {
      raw[gate] += s.partial[split][gate][threadIdx.x / P::kUnits][threadIdx.x % P::kUnits];
    }
  }
  with_cell<CellMath<T>>(p.cell, [&](auto cell) {
    using Functor = decltype(cell);
    A state[Functor::kStates], saved[kSaved];
    Functor::load_state(u.state, state);
    const A h = cell.forward(raw, state, saved);
    u.state = Functor::store_state(state);
    static_cast<A*>(p.next.h)[u.offset] = widen<A>(narrow<T>(h));
  });
  static_cast<A*>(p.next.c)[u.offset] = u.state.c;
  if (p.next.n) static_cast<A*>(p.next.n)[u.offset] = u.state.n;
  if (p.next.m) static_cast<A*>(p.next.m)[u.offset] = u.state.m;
}

template <class T, bool kRows, int kTile>
__global__ void __launch_bounds__(kThreads, kBlocks)
    recurrent_step_kernel(RecurrentStepParams<void> p, int batch_tiles, int unit_tiles, bool whole) {
  using P = StepTraits<T, kRows, kTile>;
  XLSTM_SHARED(StepShared<P>, s);
  const Block block = block_at<P>(blockIdx.x, batch_tiles, unit_tiles);
  const ThreadPart at = thread_part<P>();
  Unit<P> unit = load_unit<P>(p, block);
  Cursor<P> cursor = cursor_at<P>(p, block, at);
  typename P::A sums[P::kSums * P::kBatch] = {};
#pragma unroll 1
  for (int first = 0; first < p.shape.head_dim; first += P::kSlab) {
    uint4 weights[P::kRounds][P::kPerRound];  // 16 bytes of T each
#pragma unroll
    for (int round = 0; whole && round < P::kRounds; ++round) load_weights<true>(weights[round], cursor);
    if (first > 0) sync_threads(XLSTM_MUTANT("recurrent_step: h staged while it is read"));
    stage(s, p, block, first);
    sync_threads(XLSTM_MUTANT("recurrent_step: h read before it is staged"));
#pragma unroll
    for (int round = 0; whole && round < P::kRounds; ++round) accumulate(sums, weights[round], s, at, round);
#pragma unroll 1
    for (int round = 0; !whole && round < P::kRounds; ++round) {
      load_weights<false>(weights[0], cursor);
      accumulate(sums, weights[0], s, at, round);
    }
  }
  typename P::A raw[kGates] = {};
  if (unit.exists && p.b.data) load_bias<P>(raw, p, block);
  store_partial(s, sums, at);
  sync_threads(XLSTM_MUTANT("recurrent_step: sums read before all warps wrote them"));
  if (unit.exists) advance(p, s, unit, raw);
}

// ---- launches ----

// Whether R can be read in whole vectors: none is misaligned or crosses an edge.
template <class T, bool kRows>
bool in_whole_vectors(const RecurrentStepParams<void>& p) {
  constexpr int kVector = Vector<T>::kCount;
  const WeightView<const void>& R = p.R;
  const bool strides = R.gate % kVector == 0 && R.head % kVector == 0 && (kRows ? R.out : R.in) % kVector == 0;
  const bool edges = p.shape.head_dim % kVector == 0 || XLSTM_MUTANT("recurrent_step: whole vectors at the edge");
  return strides && edges && reinterpret_cast<uintptr_t>(R.data) % sizeof(Vector<T>) == 0;
}

template <class T, bool kRows, int kTile>
cudaError_t launch_step(const RecurrentStepParams<void>& p, cudaStream_t stream) {
  using P = StepTraits<T, kRows, kTile>;
  const int64_t batch_tiles = (p.shape.batch + kTile - 1) / kTile;
  const int64_t unit_tiles = (p.shape.head_dim + P::kUnits - 1) / P::kUnits;
  const int64_t blocks = batch_tiles * unit_tiles * p.shape.num_heads;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks));
  l.block = dim3(kThreads);
  l.shared_bytes = sizeof(StepShared<P>);
  l.name = "recurrent_step";
  l.stream = stream;
  return launch(l, recurrent_step_kernel<T, kRows, kTile>, p, static_cast<int>(batch_tiles),
                static_cast<int>(unit_tiles), in_whole_vectors<T, kRows>(p));
}

template <class T>
cudaError_t choose_tile(const RecurrentStepParams<void>& p, cudaStream_t stream) {
  const bool one = p.shape.batch == 1;
  if (p.R.in == 1) return one ? launch_step<T, true, 1>(p, stream) : launch_step<T, true, 8>(p, stream);
  return one ? launch_step<T, false, 1>(p, stream) : launch_step<T, false, 8>(p, stream);
}

}  // namespace

cudaError_t run(const RecurrentStepParams<void>& p, const Allocator&, cudaStream_t stream) {
  if (p.shape.batch == 0) return cudaSuccess;
  return with_type(p.type, [&]<class T>() { return choose_tile<T>(p, stream); });
}

}  // namespace xlstm::cuda
