// LSTM and sLSTM forward, a launch per step (docs/kernels/recurrent.md): R h of the step before, then the cell.
#include "cuda/device/device.h"
#include "cuda/recurrent/stepwise.h"
#include "cuda/recurrent/stepwise_kernel.h"

namespace xlstm::cuda {
namespace {

using namespace device;
using namespace stepwise;

// ---- the start: carried states, h0 in T ----

constexpr int kStartThreads = 256;

template <class T, class A>
__global__ void __launch_bounds__(kStartThreads)
    stepwise_start_kernel(RecurrentForwardParams<void> p, A* carried, T* h0) {
  const int64_t hidden = p.shape.hidden(), size = p.shape.batch * hidden;
  const int64_t at = int64_t{blockIdx.x} * kStartThreads + threadIdx.x;
  if (at >= size) return;
  if (p.initial_state.h) h0[at] = narrow<T>(static_cast<const A*>(p.initial_state.h)[at]);
  if (length_of(p.lengths, at / hidden, p.shape.seqlen) == 0)
    return pass_through<A>(p.final_state, p.initial_state, at);
  with_cell<CellMath<T>>(p.cell, [&](auto cell) {
    using Functor = decltype(cell);
    A state[Functor::kStates];
    Functor::load_state(load_unit_state<A>(p.initial_state, at), state);
    store_carried(carried, state, at, size);
  });
}

// ---- a step ----

template <class T, class A>
struct TimeStep {
  int64_t t;
  const T* h0;  // (B, H, D), or null: zero
  A* carried;
};

// What an item reads from memory: before the product, to be used after it.
template <class P>
struct Token {
  using A = typename P::A;
  bool exists, counts, last, fresh;  // fresh: a reset
  int64_t index;                     // among all tokens
  typename P::T x[kGates];
  A carried[kMaxCarried];
};

template <class P>
XLSTM_DEVICE Token<P> load_token(const RecurrentForwardParams<void>& p, int64_t t, const typename P::A* carried,
                                 const Item<P>& item, const Block& block) {
  using T = typename P::T;
  Token<P> token{};
  token.exists = item.exists;
  if (!item.exists) return token;
  const int64_t length = length_of(p.lengths, item.batch, p.shape.seqlen);
  token.index = token_of(p.shape, p.lengths, block.head, item.batch, t);
  token.counts = t < length || XLSTM_MUTANT("recurrent_stepwise_fwd: tokens past the end of a row");
  token.last = t == length - 1;
  if (!token.counts) return token;
  const int64_t at = token.index - item.batch * p.shape.seqlen;  // in its row
  token.fresh = p.reset.at(item.batch, at) && !XLSTM_MUTANT("recurrent_stepwise_fwd: resets ignored");
  const T* x = static_cast<const T*>(p.x.data) + item.batch * p.x.batch + at * p.x.time + block.head * p.x.head;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) token.x[gate] = x[gate * p.x.gate + block.unit + item.unit];
  const int64_t size = p.shape.batch * item.hidden;
#pragma unroll
  for (int s = 0; s < kMaxCarried; ++s) {
    if (s == 0 || p.cell != Cell::lstm) token.carried[s] = carried[s * size + item.state()];
  }
  return token;
}

// raw: R h and the bias.
template <class P, class A>
XLSTM_DEVICE void advance(const RecurrentForwardParams<void>& p, const TimeStep<typename P::T, A>& step,
                          const Item<P>& item, const Token<P>& token, A (&raw)[kGates]) {
  using T = typename P::T;
  const int64_t offset = token.index * item.hidden, at = item.state();
  T* h = static_cast<T*>(p.h) + offset + item.of_row;
  T* saved_to = p.saved ? static_cast<T*>(p.saved) + offset * kSaved + item.of_row : nullptr;
  if (!token.counts) {
    *h = T(0.f);
#pragma unroll
    for (int x = 0; saved_to && x < kSaved; ++x) saved_to[x * item.hidden] = T(0.f);
    return;
  }
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) raw[gate] += widen<A>(token.x[gate]);
  with_cell<CellMath<T>>(p.cell, [&](auto cell) {
    using Functor = decltype(cell);
    A state[Functor::kStates], saved[kSaved];
#pragma unroll
    for (int s = 0; s < Functor::kStates; ++s) state[s] = token.carried[s];
    if (token.fresh) Functor::load_state({0, 0, 0}, state);
    const T new_h = narrow<T>(cell.forward(raw, state, saved));
    *h = new_h;
    store_carried(step.carried, state, at, p.shape.batch * item.hidden);
#pragma unroll
    for (int x = 0; saved_to && x < kSaved; ++x) saved_to[x * item.hidden] = narrow<T>(saved[x]);
    if (token.last) {
      static_cast<A*>(p.final_state.h)[at] = widen<A>(new_h);
      store_unit_state(p.final_state, at, Functor::store_state(state));
    }
  });
}

