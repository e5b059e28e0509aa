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

// ---- a thread's tokens in memory: 16 bytes at a time where they are whole and aligned ----

// take(j, token) for the first `count` tokens from `from` on, and with zeros past them. Two vectors of a sector come
// one after the other: the second one is in L1 then.
template <class T, class Take>
XLSTM_DEVICE void take_tokens(const T* from, int64_t stride, int count, Take take) {
  constexpr int kCount = Vector<T>::kCount;
  if (count == kTokens && stride == 1 && device::aligned_for<Vector<T>>(from)) {
#pragma unroll
    for (int n = 0; n < kTokens / kCount; ++n) {
      const Vector<T> v = device::load_vector(from + n * kCount);
#pragma unroll
      for (int j = 0; j < kCount; ++j) take(n * kCount + j, v.x[j]);
    }
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

template <class T>
constexpr int kTokenVectors = kTokens / Vector<T>::kCount;

// Tokens of a lane, whole. kPair: of its neighbour as well, an even lane's in front of those of the odd one after it.
// The two write sectors of 32 bytes together then: vectors 2n and 2n + 1 of the pair in one access.
template <bool kPair, class T, class Value>
XLSTM_DEVICE void give_whole_tokens(T* to, Value value) {
  constexpr int kCount = Vector<T>::kCount, kVectors = kTokenVectors<T>, kHalf = kVectors / 2;
  Vector<T> v[kVectors];  // of a pair: vector 2n of the lane in v[n], 2n + 1 in v[kHalf + n]
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    const int own = j / kCount;
    v[kPair ? own % 2 * kHalf + own / 2 : own].x[j % kCount] = value(j);
  }
  const int odd = device::is_odd_lane();
#pragma unroll
  for (int n = 0; kPair && n < kHalf; ++n) device::swap_with_neighbour(v[n], v[kHalf + n]);
  Vector<T>* const first = reinterpret_cast<Vector<T>*>(kPair ? to - odd * kTokens : to);
#pragma unroll
  for (int n = 0; n < kVectors; ++n) device::store_whole(first + (kPair ? 2 * n + odd : n), v[n]);
}

// value(j) for the first `count` tokens. By all lanes of a warp.
template <class T, class Value>
XLSTM_DEVICE void give_tokens(T* to, int64_t stride, int count, Value value) {
  // A single vector lies beside its neighbour's anyway; of more than four there are no registers for the exchange.
  constexpr bool kPair = kTokenVectors<T> == 2 || kTokenVectors<T> == 4;
  const bool whole = count == kTokens && stride == 1 && device::aligned_for<Vector<T>>(to);
  if (kPair ? __all_sync(~0u, whole) : whole) {
    give_whole_tokens<kPair>(to, value);
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
