// mLSTM decode step in two kernels (docs/kernels/mlstm.md): `normaliser` advances n and m and leaves three factors per
// token; `state` passes over C once, reading and writing each element once, whatever the number of tokens.
#include "core/gates.h"
#include "cuda/device/device.h"
#include "cuda/mlstm_step/mlstm_step.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kMaxTokens = static_cast<int>(kMaxStepTokens);

// Per token: C <- forget C + input k v^T, h = out (q C).
template <class A>
struct Factors {
  A forget, input, out;
};

struct Where {
  int64_t batch, head, state_row;
  bool exists;
};

XLSTM_DEVICE Where locate(const MlstmStepParams<void>& p, int64_t item) {
  const int64_t b = item / p.shape.num_heads;
  const int64_t state_row = p.slots && !XLSTM_MUTANT("mlstm_step: slots ignored") ? p.slots[b] : b;
  return {b, item % p.shape.num_heads, state_row, state_row >= 0 && state_row < p.state_rows};
}

// f<T>() for the type of q, k, v and h, asked outside of a loop over their elements. Arithmetic in double is for double
// alone.
template <class A, class F>
XLSTM_DEVICE void with_data_type(Type type, F f) {
  if constexpr (std::is_same_v<A, double>) {
    f.template operator()<double>();
  } else if (type == Type::bf16) {
    f.template operator()<__nv_bfloat16>();
  } else if (type == Type::f16) {
    f.template operator()<__half>();
  } else {
    f.template operator()<float>();
  }
}

// Of a token, from its first element on.
template <class T>
XLSTM_DEVICE const T* row_of(const AnyView& x, const Where& at, int token) {
  return static_cast<const T*>(x.data) + x.offset(at.batch, at.head, token);
}

// ---- n, m and the factors: one block per batch row and head ----

constexpr int kNormaliserThreads = 128, kNormaliserWarps = kNormaliserThreads / 32;

template <class A>
struct NormaliserShared {
  double log_forget[kMaxTokens], log_input[kMaxTokens];
  A forget[kMaxTokens], input[kMaxTokens], floor[kMaxTokens];
  A partial[kMaxTokens][kNormaliserWarps];
};

// m after `tokens` tokens; also the factors of the last of them.
template <class A>
XLSTM_DEVICE double stabilise(const NormaliserShared<A>& s, double m, int tokens, double& forget, double& input) {
  for (int t = 0; t < tokens; ++t) {
    const double i = s.log_input[t], log_f = s.log_forget[t];
    m = m < kEmptyLog ? kEmptyLog : m;
    double next = i > log_f + m || i != i ? i : log_f + m;  // NaN stays
    next = next < kEmptyLog ? kEmptyLog : next;
    forget = exp(log_f + m - next);
    input = exp(i - next);
    m = next;
  }
  return m;
}

// Threads 0 .. tokens - 1: the gates of a token each; the last one also leaves the next m.
template <class A>
XLSTM_DEVICE void gates(const MlstmStepParams<void>& p, const Where& at, NormaliserShared<A>& s) {
  const int t = threadIdx.x, tokens = static_cast<int>(p.shape.seqlen);
  if (t < tokens) {
    const double i = load_any<double>(p.i.data, p.i.type, p.i.offset(at.batch, at.head, t));
    const double f = load_any<double>(p.f.data, p.f.type, p.f.offset(at.batch, at.head, t));
    s.log_input[t] = i;
    s.log_forget[t] = log_sigmoid(f);
    s.forget[t] = static_cast<A>(sigmoid(f));
    s.input[t] = static_cast<A>(sigmoid(i));
  }
  sync_threads(XLSTM_MUTANT("mlstm_step: no barrier between the gates of tokens"));
  if (t >= tokens) return;
  const A* m = static_cast<const A*>(p.state.m) + at.state_row * p.state.m_batch + at.head * p.state.m_head;
  double next = *m;
  if (!p.options.sigmoid_gate) {
    double forget, input;
    next = stabilise(s, next, t + 1, forget, input);
    s.forget[t] = static_cast<A>(forget);
    s.input[t] = static_cast<A>(input);
  }
  s.floor[t] = static_cast<A>(denominator_floor(p.options, next));
  __syncwarp(XLSTM_MUTANT("mlstm_step: m overwritten while others read it") ? 1u << t : (1u << tokens) - 1);
  if (t + 1 == tokens) {
    static_cast<A*>(p.next.m)[at.state_row * p.next.m_batch + at.head * p.next.m_head] = static_cast<A>(next);
  }
}

