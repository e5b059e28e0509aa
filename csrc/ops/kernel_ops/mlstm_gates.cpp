// mlstm_gates, mlstm_chunks: the gate vectors and the chunk slots of the chunkwise mLSTM by themselves, for tests and
// for whoever studies the kernels.
#include "cuda/mlstm_chunkwise/gates.h"
#include "ops/backends/device.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

struct Outputs {
  Tensor y, z, m, start, M, g, final_m;  // pairs have a last dimension of 2

  Outputs(const Tensor& like, const MlstmShape& shape, int64_t slots, ScalarType type) {
    const int64_t B = shape.batch, H = shape.num_heads, S = shape.seqlen;
    y = empty(like, {B, H, S, 2}, type), z = empty(like, {B, H, S, 2}, type);
    m = empty(like, {B, H, S}, type);
    start = empty(like, {B, H, S}, ScalarType::Int);
    M = empty(like, {B, H, slots, 2}, type), g = empty(like, {B, H, slots}, type);
    final_m = empty(like, {shape.num_sequences, H}, type);
  }
};

AnyView gate_view(DeviceSession& session, const Tensor& x) {
  return {session.in(x), type_of(x), x.stride(0), x.stride(1), x.stride(2)};
}

template <class A>
void run(const Tensor& i, const Tensor& f, const OptionalTensor& initial_m, const OptionalTensor& cu_seqlens,
         const OptionalTensor& reset, cuda::MlstmGatesParams<A> p, const Outputs& out) {
  DeviceSession session("mlstm_gates", i);
  p.shape.cu_seqlens = in_as<int32_t>(session, cu_seqlens);
  p.i = gate_view(session, i);
  p.f = gate_view(session, f);
  if (reset) p.reset = {in_as<bool>(session, reset), reset->stride(0), reset->stride(1)};
  p.initial_m = in_as<A>(session, initial_m);
  const auto pairs = [&](const Tensor& x) { return out_as<cuda::Pair<A>>(session, x); };
  p.out = {pairs(out.y),
           pairs(out.z),
           out_as<A>(session, out.m),
           out_as<int32_t>(session, out.start),
           pairs(out.M),
           out_as<A>(session, out.g)};
  p.final_m = out_as<A>(session, out.final_m);
  session.check(cuda::mlstm_gates(p, session.stream()));
  session.finish();
}

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Result mlstm_gates(const Tensor& i, const Tensor& f, OptionalTensor initial_m, OptionalTensor cu_seqlens,
                   OptionalTensor reset, bool sigmoid_gate, int64_t chunk_size, bool in_double) {
  NoGrad guard;
  STD_TORCH_CHECK(i.dim() == 3, "mlstm_gates: i must have 3 dimensions");
  STD_TORCH_CHECK(chunk_size == 64 || chunk_size == 128 || chunk_size == 256,
                  "mlstm_gates: chunk_size must be 64, 128 or 256, got ", chunk_size);
  MlstmShape shape = {i.size(0), i.size(1), i.size(2), 1, 1};
  STD_TORCH_CHECK(!cu_seqlens || (shape.batch == 1 && cu_seqlens->dim() == 1 && cu_seqlens->size(0) >= 1),
                  "mlstm_gates: cu_seqlens must have shape (N + 1,), with batch 1");
  shape.num_sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : shape.batch;
  check_shape("mlstm_gates", "f", f, {shape.batch, shape.num_heads, shape.seqlen});
  check_shape("mlstm_gates", "initial_m", initial_m, {shape.num_sequences, shape.num_heads});
  check_shape("mlstm_gates", "reset", reset, {shape.batch, shape.seqlen});
  check_float("mlstm_gates", "i", i);
  check_float("mlstm_gates", "f", f);

  const ScalarType type = in_double ? ScalarType::Double : ScalarType::Float;
  const int L = static_cast<int>(chunk_size);
  const OptionalTensor cu = as_contiguous(cu_seqlens, ScalarType::Int), m = as_contiguous(initial_m, type);
  MlstmShape counted = shape;
  counted.cu_seqlens = pointer<int32_t>(cu);  // only looked at whether there is one
  const Outputs out(i, shape, cuda::chunk_slots(counted, L), type);
  with_compute_type(type, [&](auto zero) {
    cuda::MlstmGatesParams<decltype(zero)> p;
    p.shape = shape, p.sigmoid_gate = sigmoid_gate, p.chunk_size = L;
    run(i, f, m, cu, as_contiguous(reset, ScalarType::Bool), p, out);
  });
  return {out.y, out.z, out.m, out.start, out.M, out.g, out.final_m};
}

// (B, slots, 5): sequence, begin, end, first, last of every slot. `rows` (B, S) has any contents, on the CPU.
Tensor mlstm_chunks(const Tensor& rows, OptionalTensor cu_seqlens, int64_t chunk_size) {
  const OptionalTensor cu = as_contiguous(cu_seqlens, ScalarType::Int);
  const int L = static_cast<int>(chunk_size);
  const MlstmShape shape = {rows.size(0), 1, rows.size(1), 1, 1, pointer<int32_t>(cu), cu ? cu->size(0) - 1 : 0};
  const int64_t slots = cuda::chunk_slots(shape, L);
  const Tensor table = empty(rows, {shape.batch, slots, 5}, ScalarType::Long);
  int64_t* to = mutable_pointer<int64_t>(table);
  for (int64_t row = 0; row < shape.batch; ++row) {
    for (int64_t slot = 0; slot < slots; ++slot, to += 5) {
      const cuda::Chunk chunk = cuda::find_chunk(shape, L, row, slot);
      to[0] = chunk.sequence, to[1] = chunk.begin, to[2] = chunk.end, to[3] = chunk.first, to[4] = chunk.last;
    }
  }
  return table;
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def("mlstm_chunks(Tensor rows, Tensor? cu_seqlens, int chunk_size) -> Tensor");
  m.def(
      "mlstm_gates(Tensor i, Tensor f, Tensor? initial_m, Tensor? cu_seqlens, Tensor? reset, bool sigmoid_gate, "
      "int chunk_size, bool double) "
      "-> (Tensor y, Tensor z, Tensor m, Tensor start, Tensor M, Tensor g, Tensor final_m)");
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_gates", TORCH_BOX(&mlstm_gates));
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_chunks", TORCH_BOX(&mlstm_chunks));
}

}  // namespace xlstm::ops
