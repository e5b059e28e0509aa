#pragma once
// What the chunkwise mLSTM gives per token: h, dq, dk or dv, all chunks and tiles of tokens at once, from the states at
// the borders of the chunks. With X, Y (tokens x a) and Z (tokens x b), row by row
//   out = weight (X state) + P Z,   P = weights of pairs of tokens applied to X Y^T
//
//        X   Y   Z   a    b    state              rows
//   h    q   k   v   Dqk  Dv   C entering         queries t: P_ts for s <= t
//   dq   dh  v   k   Dv   Dqk  C entering, transp.     "
//   dk   v   dh  q   Dv   Dqk  dC leaving, transp.  keys s: P_st for t >= s
//   dv   k   q   dh  Dqk  Dv   dC leaving              "
#include "cuda/mlstm_chunkwise/gates.h"
#include "cuda/mlstm_chunkwise/product.h"

namespace xlstm::cuda {

enum class OutputKind { h, dq, dk, dv };

// A: float, or double for Product::f64.
template <class A>
struct MlstmOutputsParams {
  MlstmShape shape;
  MlstmOptions options;  // norm_grad and chunk_size are not looked at
  Product product = Product::f64;
  OutputKind output = OutputKind::h;
  TensorCores by = TensorCores::mma;
  int chunk_size = 64;  // 64, 128 or 256
  AnyView X, Y, Z;
  AnyView out;                     // written, (B, H, S, b)
  GateVectors<A> gates;            // of mlstm_gates
  const void* states = nullptr;    // (B, H, slots, Dqk, Dv) of element_type(product): C entering or dC leaving
  const A* normalisers = nullptr;  // (B, H, slots, Dqk): n entering or dn leaving; dv does not look at it
  // The state of every sequence's first chunk (h, dq) or last chunk (dk, dv) is zero, and is not read.
  bool outer_state_is_zero = false;
  const A *iota = nullptr, *rho = nullptr;  // (B, H, S): dq, dk, dv
  A* r = nullptr;                           // h: (B, H, S), written
  AnyView factor;                           // dq: q, dk: k
  A* row_sums = nullptr;                    // (B, H, column tiles, S), written: sums of factor * out, or null
};

// Whether the kernel of wgmma takes heads of these dimensions. room: bytes of shared memory that a block may have.
bool outputs_wgmma_takes(OutputKind output, const MlstmShape& shape, size_t room);

// Of row_sums. columns: b.
int64_t mlstm_outputs_column_tiles(Product product, int64_t columns);

template <class A>
cudaError_t mlstm_outputs(const MlstmOutputsParams<A>& params, cudaStream_t stream);

}  // namespace xlstm::cuda
