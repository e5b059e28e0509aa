#include "cuda/mlstm_chunkwise/chunkwise.h"

#include "cuda/mlstm_chunkwise/gate_grads.h"
#include "cuda/mlstm_chunkwise/gates.h"
#include "cuda/mlstm_chunkwise/normaliser.h"
#include "cuda/mlstm_chunkwise/outputs.h"
#include "cuda/mlstm_chunkwise/states.h"

namespace xlstm::cuda {
namespace {

constexpr int kChunkSizes[] = {64, 128, 256};

// The largest that is no longer than chunk_size (0: any), and no longer than the sequences need.
int choose_chunk_size(const MlstmShape& shape, int64_t chunk_size) {
  int best = kChunkSizes[0];
  for (int size : kChunkSizes) {
    const bool needed = size / 2 < shape.seqlen;
    if (needed && (chunk_size == 0 || size <= chunk_size)) best = size;
  }
  return best;
}

// One pass, forward or backward: sizes, and what more than one kernel needs.
template <class A>
struct Pass {
  const MlstmForwardArguments<A>& in;
  const Allocator& memory;
  cudaStream_t stream;
  int chunk_size;
  int64_t heads, tokens, slots;  // heads: (batch, head) pairs; slots: of all heads
  GateVectors<A> gates{};
  void* states = nullptr;    // C entering each chunk
  A* normalisers = nullptr;  // n entering each chunk

  Pass(const MlstmForwardArguments<A>& in_, const Allocator& memory_, cudaStream_t stream_)
      : in(in_),
        memory(memory_),
        stream(stream_),
        chunk_size(choose_chunk_size(in_.shape, in_.options.chunk_size)),
        heads(in_.shape.batch * in_.shape.num_heads),
        tokens(heads * in_.shape.seqlen),
        slots(heads * chunk_slots(in_.shape, chunk_size)) {}

  void* new_states() const {
    return memory.allocate(memory.context, static_cast<size_t>(slots * in.shape.head_dim_qk * in.shape.head_dim_v) *
                                               bytes_of(element_type(in.product)));
  }
  A* new_normalisers() const { return memory.template get<A>(slots * in.shape.head_dim_qk); }
  A* new_tokens() const { return memory.template get<A>(tokens); }

  cudaError_t compute_gates(A* m_final) {
    gates.y = memory.template get<Pair<A>>(tokens);
    gates.z = memory.template get<Pair<A>>(tokens);
    gates.m = new_tokens();
    gates.start = memory.template get<int32_t>(tokens);
    gates.M = memory.template get<Pair<A>>(slots);
    gates.g_bar = memory.template get<A>(slots);
    MlstmGatesArguments<A> a;
    a.shape = in.shape;
    a.sigmoid_gate = in.options.sigmoid_gate;
    a.chunk_size = chunk_size;
    a.i = in.i;
    a.f = in.f;
    a.reset = in.reset;
    a.m0 = in.initial.m;
    a.out = gates;
    a.m_final = m_final;
    return mlstm_gates(a, stream);
  }

  MlstmStatesArguments<A> states_arguments(bool backward) const {
    MlstmStatesArguments<A> a{};
    a.shape = in.shape;
    a.scale = in.options.scale;
    a.product = in.product;
    a.chunk_size = chunk_size;
    a.backward = backward;
    a.gates = gates;
    return a;
  }

  cudaError_t compute_states(A* C_final, A* n_final) {
    states = new_states();
    normalisers = new_normalisers();
    MlstmStatesArguments<A> a = states_arguments(false);
    a.rows = in.k;
    a.columns = in.v;
    a.start = in.initial;
    a.end.C = C_final;
    a.end.n = n_final;
    a.states = states;
    a.normalisers = normalisers;
    return mlstm_states(a, stream);
  }

