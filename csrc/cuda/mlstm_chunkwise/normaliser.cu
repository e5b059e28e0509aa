// Normaliser of the chunkwise mLSTM, backward (docs/kernels/mlstm.md): a group of lanes multiplies the rows dh of a few
// tokens with their rows h, 16 bytes at a time, and then each of its first lanes finishes a token. A group has a lane
// for each vector of a row, a warp at most.
#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/normaliser.h"
#include "cuda/mlstm_chunkwise/token_scan.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kThreads = 128;
constexpr int kResidentBlocks = 6;  // of a multiprocessor, at least
constexpr int kGroupTokens = 4;     // of h and of dh: eight vectors in flight for each lane
constexpr int kMinLanesLog2 = 2;    // a lane for each token

// Of the tokens of a group, those past the last one of the head replaced by it.
template <class T>
struct Rows {
  const T* first;
  int64_t time;
  int last;
  XLSTM_DEVICE const T* operator[](int token) const { return first + min(token, last) * time; }
};

// This lane's part of the dot products of rows: `vectors` of 16 bytes, then single elements.
template <class A, class T>
XLSTM_DEVICE void partial_dots(A (&sums)[kGroupTokens], const Rows<T>& x, const Rows<T>& y, int64_t columns,
                               int64_t vectors, int lane, int lanes) {
  constexpr int kCount = Vector<T>::kCount;
#pragma unroll 1  // for registers
  for (int64_t n = lane; n < vectors; n += lanes) {
    Vector<T> a[kGroupTokens], b[kGroupTokens];
#pragma unroll
    for (int t = 0; t < kGroupTokens; ++t) {
      a[t] = load_vector(x[t] + n * kCount);
      b[t] = load_vector(y[t] + n * kCount);
    }
#pragma unroll
    for (int t = 0; t < kGroupTokens; ++t) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) sums[t] += widen<A>(a[t].x[j]) * widen<A>(b[t].x[j]);
    }
  }
  if (XLSTM_MUTANT("mlstm_normaliser: columns past the last vector ignored")) return;
#pragma unroll 1
  for (int64_t c = vectors * kCount + lane; c < columns; c += lanes) {
#pragma unroll
    for (int t = 0; t < kGroupTokens; ++t) sums[t] += widen<A>(x[t][c]) * widen<A>(y[t][c]);
  }
}

// dh.h of the token that this lane finishes, one of those from `token` on.
template <class A>
XLSTM_DEVICE A output_dot(const MlstmNormaliserParams<A>& p, unsigned batch_head, int token, bool whole, int lanes) {
  const unsigned heads = static_cast<unsigned>(p.shape.num_heads), b = batch_head / heads,
                 head = batch_head - b * heads;
  const int seqlen = static_cast<int>(p.shape.seqlen), first = min(token, seqlen - 1), last = seqlen - 1 - first;
  const int64_t h = p.h.offset(b, head, first), dh = p.dh.offset(b, head, first), dv = p.shape.head_dim_v;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  A sums[kGroupTokens] = {};
  with_type(p.h.type, [&]<class T>() {
    const int64_t vectors = whole ? dv * static_cast<int64_t>(sizeof(T)) / 16 : 0;
    const Rows<T> x{static_cast<const T*>(p.h.data) + h, p.h.time, last};
    const Rows<T> y{static_cast<const T*>(p.dh.data) + dh, p.dh.time, last};
    partial_dots(sums, x, y, dv, vectors, lane, lanes);
  });
  const int most = XLSTM_MUTANT("mlstm_normaliser: sum without the other half of the lanes") ? lanes / 4 : lanes / 2;
  A own = 0;
#pragma unroll
  for (int t = 0; t < kGroupTokens; ++t) {
    A sum = sums[t];
    for (int step = most; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == t || XLSTM_MUTANT("mlstm_normaliser: every lane finishes the last token")) own = sum;
  }
  return own;
}

