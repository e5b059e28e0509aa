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
#include "cuda/mlstm_chunkwise/walk_grads.h"

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

  // What belongs to one pass is not there in the other one, and keeps no kernel from what was asked for.
  std::optional<MlstmPlan> plan(const AnyView& h, const AnyView& dh, const AnyView& dq, const AnyView& dk,
                                const AnyView& dv) const {
    const auto reads = [this](const AnyView& x) { return !x.data || tma_reads(x, in.shape); };
    const MlstmCall call = {
        in.shape,
        product,
        in.options.chunk_size,
        {reads(in.q), reads(in.k), reads(in.v), reads(h), reads(dh), reads(dq), reads(dk), reads(dv)}};
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

// The backward pass, on what the forward pass kept, or what is computed again.
template <class A>
struct BackwardPass : Pass<A> {
  using Pass<A>::in, Pass<A>::memory, Pass<A>::stream;

  const MlstmBackwardParams<void, A>& p;
  MlstmPlan plan;
  const int64_t sequences = in.shape.num_sequences * in.shape.num_heads;  // of all heads
  const int64_t row_tiles, dot_tiles;  // parts of what the gates' gradients are sums of
  MlstmState<const A> final_state = p.final_state;
  A *iota = this->new_tokens(), *rho = this->new_tokens(), *kappa = this->new_tokens();
  A *q_dq = memory.template get<A>(this->tokens * row_tiles), *k_dk = memory.template get<A>(this->tokens * row_tiles);
  A *chunk_dots = memory.template get<A>(this->slots * dot_tiles),
    *start_dots = memory.template get<A>(sequences * dot_tiles);

  BackwardPass(const Pass<A>& pass, const MlstmBackwardParams<void, A>& p_, const MlstmPlan& plan_)
      : Pass<A>(pass),
        p(p_),
        plan(plan_),
        row_tiles(plan.grad_walks ? tiles_across(in.shape.head_dim_qk, kStatesRows)
                                  : mlstm_outputs_column_tiles(this->product, in.shape.head_dim_qk)),
        dot_tiles(plan.grad_walks ? row_tiles : states_cost(this->product, plan.state_grads.by, in.shape).tiles) {}

  cudaError_t run() {
    XLSTM_RETURN_ERROR(find_states());
    const MlstmNormaliserParams<A> normaliser = {in.shape, in.options, p.h, p.dh, p.r, this->gates.m, iota, rho, kappa};
    XLSTM_RETURN_ERROR(mlstm_normaliser(normaliser, stream));
    XLSTM_RETURN_ERROR(compute_grads());
    return compute_gate_grads();
  }

 private:
  cudaError_t find_states() {
    if (p.kept) {
      this->find(p.kept);
      return cudaSuccess;
    }
    const int64_t dqk = in.shape.head_dim_qk, dv = in.shape.head_dim_v;
    const MlstmState<A> again = {memory.template get<A>(sequences * dqk * dv), memory.template get<A>(sequences * dqk),
                                 memory.template get<A>(sequences)};
    this->take_memory(memory);
    final_state = {again.C, again.n, again.m};
    XLSTM_RETURN_ERROR(this->compute_gates(again.m));
    return this->compute_states(again, plan.states);
  }

  cudaError_t compute_grads() {
    if constexpr (sizeof(A) == sizeof(float)) {
      if (plan.grad_walks) return walk_grads(*plan.grad_walks);
    }
    return pass_grads();
  }

  // Of a walk with dC.
  MlstmStatesParams<A> state_grads_params(int segments) const {
    MlstmStatesParams<A> a = this->states_params(true, in.q, p.dh, {plan.state_grads.by, segments});
    a.iota = iota, a.rho = rho;
    a.start = p.final_state_grad;
    a.end = p.initial_state_grad;
    a.forward_states = this->states, a.forward_normalisers = this->normalisers;
    a.initial_state = in.initial_state;
    a.final_state = final_state;
    a.chunk_dots = chunk_dots, a.start_dots = start_dots;
    return a;
  }

  // ---- in walks ----

  cudaError_t walk_grads(const GradWalks& walks)
    requires(sizeof(A) == sizeof(float))
  {
    MlstmWalkGradsParams dq;
    dq.output = OutputKind::dq;
    dq.states = this->states_params(false, in.k, in.v, {plan.states.by, walks.with_C});
    dq.states.iota = iota, dq.states.rho = rho;
    dq.states.start = in.initial_state;
    dq.X = p.dh, dq.Y = in.v, dq.Z = in.k;
    dq.out = p.dq;
    dq.factor = in.q, dq.row_sums = q_dq;
    XLSTM_RETURN_ERROR(mlstm_segment_states(dq.states, stream));
    XLSTM_RETURN_ERROR(mlstm_walk_grads(dq, stream));

    MlstmWalkGradsParams dk;
    dk.output = OutputKind::dk;
    dk.states = state_grads_params(walks.with_dC);
    dk.X = in.v, dk.Y = p.dh, dk.Z = in.q;
    dk.out = p.dk;
    dk.factor = in.k, dk.row_sums = k_dk;
    XLSTM_RETURN_ERROR(mlstm_segment_states(dk.states, stream));
    XLSTM_RETURN_ERROR(mlstm_walk_grads(dk, stream));

    MlstmWalkGradsParams dv;
    dv.output = OutputKind::dv;
    dv.states = dk.states;
    dv.X = in.k, dv.Y = in.q, dv.Z = p.dh;
    dv.out = p.dv;
    return mlstm_walk_grads(dv, stream);
  }

  // ---- in two passes ----

  cudaError_t pass_grads() {
    MlstmStatesParams<A> dC = state_grads_params(plan.state_grads.segments);
    dC.states = this->new_states(memory);
    dC.normalisers = this->new_normalisers(memory);
    XLSTM_RETURN_ERROR(mlstm_states(dC, stream));

    MlstmOutputsParams<A> dq = grad_params(OutputKind::dq, plan.dq);
    dq.X = p.dh, dq.Y = in.v, dq.Z = in.k;
    dq.out = p.dq;
    dq.factor = in.q, dq.row_sums = q_dq;
    XLSTM_RETURN_ERROR(mlstm_outputs(dq, stream));

    MlstmOutputsParams<A> dk = grad_params(OutputKind::dk, plan.dk);
    dk.X = in.v, dk.Y = p.dh, dk.Z = in.q;
    dk.out = p.dk;
    dk.factor = in.k, dk.row_sums = k_dk;
    dk.states = dC.states, dk.normalisers = dC.normalisers;
    dk.outer_state_is_zero = p.final_state_grad.C == nullptr && p.final_state_grad.n == nullptr;
    XLSTM_RETURN_ERROR(mlstm_outputs(dk, stream));

    MlstmOutputsParams<A> dv = grad_params(OutputKind::dv, plan.dv);
    dv.X = in.k, dv.Y = in.q, dv.Z = p.dh;
    dv.out = p.dv;
    dv.states = dC.states, dv.normalisers = dC.normalisers;
    dv.outer_state_is_zero = p.final_state_grad.C == nullptr;
    return mlstm_outputs(dv, stream);
  }

  MlstmOutputsParams<A> grad_params(OutputKind output, TensorCores by) const {
    MlstmOutputsParams<A> a = this->outputs_params(output, by);
    a.iota = iota, a.rho = rho;
    return a;
  }

  // ---- of the gates ----

  cudaError_t compute_gate_grads() const {
    MlstmGateGradsParams<A> a;
    a.shape = in.shape;
    a.sigmoid_gate = in.options.sigmoid_gate;
    a.chunk_size = this->chunk_size;
    a.i = in.i, a.f = in.f;
    a.reset = in.reset;
    a.gates = this->gates;
    a.q_dq = q_dq, a.k_dk = k_dk;
    a.row_tiles = row_tiles;
    a.kappa = kappa;
    a.chunk_dots = chunk_dots, a.start_dots = start_dots;
    a.dot_tiles = dot_tiles;
    a.dm = p.final_state_grad.m;
    a.di = p.di, a.df = p.df;
    a.d_initial_m = p.initial_state_grad.m;
    return mlstm_gate_grads(a, stream);
  }
};

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
  const std::optional<MlstmPlan> plan = pass.plan(in.h, {}, {}, {}, {});
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
  const Pass<A> pass(p.forward, memory, stream);
  const std::optional<MlstmPlan> plan = pass.plan({}, p.dh, p.dq, p.dk, p.dv);
  return plan ? BackwardPass<A>(pass, p, *plan).run() : cudaErrorInvalidValue;
}

template size_t kept_bytes(const MlstmForwardParams<void, float>&);
template size_t kept_bytes(const MlstmForwardParams<void, double>&);
template cudaError_t run(const MlstmForwardParams<void, float>&, const Allocator&, cudaStream_t);
template cudaError_t run(const MlstmForwardParams<void, double>&, const Allocator&, cudaStream_t);
template cudaError_t run(const MlstmBackwardParams<void, float>&, const Allocator&, cudaStream_t);
template cudaError_t run(const MlstmBackwardParams<void, double>&, const Allocator&, cudaStream_t);

}  // namespace xlstm::cuda