// Sums over the block, for each token: thread t < kMaxTokens returns that of token t.
template <class A>
XLSTM_DEVICE A block_sums(A (&sums)[kMaxTokens], int tokens, NormaliserShared<A>& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int t = 0; t < kMaxTokens; ++t) {
    if (t >= tokens) break;
    for (int step = 16; step > 0; step /= 2) sums[t] += __shfl_xor_sync(~0u, sums[t], step);
    if (lane == 0) s.partial[t][warp] = sums[t];
  }
  sync_threads(XLSTM_MUTANT("mlstm_step: no barrier before the sums of warps"));
  A total = 0;
  if (static_cast<int>(threadIdx.x) < tokens) {
    for (int w = 0; w < kNormaliserWarps; ++w) total += s.partial[threadIdx.x][w];
  }
  return total;
}

template <class A>
__global__ void __launch_bounds__(kNormaliserThreads) normaliser(MlstmStepParams<void> p, Factors<A>* factors_of_all) {
  XLSTM_SHARED(NormaliserShared<A>, s);
  const Where at = locate(p, blockIdx.x);
  const int tokens = static_cast<int>(p.shape.seqlen);
  Factors<A>* factors = factors_of_all + int64_t{blockIdx.x} * tokens;
  if (!at.exists) return;
  gates(p, at, s);
  __syncthreads();

  const A* n = static_cast<const A*>(p.state.n) + at.state_row * p.state.n_batch + at.head * p.state.n_head;
  A* next = static_cast<A*>(p.next.n) + at.state_row * p.next.n_batch + at.head * p.next.n_head;
  A sums[kMaxTokens] = {};
  with_data_type<A>(p.k.type, [&]<class T>() {
    for (int64_t a = threadIdx.x; a < p.shape.head_dim_qk; a += kNormaliserThreads) {
      A value = n[a];
#pragma unroll
      for (int t = 0; t < kMaxTokens; ++t) {
        if (t >= tokens) break;
        const A k = widen<A>(row_of<T>(p.k, at, t)[a]), q = widen<A>(row_of<T>(p.q, at, t)[a]);
        value = s.forget[t] * value + s.input[t] * k;
        sums[t] += q * value;
      }
      next[a] = value;
    }
  });
  const A scale = static_cast<A>(p.options.scale);
  const A r = block_sums(sums, tokens, s) * scale;
  const int t = threadIdx.x;
  if (t >= tokens) return;
  factors[t] = {s.forget[t], s.input[t], scale / denominator(p.options, r, s.floor[t])};
}

// ---- C and h: one block per batch row, head and tile of columns ----

constexpr int kStateThreads = 256, kStateWarps = kStateThreads / 32;
constexpr int kAcross = 8;                            // threads across a tile: 128 bytes of a row with 16 each
constexpr int kRowsAtOnce = kStateThreads / kAcross;  // rows of C that the block holds per load
constexpr int kLoads = 8;                             // loads in flight per thread
constexpr int kSlab = kRowsAtOnce * kLoads;           // rows between two barriers

// Columns of one thread. Many tokens: fewer, because each column has an accumulator per token.
template <class C, int kTokens>
constexpr int kVector = kTokens > 1 && sizeof(C) == 2 ? 4 : 16 / static_cast<int>(sizeof(C));
// Rows of one thread that are widened together. Many tokens: all, because each row group reads each token's v again.
template <int kTokens>
constexpr int kTogether = kTokens > 1 ? kLoads : 1;
// Blocks of a multiprocessor, at least: of one token, so many that some load while others compute and store.
template <class C, int kTokens, bool kWhole>
constexpr int kResidentBlocks = kTokens > 1 || !kWhole ? 1 : (sizeof(C) == 4 ? 3 : 2);
template <class C, int kTokens>
constexpr int kTile = kAcross * kVector<C, kTokens>;

