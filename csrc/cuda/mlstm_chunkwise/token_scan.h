#pragma once
// What the kernels that scan gates share: a block per head of a sequence, a thread per eight consecutive tokens, so
// that a chunk lies inside a warp.
#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/chunks.h"
#include "cuda/types.h"

namespace xlstm::cuda {

using device::Vector;

constexpr int kTokens = 8;  // of a thread
constexpr int kWarpTokens = 32 * kTokens;
constexpr int kMinChunk = 64, kMaxChunk = kWarpTokens;
constexpr int kMaxScanThreads = 512;

// The head of a sequence that a block walks.
struct Item {
  Sequence tokens;
  int64_t head, state, batch_head;  // state: index into (N, H); batch_head: into (B, H)
  int64_t slot;                     // of its first chunk, in (B, H, slots)
};

XLSTM_DEVICE Item locate(const MlstmShape& shape, int chunk_size) {
  const int64_t state = blockIdx.x, head = state % shape.num_heads, sequence = state / shape.num_heads;
  const Sequence tokens = find_sequence(shape, sequence);
  const int64_t batch_head = tokens.row * shape.num_heads + head;
  return {tokens, head, state, batch_head,
          batch_head * chunk_slots(shape, chunk_size) + first_slot(shape, chunk_size, sequence)};
}

// Threads for sequences of the usual length; packed ones may be longer: their lengths are known on the device only.
inline unsigned scan_threads(const MlstmShape& shape) {
  const int64_t mean = shape.cu_seqlens ? shape.seqlen / shape.num_sequences + 1 : shape.seqlen;
  const int64_t length = shape.cu_seqlens && 4 * mean < shape.seqlen ? 4 * mean : shape.seqlen;
  const int64_t warps = (length + kWarpTokens - 1) / kWarpTokens, most = kMaxScanThreads / 32;
  return static_cast<unsigned>(32 * (warps < 1 ? 1 : warps > most ? most : warps));
}

// Arguments: of type P, with shape and chunk_size.
template <class P>
cudaError_t launch_scan(const char* name, size_t shared_bytes, void (*kernel)(P), const P& p, cudaStream_t stream) {
  const int64_t blocks = p.shape.num_sequences * p.shape.num_heads;
  const bool good = p.chunk_size == kMinChunk || p.chunk_size == 2 * kMinChunk || p.chunk_size == kMaxChunk;
  if (!good || p.shape.seqlen > INT32_MAX) return cudaErrorInvalidValue;
  if (blocks > device::kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  device::Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks));
  l.block = dim3(scan_threads(p.shape));
  l.shared_bytes = shared_bytes;
  l.name = name;
  l.stream = stream;
  return device::launch(l, kernel, p);
}

// ---- sets of a thread's tokens: a bit per token ----

XLSTM_DEVICE bool has(unsigned set, int token) {
  return set >> token & 1;
}
XLSTM_DEVICE bool has_up_to(unsigned set, int token) {
  return (set & ((2u << token) - 1)) != 0;
}
XLSTM_DEVICE int last_of(unsigned set) {
  return 31 - __clz(static_cast<int>(set));
}

// ---- a thread's tokens in memory: by all threads of a warp ----

// The tokens of a thread in vectors. In memory, an even lane's vectors come before those of the odd lane after it.
template <class T>
class TokenVectors {
  static constexpr int kCount = Vector<T>::kCount, kVectors = kTokens / kCount, kHalf = kVectors / 2;
  Vector<T> v[kVectors];  // vector 2n of the thread in v[n], 2n + 1 in v[kHalf + n]

  // Of the pair of lanes, which read or write vectors 2n and 2n + 1 of it in one access.
  static XLSTM_DEVICE Vector<T>* place(const T* own, int n) {
    const int odd = device::is_odd_lane();
    return reinterpret_cast<Vector<T>*>(const_cast<T*>(own) - odd * kTokens) + 2 * n + odd;
  }
  // From the vectors that a lane owns to those that it reads or writes, and back.
  XLSTM_DEVICE void exchange() {
#pragma unroll
    for (int n = 0; n < kHalf; ++n) device::swap_with_neighbour(v[n], v[kHalf + n]);
  }

 public:
  XLSTM_DEVICE T& operator[](int j) {
    const int own = j / kCount;
    return v[kVectors == 1 ? 0 : own % 2 * kHalf + own / 2].x[j % kCount];
  }
  XLSTM_DEVICE void load(const T* from) {
#pragma unroll
    for (int n = 0; n < kVectors; ++n) v[n] = device::load_whole(place(from, n));
    exchange();
  }
  XLSTM_DEVICE void store(T* to) {
    exchange();
#pragma unroll
    for (int n = 0; n < kVectors; ++n) device::store_whole(place(to, n), v[n]);
  }
};

// Whether the tokens of all lanes are there, aligned and side by side.
XLSTM_DEVICE bool whole_warp(const void* tokens, int64_t stride, int count) {
  return __all_sync(~0u, count == kTokens && stride == 1 && device::aligned_for<uint4>(tokens));
}

// take(j, token) for the first `count` tokens from `from` on, and with zeros past them.
template <class T, class Take>
XLSTM_DEVICE void take_tokens(const T* from, int64_t stride, int count, Take take) {
  if (whole_warp(from, stride, count)) {
    TokenVectors<T> tokens;
    tokens.load(from);
#pragma unroll
    for (int j = 0; j < kTokens; ++j) take(j, tokens[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kTokens; ++j) take(j, j < count ? from[j * stride] : T{});
  }
}

template <class T>
XLSTM_DEVICE void load_tokens(T (&to)[kTokens], const T* from, int count) {
  take_tokens(from, 1, count, [&](int j, const T& token) { to[j] = token; });
}

// Tokens from element `offset` of a view on, of any type.
XLSTM_DEVICE void load_tokens(double (&to)[kTokens], const AnyView& x, int64_t offset, int count) {
  device::with_type(x.type, [&]<class T>() {
    const auto take = [&](int j, const T& token) { to[j] = device::widen<double>(token); };
    take_tokens(static_cast<const T*>(x.data) + offset, x.time, count, take);
  });
}

// value(j) for the first `count` tokens.
template <class T, class Value>
XLSTM_DEVICE void give_tokens(T* to, int64_t stride, int count, Value value) {
  if (whole_warp(to, stride, count)) {
    TokenVectors<T> tokens;
#pragma unroll
    for (int j = 0; j < kTokens; ++j) tokens[j] = value(j);
    tokens.store(to);
  } else {
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      if (j < count) to[j * stride] = value(j);
    }
  }
}

template <class T, class Value>
XLSTM_DEVICE void store_tokens(T* to, int count, Value value) {
  give_tokens(to, 1, count, value);
}

template <class Value>
XLSTM_DEVICE void store_tokens(const AnyView& x, int64_t offset, int count, Value value) {
  device::with_type(x.type, [&]<class T>() {
    const auto token = [&](int j) { return device::narrow<T>(value(j)); };
    give_tokens(static_cast<T*>(const_cast<void*>(x.data)) + offset, x.time, count, token);
  });
}

}  // namespace xlstm::cuda
