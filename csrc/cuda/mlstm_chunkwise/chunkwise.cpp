#include "cuda/mlstm_chunkwise/chunkwise.h"

#include <mutex>
#include <utility>

#include "cuda/mlstm_chunkwise/current_device.h"
#include "cuda/mlstm_chunkwise/gate_grads.h"
#include "cuda/mlstm_chunkwise/gates.h"
#include "cuda/mlstm_chunkwise/normaliser.h"
#include "cuda/mlstm_chunkwise/outputs.h"
#include "cuda/mlstm_chunkwise/product.h"
#include "cuda/mlstm_chunkwise/states.h"
#include "cuda/mlstm_chunkwise/tma_strides.h"
#include "cuda/mlstm_chunkwise/walk.h"

namespace xlstm::cuda {
namespace {

// A request of one thread holds for all: backward passes run on threads of their own.
std::mutex mutex;
MlstmRequest requested;

MlstmRequest current_request() {
  const std::lock_guard lock(mutex);
  return requested;
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
        chunk_size(mlstm_chunk_size(in_.shape, in_.options.chunk_size)),
        heads(in_.shape.batch * in_.shape.num_heads),
        tokens(heads * in_.shape.seqlen),
        slots(heads * chunk_slots(in_.shape, chunk_size)) {}

  // h: of the forward pass; dh: of the backward pass. The other one is not there, and keeps no kernel from what was
  // asked for.
  std::optional<MlstmPlan> plan(const AnyView& h, const AnyView& dh) const {
    const auto reads = [this](const AnyView& x) { return !x.data || tma_reads(x, in.shape); };
    const MlstmCall call = {
        in.shape, product, in.options.chunk_size, {reads(in.q), reads(in.k), reads(in.v), reads(h), reads(dh)}};
    return mlstm_plan(call, mlstm_device(), current_request());
  }

  void* new_states(const Allocator& from) const {
    return from.allocate(from.context, static_cast<size_t>(slots * in.shape.head_dim_qk * in.shape.head_dim_v) *
                                           bytes_of(element_type(product)));
  }
  A* new_normalisers(const Allocator& from) const { return from.template get<A>(slots * in.shape.head_dim_qk); }
  A* new_tokens() const { return memory.template get<A>(tokens); }

  // Gate vectors, then states: what the backward pass needs too.
  void take_gates(const Allocator& from) {
    gates.y = from.template get<Pair<A>>(tokens);
    gates.z = from.template get<Pair<A>>(tokens);
    gates.m = from.template get<A>(tokens);
    gates.start = from.template get<int32_t>(tokens);
    gates.M = from.template get<Pair<A>>(slots);
    gates.g_bar = from.template get<A>(slots);
  }
  void take_states(const Allocator& from) {
    states = new_states(from);
    normalisers = new_normalisers(from);
  }
  void take_memory(const Allocator& from) {
    take_gates(from);
    take_states(from);
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

  MlstmStatesParams<A> states_params(bool backward, const AnyView& rows, const AnyView& columns,
                                     const StatesPlan& plan) const {
    MlstmStatesParams<A> a{};
    a.shape = in.shape;
    a.scale = in.options.scale;
    a.product = product;
    a.by = plan.by;
    a.chunk_size = chunk_size;
    a.backward = backward;
    a.rows = rows, a.columns = columns;
    a.gates = gates;
    cut_into_segments(a, plan.segments, [this](int64_t count) { return memory.template get<A>(count); });
    return a;
  }

  cudaError_t compute_states(const MlstmState<A>& final_state, const StatesPlan& plan) const {
    MlstmStatesParams<A> a = states_params(false, in.k, in.v, plan);
    set_ends(a, final_state);
    return mlstm_states(a, stream);
  }

  // Of a forward walk, and where it stores states.
  void set_ends(MlstmStatesParams<A>& a, const MlstmState<A>& final_state) const {
    a.start = in.initial_state;
    a.end = final_state;
    a.states = states;
    a.normalisers = normalisers;
  }

  // h and states in one walk.
  cudaError_t walk(TensorCores by, int segments) const
    requires(sizeof(A) == sizeof(float))
  {
    MlstmWalkParams a;
    a.states = states_params(false, in.k, in.v, {by, segments});
    set_ends(a.states, in.final_state);
    a.options = in.options;
    a.q = in.q, a.h = in.h;
    a.r = in.r;
    return mlstm_walk(a, stream);
  }

  MlstmOutputsParams<A> outputs_params(OutputKind output, TensorCores by) const {
    MlstmOutputsParams<A> a{};
    a.shape = in.shape;
    a.options = in.options;
    a.product = product;
    a.output = output;
    a.by = by;
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

MlstmRequest request_mlstm(const MlstmRequest& request) {
  const std::lock_guard lock(mutex);
  return std::exchange(requested, request);
}

template <class A>
size_t kept_bytes(const MlstmForwardParams<void, A>& in) {
  Pieces count(nullptr);
  Pass<A>(in, count.allocator(), nullptr).take_memory(count.allocator());
  return count.bytes();
}

template <class A>
cudaError_t run(const MlstmForwardParams<void, A>& in, const Allocator& memory, cudaStream_t stream) {
  Pass<A> pass(in, memory, stream);
  const std::optional<MlstmPlan> plan = pass.plan(in.h, {});
  if (!plan) return cudaErrorInvalidValue;
  Pieces kept(in.kept);
  const Allocator from = in.kept ? kept.allocator() : memory;
  pass.take_gates(from);
  if (in.kept || !plan->walk) pass.take_states(from);
  XLSTM_RETURN_ERROR(pass.compute_gates(in.final_state.m));
  if constexpr (sizeof(A) == sizeof(float)) {
    if (plan->walk) return pass.walk(plan->states.by, *plan->walk);
  }
  XLSTM_RETURN_ERROR(pass.compute_states(in.final_state, plan->states));
  MlstmOutputsParams<A> h = pass.outputs_params(OutputKind::h, plan->h);
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
  const std::optional<MlstmPlan> plan = pass.plan({}, p.dh);
  if (!plan) return cudaErrorInvalidValue;

  MlstmState<const A> final_state = p.final_state;
  if (p.kept) {
    pass.find(p.kept);
  } else {
    const MlstmState<A> again = {memory.get<A>(sequences * dqk * dv), memory.get<A>(sequences * dqk),
                                 memory.get<A>(sequences)};
    pass.take_memory(memory);
    XLSTM_RETURN_ERROR(pass.compute_gates(again.m));
    XLSTM_RETURN_ERROR(pass.compute_states(again, plan->states));
    final_state = {again.C, again.n, again.m};
  }

  A *iota = pass.new_tokens(), *rho = pass.new_tokens(), *kappa = pass.new_tokens();
  const MlstmNormaliserParams<A> normaliser = {in.shape, in.options, p.h, p.dh, p.r, pass.gates.m, iota, rho, kappa};
  XLSTM_RETURN_ERROR(mlstm_normaliser(normaliser, stream));

  MlstmStatesParams<A> dC = pass.states_params(true, in.q, p.dh, plan->state_grads);
  const int64_t dot_tiles = states_cost(pass.product, plan->state_grads.by, in.shape).tiles;
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
  MlstmOutputsParams<A> dq = pass.outputs_params(OutputKind::dq, plan->dq);
  dq.X = p.dh, dq.Y = in.v, dq.Z = in.k;
  dq.out = p.dq;
  dq.iota = iota, dq.rho = rho;
  dq.factor = in.q;
  dq.row_sums = memory.get<A>(pass.tokens * row_tiles);
  XLSTM_RETURN_ERROR(mlstm_outputs(dq, stream));

  MlstmOutputsParams<A> dk = pass.outputs_params(OutputKind::dk, plan->dk);
  dk.X = in.v, dk.Y = p.dh, dk.Z = in.q;
  dk.out = p.dk;
  dk.iota = iota, dk.rho = rho;
  dk.factor = in.k;
  dk.row_sums = memory.get<A>(pass.tokens * row_tiles);
  dk.states = dC.states, dk.normalisers = dC.normalisers;
  dk.outer_state_is_zero = p.final_state_grad.C == nullptr && p.final_state_grad.n == nullptr;
  XLSTM_RETURN_ERROR(mlstm_outputs(dk, stream));

  MlstmOutputsParams<A> dv_ = pass.outputs_params(OutputKind::dv, plan->dv);
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