// h of the step before, for the products of a block.
template <class P, class A>
XLSTM_DEVICE Vectors<P> h_before(const RecurrentForwardParams<void>& p, const TimeStep<typename P::T, A>& step,
                                 const Block& block) {
  using T = typename P::T;
  if (step.t == 0 && !step.h0) return {};
  const int64_t hidden = p.shape.hidden(), of_head = block.head * p.shape.head_dim;
  return vectors_of<P>(block, p.shape.batch, 0, [&](int64_t b) {
    if (step.t == 0) return step.h0 + b * hidden + of_head;
    const int64_t t = XLSTM_MUTANT("recurrent_stepwise_fwd: h of the token itself") ? step.t : step.t - 1;
    return static_cast<const T*>(p.h) + token_of(p.shape, p.lengths, block.head, b, t) * hidden + of_head;
  });
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1)
    stepwise_fwd_kernel(RecurrentForwardParams<void> p, TimeStep<typename F::Element, typename F::Sum> step, Grid grid,
                        Loads loads) {
  using P = StepwiseTraits<F, false>;
  using A = typename P::A;
  XLSTM_SHARED(Shared<P>, s);
  const Block block = block_of<P>(grid);
  Token<P> tokens[P::kItems];
#pragma unroll
  for (int i = 0; i < P::kItems; ++i) {
    tokens[i] = load_token<P>(p, step.t, step.carried, Item<P>(p.shape, block, i), block);
  }
  const Vectors<P> before = h_before<P>(p, step, block);
  multiply<P>(s, matrix_of<P>(p.R, block, p.shape.head_dim), before, loads);
#pragma unroll
  for (int i = 0; i < P::kItems; ++i) {
    const Item<P> item(p.shape, block, i);
    if (!tokens[i].exists) continue;
    A raw[kGates] = {}, sums[kGates] = {};
    if (p.b.data) load_any(raw, p.b.data, p.b.type, item.of_row, item.hidden);
    if (before.rows > 0 && !tokens[i].fresh) sums_of<P>(sums, s, item);
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) raw[gate] += sums[gate];
    advance(p, step, item, tokens[i], raw);
  }
}

// ---- launches ----

template <class T, class A>
cudaError_t start(const RecurrentForwardParams<void>& p, A* carried, T* h0, cudaStream_t stream) {
  const int64_t blocks = (p.shape.batch * p.shape.hidden() + kStartThreads - 1) / kStartThreads;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks));
  l.block = dim3(kStartThreads);
  l.name = "recurrent_stepwise_start";
  l.stream = stream;
  return launch(l, stepwise_start_kernel<T, A>, p, carried, h0);
}

template <class F>
cudaError_t run(const RecurrentForwardParams<void>& p, void* workspace, cudaStream_t stream) {
  using P = StepwiseTraits<F, false>;
  using T = typename P::T;
  using A = typename P::A;
  auto* const carried = static_cast<A*>(workspace);
  auto* const h0 = reinterpret_cast<T*>(static_cast<char*>(workspace) + carried_bytes(p.shape, p.cell, p.type));
  Launch l;
  Grid grid;
  l.name = "recurrent_stepwise_fwd";
  if (!configure<P>(l, grid, p.shape, stream)) return cudaErrorInvalidConfiguration;
  cudaError_t error = start(p, carried, h0, stream);
  for (int64_t t = 0; t < p.shape.seqlen && error == cudaSuccess; ++t) {
    const TimeStep<T, A> step = {t, p.initial_state.h ? h0 : nullptr, carried};
    const Loads loads = loads_of<P>(p.R, p.shape.head_dim, in_vectors<T>(t == 0 ? h0 : p.h, {}));
    error = launch(l, stepwise_fwd_kernel<F>, p, step, grid, loads);
  }
  return error;
}

}  // namespace

size_t stepwise_fwd_workspace(const RecurrentForwardParams<void>& p) {
  return carried_bytes(p.shape, p.cell, p.type) * 2;  // h0 in T is not larger than a carried value
}

cudaError_t stepwise_fwd(const RecurrentForwardParams<void>& p, void* workspace, cudaStream_t stream) {
  if (p.shape.batch == 0) return cudaSuccess;
  return with_fragments(p.type, p.allow_tf32, [&](auto f) { return run<decltype(f)>(p, workspace, stream); });
}

}  // namespace xlstm::cuda