template <class A, class C, int kTokens>
struct StateShared {
  Factors<A> factors[kTokens];
  A q[kTokens][kSlab], k[kTokens][kSlab];
  A v[kTokens][kTile<C, kTokens>];
  A h[kStateWarps][kTokens][kTile<C, kTokens>];
};

// A pack as it is kept while it is on its way: of single elements of 2 bytes nvcc makes a register each.
template <class C, int kCount>
struct Words {
  uint32_t word[sizeof(C) * kCount / 4];
};

// kCount columns of kRows rows that are `pitch` apart. kWhole: in one access of each; else those below `columns`. The
// first `rows` of them exist. What stands for the others is of no use.
template <bool kWhole, class C, int kRows, int kCount>
XLSTM_DEVICE void load_columns(Words<C, kCount> (&to)[kRows], const C* from, int64_t pitch, int rows, int64_t columns) {
#pragma unroll
  for (int j = 0; j < kRows; ++j) to[j] = {};
  if (rows == 0) return;
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const C* const row = from + min(j, rows - 1) * pitch;  // of those that exist: no other thread writes it meanwhile
    if constexpr (kWhole) {
      to[j] = load_whole(reinterpret_cast<const Words<C, kCount>*>(row));
    } else {
      Pack<C, kCount> pack;
#pragma unroll
      for (int c = 0; c < kCount; ++c) pack.x[c] = c < columns ? row[c] : C(0.0f);
      to[j] = bits_as<Words<C, kCount>>(pack);
    }
  }
}

template <bool kWhole, class A, class C, int kCount>
XLSTM_DEVICE void store_columns(C* to, const A (&from)[kCount], int64_t columns) {
  Pack<C, kCount> pack;
#pragma unroll
  for (int c = 0; c < kCount; ++c) pack.x[c] = narrow<C>(from[c]);
  if constexpr (kWhole) {
    store_whole(reinterpret_cast<Pack<C, kCount>*>(to), pack);
  } else {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      if (c < columns) to[c] = pack.x[c];
    }
  }
}

// The factors, q and k of rows [first, first + kSlab) and v of the tile, for all tokens; zeros past the last ones.
// Asked for together: what is stored between two loads makes the second one wait for the first.
template <class A, class C, int kTokens>
XLSTM_DEVICE void stage(const MlstmStepParams<void>& p, const Where& at, const Factors<A>* factors, int64_t first,
                        int64_t tile, int tokens, StateShared<A, C, kTokens>& s) {
  constexpr int kWidth = kTile<C, kTokens>;
  static_assert(kSlab == kStateThreads && kWidth <= kStateThreads);
  const int thread = threadIdx.x;
  const int64_t row = first + thread, column = tile + thread;
  const bool has_row = row < p.shape.head_dim_qk, has_column = thread < kWidth && column < p.shape.head_dim_v;
  Factors<A> own{};
  if (thread < tokens) own = factors[thread];
  with_data_type<A>(p.q.type, [&]<class T>() {
    for (int t = 0; t < tokens; ++t) {
      const T q = has_row ? row_of<T>(p.q, at, t)[row] : T(0.0f), k = has_row ? row_of<T>(p.k, at, t)[row] : T(0.0f);
      const T v = has_column ? row_of<T>(p.v, at, t)[column] : T(0.0f);
      s.q[t][thread] = widen<A>(q);
      s.k[t][thread] = widen<A>(k);
      if (thread < kWidth) s.v[t][thread] = widen<A>(v);
    }
  });
  if (thread < tokens) s.factors[thread] = own;
}

// All tokens, applied to the thread's columns of rows `row`, `row` + kRowsAtOnce, ... of the slab.
template <class A, class C, int kTokens, int kRows>
XLSTM_DEVICE void apply(A (&values)[kRows][kVector<C, kTokens>], A (&sums)[kTokens][kVector<C, kTokens>], int row,
                        int across, int tokens, const StateShared<A, C, kTokens>& s) {
  constexpr int kColumns = kVector<C, kTokens>;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens) break;
    const A forget = s.factors[t].forget, input = s.factors[t].input;
    A v[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) v[c] = input * s.v[t][across * kColumns + c];
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      const A q = s.q[t][row + n * kRowsAtOnce], k = s.k[t][row + n * kRowsAtOnce];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        values[n][c] = forget * values[n][c] + k * v[c];
        sums[t][c] += q * values[n][c];
      }
    }
  }
}

