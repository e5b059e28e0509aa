// Normaliser of the chunkwise mLSTM, backward (docs/kernels/mlstm.md): a group of lanes per token multiplies dh with h,
// 16 bytes at a time. A group is as large as a row has vectors, a warp at most.
#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/normaliser.h"
#include "cuda/mlstm_chunkwise/token_scan.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kThreads = 128;
constexpr int kResidentBlocks = 8;  // of a multiprocessor, at least: loads in flight are all that it needs

// This lane's part of the dot product of two rows: `vectors` of 16 bytes, then single elements.
template <class A, class T>
XLSTM_DEVICE A partial_dot(const T* x, const T* y, int64_t columns, int64_t vectors, int lane, int lanes) {
  constexpr int kCount = Vector<T>::kCount;
  A sum = 0;
  for (int64_t n = lane; n < vectors; n += lanes) {
    const Vector<T> a = load_vector(x + n * kCount), b = load_vector(y + n * kCount);
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum += widen<A>(a.x[j]) * widen<A>(b.x[j]);
  }
  if (XLSTM_MUTANT("mlstm_normaliser: columns past the last vector ignored")) return sum;
  for (int64_t c = vectors * kCount + lane; c < columns; c += lanes) {
    sum += widen<A>(x[c]) * widen<A>(y[c]);
  }
  return sum;
}

// dh.h of a token; every lane of the group gets it.
template <class A>
XLSTM_DEVICE A output_dot(const MlstmNormaliserParams<A>& p, unsigned batch_head, int token, bool whole, int lanes) {
  const unsigned heads = static_cast<unsigned>(p.shape.num_heads), b = batch_head / heads,
                 head = batch_head - b * heads;
  const int64_t h = p.h.offset(b, head, token), dh = p.dh.offset(b, head, token), dv = p.shape.head_dim_v;
  A sum = 0;
  with_type(p.h.type, [&]<class T>() {
    const int64_t vectors = whole ? dv * static_cast<int64_t>(sizeof(T)) / 16 : 0;
    const int lane = static_cast<int>(threadIdx.x) % lanes;
    sum = partial_dot<A>(static_cast<const T*>(p.h.data) + h, static_cast<const T*>(p.dh.data) + dh, dv, vectors, lane,
                         lanes);
  });
  const int most = XLSTM_MUTANT("mlstm_normaliser: sum without the other half of the lanes") ? lanes / 4 : lanes / 2;
  for (int step = most; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

template <class A>
XLSTM_DEVICE void store_factors(const MlstmNormaliserParams<A>& p, int64_t at, A dh_h) {
  const MlstmOptions& o = p.options;
  const A r = p.r[at], size = r < 0 ? -r : r, floor = denominator_floor(o, p.m[at]);
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
  int lanes_log2;   // of a token
  bool whole;       // vectors in every row
};

template <class A>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) normaliser(MlstmNormaliserParams<A> p, Cut cut) {
  const unsigned batch_head = blockIdx.x / cut.blocks, block = blockIdx.x - batch_head * cut.blocks;
  const int seqlen = static_cast<int>(p.shape.seqlen), lanes = 1 << cut.lanes_log2;
  const int token = static_cast<int>(block * (kThreads >> cut.lanes_log2) + (threadIdx.x >> cut.lanes_log2));
  const bool has_grad = p.options.normalize && p.options.norm_grad;
  // Lanes past the last token take part in the shuffles with that token's sum.
  const A dh_h = has_grad ? output_dot(p, batch_head, min(token, seqlen - 1), cut.whole, lanes) : A{0};
  const bool first = (threadIdx.x & (lanes - 1)) == 0;
  const bool inside = token < seqlen || XLSTM_MUTANT("mlstm_normaliser: tokens past the last one are stored");
  if (first && inside) store_factors(p, int64_t{batch_head} * seqlen + token, dh_h);
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
  while (cut.lanes_log2 < 5 && int64_t{1} << cut.lanes_log2 < vectors) ++cut.lanes_log2;
  const int64_t heads = p.shape.batch * p.shape.num_heads, per_block = kThreads >> cut.lanes_log2;
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