  MlstmOutputsArguments<A> outputs_arguments(OutputKind output) const {
    MlstmOutputsArguments<A> a{};
    a.shape = in.shape;
    a.options = in.options;
    a.product = in.product;
    a.output = output;
    a.chunk_size = chunk_size;
    a.gates = gates;
    a.states = states;
    a.normalisers = normalisers;
    a.outer_state_is_zero = in.initial.C == nullptr;
    return a;
  }
};

#define XLSTM_RETURN_ERROR(call)            \
  do {                                      \
    const cudaError_t error = call;         \
    if (error != cudaSuccess) return error; \
  } while (false)

}  // namespace

template <class A>
cudaError_t mlstm_forward(const MlstmForwardArguments<A>& in, const Allocator& memory, cudaStream_t stream) {
  Pass<A> pass(in, memory, stream);
  XLSTM_RETURN_ERROR(pass.compute_gates(in.final.m));
  XLSTM_RETURN_ERROR(pass.compute_states(in.final.C, in.final.n));
  MlstmOutputsArguments<A> h = pass.outputs_arguments(OutputKind::h);
  h.X = in.q, h.Y = in.k, h.Z = in.v;
  h.out = in.h;
  h.r = in.r;
  return mlstm_outputs(h, stream);
}

template <class A>
cudaError_t mlstm_backward(const MlstmBackwardArguments<A>& arguments, const Allocator& memory, cudaStream_t stream) {
  const MlstmForwardArguments<A>& in = arguments.forward;
  const int64_t sequences = in.shape.num_sequences * in.shape.num_heads;
  const int64_t dqk = in.shape.head_dim_qk, dv = in.shape.head_dim_v;
  Pass<A> pass(in, memory, stream);

  // Again what the forward pass had: cheaper to compute than to keep.
  const MlstmState<A> final = {memory.get<A>(sequences * dqk * dv), memory.get<A>(sequences * dqk),
                               memory.get<A>(sequences)};
  XLSTM_RETURN_ERROR(pass.compute_gates(final.m));
  XLSTM_RETURN_ERROR(pass.compute_states(final.C, final.n));

  A *iota = pass.new_tokens(), *rho = pass.new_tokens(), *kappa = pass.new_tokens();
  const MlstmNormaliserArguments<A> normaliser = {in.shape,     in.options, in.h, arguments.dh, in.r,
                                                  pass.gates.m, iota,       rho,  kappa};
  XLSTM_RETURN_ERROR(mlstm_normaliser(normaliser, stream));

  const int64_t dot_tiles = mlstm_states_tiles(in.product, in.shape);
  MlstmStatesArguments<A> dC = pass.states_arguments(true);
  dC.rows = in.q;
  dC.columns = arguments.dh;
  dC.iota = iota, dC.rho = rho;
  dC.start = arguments.final_grad;
  dC.end = arguments.initial_grad;
  dC.states = pass.new_states();
  dC.normalisers = pass.new_normalisers();
  dC.forward_states = pass.states, dC.forward_normalisers = pass.normalisers;
  dC.initial = in.initial;
  dC.final = {final.C, final.n, final.m};
  dC.chunk_dots = memory.get<A>(pass.slots * dot_tiles);
  dC.start_dots = memory.get<A>(sequences * dot_tiles);
  XLSTM_RETURN_ERROR(mlstm_states(dC, stream));

  const int64_t row_tiles = mlstm_outputs_column_tiles(in.product, dqk);
  MlstmOutputsArguments<A> dq = pass.outputs_arguments(OutputKind::dq);
  dq.X = arguments.dh, dq.Y = in.v, dq.Z = in.k;
  dq.out = arguments.dq;
  dq.iota = iota, dq.rho = rho;
  dq.factor = in.q;
  dq.row_sums = memory.get<A>(pass.tokens * row_tiles);
  XLSTM_RETURN_ERROR(mlstm_outputs(dq, stream));

  MlstmOutputsArguments<A> dk = pass.outputs_arguments(OutputKind::dk);
  dk.X = in.v, dk.Y = arguments.dh, dk.Z = in.q;
  dk.out = arguments.dk;
  dk.iota = iota, dk.rho = rho;
  dk.factor = in.k;
  dk.row_sums = memory.get<A>(pass.tokens * row_tiles);
  dk.states = dC.states, dk.normalisers = dC.normalisers;
  dk.outer_state_is_zero = arguments.final_grad.C == nullptr && arguments.final_grad.n == nullptr;
  XLSTM_RETURN_ERROR(mlstm_outputs(dk, stream));

  MlstmOutputsArguments<A> dv_ = pass.outputs_arguments(OutputKind::dv);
  dv_.X = in.k, dv_.Y = in.q, dv_.Z = arguments.dh;
  dv_.out = arguments.dv;
  dv_.iota = iota, dv_.rho = rho;
  dv_.states = dC.states, dv_.normalisers = dC.normalisers;
  dv_.outer_state_is_zero = arguments.final_grad.C == nullptr;
  XLSTM_RETURN_ERROR(mlstm_outputs(dv_, stream));

  MlstmGateGradsArguments<A> gates;
  gates.shape = in.shape;
  gates.sigmoid_gate = in.options.sigmoid_gate;
  gates.chunk_size = pass.chunk_size;
  gates.i = in.i, gates.f = in.f;
  gates.reset = in.reset;
  gates.gates = pass.gates;
  gates.q_dq = dq.row_sums, gates.k_dk = dk.row_sums;
  gates.row_tiles = row_tiles;
  gates.kappa = kappa;
  gates.chunk_dots = dC.chunk_dots, gates.start_dots = dC.start_dots;
  gates.dot_tiles = dot_tiles;
  gates.dm = arguments.final_grad.m;
  gates.di = arguments.di, gates.df = arguments.df;
  gates.dm0 = arguments.initial_grad.m;
  return mlstm_gate_grads(gates, stream);
}

template cudaError_t mlstm_forward<float>(const MlstmForwardArguments<float>&, const Allocator&, cudaStream_t);
template cudaError_t mlstm_forward<double>(const MlstmForwardArguments<double>&, const Allocator&, cudaStream_t);
template cudaError_t mlstm_backward<float>(const MlstmBackwardArguments<float>&, const Allocator&, cudaStream_t);
template cudaError_t mlstm_backward<double>(const MlstmBackwardArguments<double>&, const Allocator&, cudaStream_t);

}  // namespace xlstm::cuda