// The sums of one warp's rows: lanes that hold the same columns, then one row of s.h per warp.
template <class A, class C, int kTokens>
XLSTM_DEVICE void reduce(A (&sums)[kTokens][kVector<C, kTokens>], int tokens, StateShared<A, C, kTokens>& s) {
  constexpr int kColumns = kVector<C, kTokens>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens) break;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      A sum = sums[t][c];
      for (int step = 16; step >= kAcross; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (lane < kAcross) s.h[warp][t][lane * kColumns + c] = sum;
    }
  }
}

// kWhole: a thread's columns all exist or none of them, and lie at multiples of their size.
template <class A, class C, int kTokens, bool kWhole>
__global__ void __launch_bounds__(kStateThreads, kResidentBlocks<C, kTokens, kWhole>)
    state(MlstmStepParams<void> p, const Factors<A>* factors_of_all, int tiles) {
  constexpr int kColumns = kVector<C, kTokens>, kWidth = kTile<C, kTokens>, kRows = kTogether<kTokens>;
  using Shared = StateShared<A, C, kTokens>;
  XLSTM_SHARED(Shared, s);
  const int tokens = kTokens == 1 ? 1 : static_cast<int>(p.shape.seqlen);
  const int64_t item = blockIdx.x / tiles, tile = int64_t{blockIdx.x % tiles} * kWidth;
  const Where at = locate(p, item);
  const int across = threadIdx.x % kAcross, row = threadIdx.x / kAcross;
  const int64_t column = tile + across * kColumns, columns = p.shape.head_dim_v - column;

  const Factors<A>* factors = factors_of_all + item * tokens;
  const C* from =
      static_cast<const C*>(p.state.C.data) + at.state_row * p.state.C_batch + at.head * p.state.C_head + column;
  C* to = static_cast<C*>(const_cast<void*>(p.next.C.data)) + at.state_row * p.next.C_batch + at.head * p.next.C_head +
          column;
  A sums[kTokens][kColumns] = {};
  for (int64_t first = 0; at.exists && first < p.shape.head_dim_qk; first += kSlab) {
    const int64_t left = p.shape.head_dim_qk - first - row;
    const bool inside = left > 0 && (columns > 0 || XLSTM_MUTANT("mlstm_step: columns past the last one are updated"));
    const int rows = !inside ? 0 : static_cast<int>(min(left + kRowsAtOnce - 1, int64_t{kSlab}) / kRowsAtOnce);
    Words<C, kColumns> words[kLoads];
    load_columns<kWhole>(words, from + (first + row) * p.state.C_row, kRowsAtOnce * p.state.C_row, rows, columns);
    if (first > 0) sync_threads(XLSTM_MUTANT("mlstm_step: slab staged while it is read"));
    // Opaque: what is made of it would wait in registers while C is on its way.
    stage(p, at, factors, opaque(first), tile, tokens, s);
    sync_threads(XLSTM_MUTANT("mlstm_step: slab read before it is staged"));
    const int64_t step = opaque(kRowsAtOnce * p.next.C_row);
    C* const out = to + (opaque(first) + row) * p.next.C_row;
#pragma unroll
    for (int j = 0; j < kLoads; j += kRows) {
      A values[kRows][kColumns];
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        const auto pack = bits_as<Pack<C, kColumns>>(words[j + n]);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) values[n][c] = j + n < rows ? widen<A>(pack.x[c]) : A{0};
      }
      apply(values, sums, row + j * kRowsAtOnce, across, tokens, s);
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        if (j + n < rows) store_columns<kWhole>(out + (j + n) * step, values[n], columns);
      }
    }
  }

  reduce<A, C, kTokens>(sums, tokens, s);
  sync_threads(XLSTM_MUTANT("mlstm_step: h read before all warps wrote it"));
  for (int x = threadIdx.x; x < tokens * kWidth; x += kStateThreads) {
    const int t = x / kWidth, c = x % kWidth;
    if (tile + c >= p.shape.head_dim_v) continue;
    const A out = at.exists ? s.factors[t].out : static_cast<A>(NAN);
    A h = 0;
    for (int warp = 0; warp < kStateWarps; ++warp) h += s.h[warp][t][c];
    store_any(const_cast<void*>(p.h.data), p.h.type, p.h.offset(at.batch, at.head, t) + tile + c, out * h);
  }
}

