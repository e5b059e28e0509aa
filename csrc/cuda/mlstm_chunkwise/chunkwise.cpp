#include "cuda/mlstm_chunkwise/chunkwise.h"

#include "cuda/mlstm_chunkwise/gate_grads.h"
#include "cuda/mlstm_chunkwise/gates.h"
#include "cuda/mlstm_chunkwise/normaliser.h"
#include "cuda/mlstm_chunkwise/outputs.h"
#include "cuda/mlstm_chunkwise/product.h"
#include "cuda/mlstm_chunkwise/states.h"

namespace xlstm::cuda {
namespace {

constexpr int kChunkSizes[] = {64, 128, 256};

// Longer chunks have more pairs of tokens, shorter ones more states (docs/kernels/mlstm.md).
constexpr int64_t kBestChunkSize = 128;

// The largest that is no longer than what was asked for (0: nothing), and no longer than the sequences need.
int choose_chunk_size(const MlstmShape& shape, int64_t asked) {
  if (asked == 0) asked = kBestChunkSize;
  int best = kChunkSizes[0];
  for (int size : kChunkSizes) {
    const bool needed = size / 2 < shape.seqlen;
    if (needed && size <= asked) best = size;
  }
  return best;
}

// Hands out one piece of memory after the other, in an order that the forward and the backward pass share. Without
// memory it counts.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}

  Allocator allocator() {
    return {[](void* pieces, size_t bytes) { return static_cast<Pieces*>(pieces)->next(bytes); }, this};
  }
  size_t bytes() const { return used_; }

 private:
  void* next(size_t bytes) {
    constexpr size_t kAlignment = 256;  // as of every allocation: whole sectors, and what TMA asks for
    void* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }

  char* memory_;
  size_t used_ = 0;
};

// One pass, forward or backward: sizes, and what more than one kernel needs.
template <class A>
struct Pass {
  const MlstmForwardParams<void, A>& in;
  const Allocator& memory;
  cudaStream_t stream;
  Product product;
  int chunk_size;
  int64_t heads, tokens, slots;  // heads: (batch, head) pairs; slots: of all heads
  GateVectors<A> gates{};
  void* states = nullptr;    // C entering each chunk
  A* normalisers = nullptr;  // n entering each chunk

  Pass(const MlstmForwardParams<void, A>& in_, const Allocator& memory_, cudaStream_t stream_)
      : in(in_),
        memory(memory_),
        stream(stream_),
        product(product_of(in_.q.type, in_.options.allow_tf32)),
        chunk_size(choose_chunk_size(in_.shape, in_.options.chunk_size)),
        heads(in_.shape.batch * in_.shape.num_heads),
        tokens(heads * in_.shape.seqlen),
        slots(heads * chunk_slots(in_.shape, chunk_size)) {}

  void* new_states(const Allocator& from) const {
    return from.allocate(from.context, static_cast<size_t>(slots * in.shape.head_dim_qk * in.shape.head_dim_v) *
                                           bytes_of(element_type(product)));
  }
  A* new_normalisers(const Allocator& from) const { return from.template get<A>(slots * in.shape.head_dim_qk); }
  A* new_tokens() const { return memory.template get<A>(tokens); }

  // Of gate vectors and states: what the backward pass needs too.
  void take_memory(const Allocator& from) {
    gates.y = from.template get<Pair<A>>(tokens);
    gates.z = from.template get<Pair<A>>(tokens);
    gates.m = from.template get<A>(tokens);
    gates.start = from.template get<int32_t>(tokens);
    gates.M = from.template get<Pair<A>>(slots);
    gates.g_bar = from.template get<A>(slots);
    states = new_states(from);
    normalisers = new_normalisers(from);
  }

  // Computes them, in memory that is kept where there is some. The final state is written.
  cudaError_t compute(const MlstmState<A>& final_state) {
    Pieces kept(in.kept);
    take_memory(in.kept ? kept.allocator() : memory);
    const cudaError_t error = compute_gates(final_state.m);
    return error == cudaSuccess ? compute_states(final_state.C, final_state.n) : error;
  }

  // Finds what the forward pass kept. It is not written again.
  void find(const void* kept) {
    Pieces pieces(const_cast<void*>(kept));
    take_memory(pieces.allocator());
  }

  cudaError_t compute_gates(A* final_m) const {
    MlstmGatesParams<A> a;
    a.shape = in.shape;
    a.sigmoid_gate = in.options.sigmoid_gate;
    a.chunk_size = chunk_size;
    a.i = in.i;
    a.f = in.f;
    a.reset = in.reset;
    a.initial_m = in.initial_state.m;
    a.out = gates;
    a.final_m = final_m;
    return mlstm_gates(a, stream);
  }

  MlstmStatesParams<A> states_params(bool backward) const {
    MlstmStatesParams<A> a{};
    a.shape = in.shape;
    a.scale = in.options.scale;
    a.product = product;
    a.chunk_size = chunk_size;
    a.backward = backward;
    a.gates = gates;
    cut_into_segments(a, mlstm_states_segments(product, a.shape, chunk_size),
                      [this](int64_t count) { return memory.template get<A>(count); });
    return a;
  }

  cudaError_t compute_states(A* C_final, A* n_final) const {
    MlstmStatesParams<A> a = states_params(false);
    a.rows = in.k;
    a.columns = in.v;
    a.start = in.initial_state;
    a.end.C = C_final;
    a.end.n = n_final;
    a.states = states;
    a.normalisers = normalisers;
    return mlstm_states(a, stream);
  }

