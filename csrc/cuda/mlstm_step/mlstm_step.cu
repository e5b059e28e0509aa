// mLSTM decode step in two kernels (docs/kernels/mlstm.md): `normaliser` advances n and m and leaves three factors per
// token; `state` passes over C once, reading and writing each element once, whatever the number of tokens.
#include "core/gates.h"
#include "cuda/device/device.h"
#include "cuda/mlstm_step/mlstm_step.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kMaxTokens = static_cast<int>(kMaxStepTokens);

// Per token: C <- forget C + input k v^T, h = out (q C). NaN where the slot does not exist.
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
  if (!at.exists) {
    if (static_cast<int>(threadIdx.x) < tokens) factors[threadIdx.x].out = static_cast<A>(NAN);
    return;
  }
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
template <class C, int kTokens>
constexpr int kTile = kAcross * kVector<C, kTokens>;

template <class A, class C, int kTokens>
struct StateShared {
  Factors<A> factors[kTokens];
  A q[kTokens][kSlab], k[kTokens][kSlab];  // k times the input gate
  A v[kTokens][kTile<C, kTokens>];
  A h[kStateWarps][kTokens][kTile<C, kTokens>];
};

// kCount columns of kRows rows that are `pitch` apart, in one access of each where `whole`; else those below `columns`.
// The first `rows` of them exist. Zeros elsewhere.
template <class A, class C, int kRows, int kCount>
XLSTM_DEVICE void load_columns(A (&to)[kRows][kCount], const C* from, int64_t pitch, int rows, bool whole,
                               int64_t columns) {
  Pack<C, kCount> packs[kRows];
  if (whole && rows > 0) {  // the last row for those that do not exist: no other thread writes it meanwhile
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      packs[j] = load_whole(reinterpret_cast<const Pack<C, kCount>*>(from + min(j, rows - 1) * pitch));
    }
  } else {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      for (int c = 0; c < kCount; ++c) packs[j].x[c] = j < rows && c < columns ? from[j * pitch + c] : narrow<C>(A{0});
    }
  }
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) to[j][c] = j < rows ? widen<A>(packs[j].x[c]) : A{0};
  }
}

template <class A, class C, int kCount>
XLSTM_DEVICE void store_columns(C* to, const A (&from)[kCount], bool whole, int64_t columns) {
  Pack<C, kCount> pack;
#pragma unroll
  for (int c = 0; c < kCount; ++c) pack.x[c] = narrow<C>(from[c]);
  if (whole) {
    store_whole(reinterpret_cast<Pack<C, kCount>*>(to), pack);
  } else {
    for (int c = 0; c < kCount; ++c) {
      if (c < columns) to[c] = pack.x[c];
    }
  }
}

// q, and k times the input gate, of rows [first, first + kSlab) for all tokens; zeros past the last row.
template <class A, class C, int kTokens>
XLSTM_DEVICE void stage(const MlstmStepParams<void>& p, const Where& at, int64_t first, int tokens,
                        StateShared<A, C, kTokens>& s) {
  for (int t = 0; t < tokens; ++t) {
    for (int row = threadIdx.x; row < kSlab; row += kStateThreads) {
      const int64_t a = first + row;
      const bool inside = a < p.shape.head_dim_qk;
      s.q[t][row] = inside ? load_any<A>(p.q.data, p.q.type, p.q.offset(at.batch, at.head, t) + a) : A{0};
      s.k[t][row] =
          inside ? s.factors[t].input * load_any<A>(p.k.data, p.k.type, p.k.offset(at.batch, at.head, t) + a) : A{0};
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

template <class A, class C, int kTokens>
__global__ void __launch_bounds__(kStateThreads, kTokens == 1 && sizeof(C) == 4 ? 2 : 1)
    state(MlstmStepParams<void> p, const Factors<A>* factors_of_all, int tiles, bool aligned) {
  constexpr int kColumns = kVector<C, kTokens>, kWidth = kTile<C, kTokens>;
  using Shared = StateShared<A, C, kTokens>;
  XLSTM_SHARED(Shared, s);
  const int tokens = static_cast<int>(p.shape.seqlen);
  const int64_t item = blockIdx.x / tiles, tile = int64_t{blockIdx.x % tiles} * kWidth;
  const Where at = locate(p, item);
  const int across = threadIdx.x % kAcross, row = threadIdx.x / kAcross;
  const int64_t column = tile + across * kColumns, columns = p.shape.head_dim_v - column;
  const bool whole = aligned && (columns >= kColumns || XLSTM_MUTANT("mlstm_step: whole vectors at the last column"));

  const Factors<A>* factors = factors_of_all + item * tokens;
  for (int t = threadIdx.x; t < tokens; t += kStateThreads) s.factors[t] = factors[t];
  for (int x = threadIdx.x; x < tokens * kWidth; x += kStateThreads) {
    const int t = x / kWidth, c = x % kWidth;
    const bool inside = tile + c < p.shape.head_dim_v;
    s.v[t][c] = inside ? load_any<A>(p.v.data, p.v.type, p.v.offset(at.batch, at.head, t) + tile + c) : A{0};
  }
  __syncthreads();

  const C* from =
      static_cast<const C*>(p.state.C.data) + at.state_row * p.state.C_batch + at.head * p.state.C_head + column;
  C* to = static_cast<C*>(const_cast<void*>(p.next.C.data)) + at.state_row * p.next.C_batch + at.head * p.next.C_head +
          column;
  A sums[kTokens][kColumns] = {};
  for (int64_t first = 0; at.exists && first < p.shape.head_dim_qk; first += kSlab) {
    A values[kLoads][kColumns];
    const int64_t left = p.shape.head_dim_qk - first - row;
    const int rows = left <= 0 ? 0 : static_cast<int>(min(left + kRowsAtOnce - 1, int64_t{kSlab}) / kRowsAtOnce);
    load_columns(values, from + (first + row) * p.state.C_row, kRowsAtOnce * p.state.C_row, rows, whole, columns);
    if (first > 0) sync_threads(XLSTM_MUTANT("mlstm_step: slab staged while it is read"));
    stage(p, at, first, tokens, s);
    sync_threads(XLSTM_MUTANT("mlstm_step: slab read before it is staged"));
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens) break;
      const A forget = s.factors[t].forget;
      A v[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) v[c] = s.v[t][across * kColumns + c];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const A q = s.q[t][row + j * kRowsAtOnce], k = s.k[t][row + j * kRowsAtOnce];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          values[j][c] = forget * values[j][c] + k * v[c];
          sums[t][c] += q * values[j][c];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int64_t a = first + row + j * kRowsAtOnce;
      if (j < rows) store_columns(to + a * p.next.C_row, values[j], whole, columns);
    }
  }

  reduce<A, C, kTokens>(sums, tokens, s);
  sync_threads(XLSTM_MUTANT("mlstm_step: h read before all warps wrote it"));
  for (int x = threadIdx.x; x < tokens * kWidth; x += kStateThreads) {
    const int t = x / kWidth, c = x % kWidth;
    if (tile + c >= p.shape.head_dim_v) continue;
    A h = 0;
    for (int warp = 0; warp < kStateWarps; ++warp) h += s.h[warp][t][c];
    store_any(const_cast<void*>(p.h.data), p.h.type, p.h.offset(at.batch, at.head, t) + tile + c, s.factors[t].out * h);
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
  return launch(l, state<A, C, kTokens>, p, factors, static_cast<int>(tiles), aligned);
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