// ---- launches ----

// Whether every row of C starts at a multiple of the vector's size.
template <class C>
bool rows_aligned(const auto& s, int vector) {
  const bool strides = s.C_batch % vector == 0 && s.C_head % vector == 0 && s.C_row % vector == 0;
  return strides && reinterpret_cast<uintptr_t>(s.C.data) % (vector * sizeof(C)) == 0;
}

// Of columns of a head's state, a block each.
template <class C, int kTokens>
int64_t state_tiles(const MlstmShape& shape) {
  return (shape.head_dim_v + kTile<C, kTokens> - 1) / kTile<C, kTokens>;
}

template <class A, class C, int kTokens>
cudaError_t launch_state(const MlstmStepParams<void>& p, const Factors<A>* factors, cudaStream_t stream) {
  constexpr int kColumns = kVector<C, kTokens>;
  const int64_t tiles = state_tiles<C, kTokens>(p.shape);
  Launch l;
  l.grid = dim3(static_cast<unsigned>(p.shape.batch * p.shape.num_heads * tiles));
  l.block = dim3(kStateThreads);
  l.shared_bytes = sizeof(StateShared<A, C, kTokens>);
  l.name = "mlstm_step state";
  l.stream = stream;
  const bool aligned = rows_aligned<C>(p.state, kColumns) && rows_aligned<C>(p.next, kColumns);
  const bool even = p.shape.head_dim_v % kColumns == 0 || XLSTM_MUTANT("mlstm_step: whole vectors at the last column");
  const auto kernel = aligned && even ? state<A, C, kTokens, true> : state<A, C, kTokens, false>;
  return launch(l, kernel, p, factors, static_cast<int>(tiles));
}

template <class A>
cudaError_t launch_normaliser(const MlstmStepParams<void>& p, Factors<A>* factors, cudaStream_t stream) {
  Launch l;
  l.grid = dim3(static_cast<unsigned>(p.shape.batch * p.shape.num_heads));
  l.block = dim3(kNormaliserThreads);
  l.shared_bytes = sizeof(NormaliserShared<A>);
  l.name = "mlstm_step normaliser";
  l.stream = stream;
  return launch(l, normaliser<A>, p, factors);
}

template <class A, class C, int kTokens>
cudaError_t launch_both(const MlstmStepParams<void>& p, const Allocator& memory, cudaStream_t stream) {
  const int64_t blocks = p.shape.batch * p.shape.num_heads * state_tiles<C, kTokens>(p.shape);
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;  // said before n and m change
  auto* factors = memory.get<Factors<A>>(p.shape.batch * p.shape.num_heads * p.shape.seqlen);
  const cudaError_t error = launch_normaliser<A>(p, factors, stream);
  return error == cudaSuccess ? launch_state<A, C, kTokens>(p, factors, stream) : error;
}

template <class A, class C>
cudaError_t choose_tokens(const MlstmStepParams<void>& p, const Allocator& memory, cudaStream_t stream) {
  return p.shape.seqlen == 1 ? launch_both<A, C, 1>(p, memory, stream)
                             : launch_both<A, C, kMaxTokens>(p, memory, stream);
}

}  // namespace

cudaError_t run(const MlstmStepParams<void>& p, const Allocator& memory, cudaStream_t stream) {
  if (p.shape.batch == 0 || p.shape.seqlen == 0) return cudaSuccess;
  const bool one_type = p.k.type == p.q.type && p.v.type == p.q.type;
  if (!one_type || (p.q.type == Type::f64) != (p.state.C.type == Type::f64)) return cudaErrorInvalidValue;
  switch (p.state.C.type) {
    case Type::bf16:
      return choose_tokens<float, __nv_bfloat16>(p, memory, stream);
    case Type::f32:
      return choose_tokens<float, float>(p, memory, stream);
    case Type::f64:
      return choose_tokens<double, double>(p, memory, stream);
    case Type::f16:
      break;  // refused by the op
  }
  return cudaErrorInvalidValue;
}

}  // namespace xlstm::cuda
