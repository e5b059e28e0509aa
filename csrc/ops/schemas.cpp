// The schemas of torch.ops.xlstm_cuda. Shapes and meanings: xlstm_cuda/functional.py and csrc/core. No op on tensors
// takes a string: the stable ABI never frees the copy that it makes of one. What has a name has a number in
// xlstm_cuda/_ops.py.
#include "ops/library.h"

XLSTM_LIBRARY(m) {
  m.def(
      "mlstm_fwd(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor? C0, Tensor? n0, Tensor? m0, "
      "Tensor? cu_seqlens, Tensor? reset, bool sigmoid_gate, bool normalize, float scale, float eps, int chunk_size, "
      "bool allow_tf32) -> (Tensor h, Tensor C, Tensor n, Tensor m, Tensor r)");
  m.def(
      "mlstm_bwd(Tensor dh, Tensor? dC, Tensor? dn, Tensor? dm, Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, "
      "Tensor? C0, Tensor? n0, Tensor? m0, Tensor? cu_seqlens, Tensor? reset, Tensor h, Tensor r, bool sigmoid_gate, "
      "bool normalize, float scale, float eps, int chunk_size, bool allow_tf32, bool norm_grad) "
      "-> (Tensor dq, Tensor dk, Tensor dv, Tensor di, Tensor df, Tensor dC0, Tensor dn0, Tensor dm0)");
  m.def(
      "mlstm_step(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor C, Tensor n, Tensor m, bool sigmoid_gate, "
      "bool normalize, float scale, float eps) -> (Tensor h, Tensor C1, Tensor n1, Tensor m1)");
  m.def(
      "mlstm_step_(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor(a!) C, Tensor(b!) n, Tensor(c!) m, "
      "Tensor? slots, bool sigmoid_gate, bool normalize, float scale, float eps) -> Tensor");
  m.def(
      "recurrent_fwd(Tensor x, Tensor R, Tensor? b, Tensor? h0, Tensor? c0, Tensor? n0, Tensor? m0, Tensor? lengths, "
      "Tensor? reset, int cell, int reversed_heads, bool allow_tf32, bool save) -> (Tensor h, Tensor hT, Tensor cT, "
      "Tensor nT, Tensor mT, "
      "Tensor saved)");
  m.def(
      "recurrent_bwd(Tensor dh, Tensor? dhT, Tensor? dcT, Tensor? dnT, Tensor? dmT, Tensor R, Tensor h, Tensor? h0, "
      "Tensor? c0, Tensor? n0, Tensor? m0, Tensor cT, Tensor nT, Tensor saved, Tensor? lengths, Tensor? reset, "
      "int cell, int reversed_heads, bool allow_tf32) -> (Tensor dx, Tensor dR, Tensor db, Tensor dh0, Tensor dc0, "
      "Tensor dn0, Tensor "
      "dm0)");
  m.def(
      "recurrent_step(Tensor x, Tensor R, Tensor? b, Tensor h, Tensor c, Tensor? n, Tensor? m, int cell) "
      "-> (Tensor h1, Tensor c1, Tensor n1, Tensor m1)");
}