template <class A>
XLSTM_DEVICE void store_factors(const MlstmNormaliserParams<A>& p, int64_t at, A r, A m, A dh_h) {
  const MlstmOptions& o = p.options;
  const A size = r < 0 ? -r : r, floor = denominator_floor(o, m);
  const A eps = static_cast<A>(o.eps), iota = 1 / denominator(o, r, floor);
  const bool live = size > floor || XLSTM_MUTANT("mlstm_normaliser: gradient below the floor");
  const A sign = r > 0 || XLSTM_MUTANT("mlstm_normaliser: sign of r ignored") ? A{-1} : A{1};
  const bool through_eps = !o.sigmoid_gate && eps != 0;
  p.iota[at] = iota;
  p.rho[at] = live ? sign * iota * dh_h : A{0};
  p.kappa[at] = through_eps ? -iota * eps * dh_h : A{0};
}

// How the tokens of a head are dealt out. All divisions have 32 bits: others would cost more than the product.
struct Cut {
  unsigned blocks;  // of a head
  int lanes_log2;   // of a group
  bool whole;       // vectors in every row
};

template <class A>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) normaliser(MlstmNormaliserParams<A> p, Cut cut) {
  const unsigned batch_head = blockIdx.x / cut.blocks, block = blockIdx.x - batch_head * cut.blocks;
  const int seqlen = static_cast<int>(p.shape.seqlen), lanes = 1 << cut.lanes_log2;
  const unsigned group = block * (kThreads >> cut.lanes_log2) + (threadIdx.x >> cut.lanes_log2);
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1), token = static_cast<int>(group * kGroupTokens);
  const bool stores_all = XLSTM_MUTANT("mlstm_normaliser: tokens past the last one are stored");
  const bool finishes = lane < kGroupTokens && (token + lane < seqlen || stores_all);
  const int64_t at = int64_t{batch_head} * seqlen + token + lane;
  A r = 0, m = 0;  // asked for before the rows, not after their sums
  if (finishes) {
    r = load_whole(p.r + at);
    m = load_whole(p.m + at);
  }
  const bool has_grad = p.options.normalize && p.options.norm_grad;
  // Lanes past the last token take part in the shuffles.
  const A dh_h = has_grad ? output_dot(p, batch_head, token, cut.whole, lanes) : A{0};
  if (finishes) store_factors(p, at, r, m, dh_h);
}

// Whether every row starts at a multiple of 16 bytes.
bool rows_aligned(const AnyView& x) {
  const int64_t vector = 16 / bytes_of(x.type);
  const bool strides = x.batch % vector == 0 && x.head % vector == 0 && x.time % vector == 0;
  return strides && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

}  // namespace

template <class A>
cudaError_t mlstm_normaliser(const MlstmNormaliserParams<A>& p, cudaStream_t stream) {
  if (p.h.type != p.dh.type) return cudaErrorInvalidValue;
  const int64_t vectors = (p.shape.head_dim_v * bytes_of(p.h.type) + 15) / 16;
  Cut cut{};
  cut.lanes_log2 = kMinLanesLog2;
  while (cut.lanes_log2 < 5 && int64_t{1} << cut.lanes_log2 < vectors) ++cut.lanes_log2;
  const int64_t heads = p.shape.batch * p.shape.num_heads;
  const int64_t per_block = int64_t{kThreads >> cut.lanes_log2} * kGroupTokens;
  const int64_t of_head = (p.shape.seqlen + per_block - 1) / per_block;
  if (p.shape.seqlen > INT32_MAX - kThreads || heads * of_head > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (heads * of_head == 0) return cudaSuccess;
  cut.blocks = static_cast<unsigned>(of_head);
  Launch l;
  l.grid = dim3(static_cast<unsigned>(heads * of_head));
  l.block = dim3(kThreads);
  l.name = "mlstm normaliser";
  l.stream = stream;
  cut.whole = (rows_aligned(p.h) && rows_aligned(p.dh)) ||
              XLSTM_MUTANT("mlstm_normaliser: whole vectors in rows that are not aligned");
  return launch(l, normaliser<A>, p, cut);
}

template cudaError_t mlstm_normaliser<float>(const MlstmNormaliserParams<float>&, cudaStream_t);
template cudaError_t mlstm_normaliser<double>(const MlstmNormaliserParams<double>&, cudaStream_t);

}  // namespace xlstm::cuda