  MlstmOutputsParams<A> outputs_params(OutputKind output) const {
    MlstmOutputsParams<A> a{};
    a.shape = in.shape;
    a.options = in.options;
    a.product = product;
    a.output = output;
    a.chunk_size = chunk_size;
    a.gates = gates;
    a.states = states;
    a.normalisers = normalisers;
    a.outer_state_is_zero = in.initial_state.C == nullptr;
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
size_t kept_bytes(const MlstmForwardParams<void, A>& in) {
  Pieces count(nullptr);
  Pass<A>(in, count.allocator(), nullptr).take_memory(count.allocator());
  return count.bytes();
}

template <class A>
cudaError_t run(const MlstmForwardParams<void, A>& in, const Allocator& memory, cudaStream_t stream) {
  Pass<A> pass(in, memory, stream);
  XLSTM_RETURN_ERROR(pass.compute(in.final_state));
  MlstmOutputsParams<A> h = pass.outputs_params(OutputKind::h);
  h.X = in.q, h.Y = in.k, h.Z = in.v;
  h.out = in.h;
  h.r = in.r;
  return mlstm_outputs(h, stream);
}

template <class A>
cudaError_t run(const MlstmBackwardParams<void, A>& p, const Allocator& memory, cudaStream_t stream) {
  const MlstmForwardParams<void, A>& in = p.forward;
  const int64_t sequences = in.shape.num_sequences * in.shape.num_heads;
  const int64_t dqk = in.shape.head_dim_qk, dv = in.shape.head_dim_v;
  Pass<A> pass(in, memory, stream);

  MlstmState<const A> final_state = p.final_state;
  if (p.kept) {
    pass.find(p.kept);
  } else {
    const MlstmState<A> again = {memory.get<A>(sequences * dqk * dv), memory.get<A>(sequences * dqk),
                                 memory.get<A>(sequences)};
    XLSTM_RETURN_ERROR(pass.compute(again));
    final_state = {again.C, again.n, again.m};
  }

  A *iota = pass.new_tokens(), *rho = pass.new_tokens(), *kappa = pass.new_tokens();
  const MlstmNormaliserParams<A> normaliser = {in.shape, in.options, p.h, p.dh, p.r, pass.gates.m, iota, rho, kappa};
  XLSTM_RETURN_ERROR(mlstm_normaliser(normaliser, stream));

  const int64_t dot_tiles = mlstm_states_tiles(pass.product, in.shape);
  MlstmStatesParams<A> dC = pass.states_params(true);
  dC.rows = in.q;
  dC.columns = p.dh;
  dC.iota = iota, dC.rho = rho;
  dC.start = p.final_state_grad;
  dC.end = p.initial_state_grad;
  dC.states = pass.new_states(memory);
  dC.normalisers = pass.new_normalisers(memory);
  dC.forward_states = pass.states, dC.forward_normalisers = pass.normalisers;
  dC.initial_state = in.initial_state;
  dC.final_state = final_state;
  dC.chunk_dots = memory.get<A>(pass.slots * dot_tiles);
  dC.start_dots = memory.get<A>(sequences * dot_tiles);
  XLSTM_RETURN_ERROR(mlstm_states(dC, stream));

  const int64_t row_tiles = mlstm_outputs_column_tiles(pass.product, dqk);
  MlstmOutputsParams<A> dq = pass.outputs_params(OutputKind::dq);
  dq.X = p.dh, dq.Y = in.v, dq.Z = in.k;
  dq.out = p.dq;
  dq.iota = iota, dq.rho = rho;
  dq.factor = in.q;
  dq.row_sums = memory.get<A>(pass.tokens * row_tiles);
  XLSTM_RETURN_ERROR(mlstm_outputs(dq, stream));

  MlstmOutputsParams<A> dk = pass.outputs_params(OutputKind::dk);
  dk.X = in.v, dk.Y = p.dh, dk.Z = in.q;
  dk.out = p.dk;
  dk.iota = iota, dk.rho = rho;
  dk.factor = in.k;
  dk.row_sums = memory.get<A>(pass.tokens * row_tiles);
  dk.states = dC.states, dk.normalisers = dC.normalisers;
  dk.outer_state_is_zero = p.final_state_grad.C == nullptr && p.final_state_grad.n == nullptr;
  XLSTM_RETURN_ERROR(mlstm_outputs(dk, stream));

  MlstmOutputsParams<A> dv_ = pass.outputs_params(OutputKind::dv);
  dv_.X = in.k, dv_.Y = in.q, dv_.Z = p.dh;
  dv_.out = p.dv;
  dv_.iota = iota, dv_.rho = rho;
  dv_.states = dC.states, dv_.normalisers = dC.normalisers;
  dv_.outer_state_is_zero = p.final_state_grad.C == nullptr;
  XLSTM_RETURN_ERROR(mlstm_outputs(dv_, stream));

  MlstmGateGradsParams<A> gates;
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
  gates.dm = p.final_state_grad.m;
  gates.di = p.di, gates.df = p.df;
  gates.d_initial_m = p.initial_state_grad.m;
  return mlstm_gate_grads(gates, stream);
}

template size_t kept_bytes(const MlstmForwardParams<void, float>&);
template size_t kept_bytes(const MlstmForwardParams<void, double>&);
template cudaError_t run(const MlstmForwardParams<void, float>&, const Allocator&, cudaStream_t);
template cudaError_t run(const MlstmForwardParams<void, double>&, const Allocator&, cudaStream_t);
template cudaError_t run(const MlstmBackwardParams<void, float>&, const Allocator&, cudaStream_t);
template cudaError_t run(const MlstmBackwardParams<void, double>&, const Allocator&, cudaStream_t);

}  // namespace xlstm::cuda
