// LSTM and sLSTM backward, a launch per step (docs/kernels/recurrent.md): the gradient of h from the gates of the token
// after, then the cell.
#include "cuda/device/device.h"
#include "cuda/recurrent/stepwise.h"
#include "cuda/recurrent/stepwise_kernel.h"

namespace xlstm::cuda {
namespace {

using namespace device;
using namespace stepwise;

// What an item reads from memory: before the product, to be used after it.
template <class P>
struct Token {
  using A = typename P::A;
  bool exists, counts, last, cut;  // cut: no gradient from the token after, which a reset precedes
  int64_t index;                   // among all tokens
  typename P::T dh, saved[kSaved];
  A carried[kMaxCarried];
};

// t = -1: the state before the first token.
template <class P>
XLSTM_DEVICE Token<P> load_token(const RecurrentBackwardParams<void>& p, int64_t t, const typename P::A* carried,
                                 const Item<P>& item, int64_t head) {
  using T = typename P::T;
  Token<P> token{};
  token.exists = item.exists;
  if (!item.exists) return token;
  const int64_t length = length_of(p.lengths, item.batch, p.shape.seqlen);
  token.index = token_of(p.shape, p.lengths, head, item.batch, t);
  token.counts = t < length || XLSTM_MUTANT("recurrent_stepwise_bwd: tokens past the end of a row");
  token.last = t == length - 1;
  if (!token.counts) return token;
  if (t + 1 < length) {
    const int64_t after = token_of(p.shape, p.lengths, head, item.batch, t + 1) - item.batch * p.shape.seqlen;
    token.cut = p.reset.at(item.batch, after) && !XLSTM_MUTANT("recurrent_stepwise_bwd: resets ignored");
  }
  if (!token.last && !token.cut) {
    const int64_t size = p.shape.batch * item.hidden;
#pragma unroll
    for (int s = 0; s < kMaxCarried; ++s) {
      if (s == 0 || p.cell != Cell::lstm) token.carried[s] = carried[s * size + item.state()];
    }
  }
  if (t < 0) return token;
  const int64_t offset = token.index * item.hidden;
  token.dh = static_cast<const T*>(p.dh)[offset + item.of_row];
  const T* saved = static_cast<const T*>(p.saved) + offset * kSaved + item.of_row;
#pragma unroll
  for (int x = 0; x < kSaved; ++x) token.saved[x] = saved[x * item.hidden];
  return token;
}

// sum: R^T d raw of the token after.
template <class P, class A>
XLSTM_DEVICE void advance(const RecurrentBackwardParams<void>& p, A* carried, const Item<P>& item,
                          const Token<P>& token, A sum) {
  using T = typename P::T;
  const int64_t at = item.state();
  T* dx = static_cast<T*>(p.dx) + token.index * kGates * item.hidden + item.of_row;
  if (!token.counts) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) dx[gate * item.hidden] = T(0.f);
    return;
  }
  with_cell<CellMath<T>>(p.cell, [&](auto cell) {
    using Functor = decltype(cell);
    A d[Functor::kGrads], saved[kSaved], draw[kGates], dh = widen<A>(token.dh) + sum;
#pragma unroll
    for (int x = 0; x < Functor::kGrads; ++x) d[x] = token.carried[x];
    if (token.last) {
      Functor::load_grad(load_unit_state<A>(p.final_state, at), load_unit_state<A>(p.final_state_grad, at), d);
      if (p.final_state_grad.h) dh += static_cast<const A*>(p.final_state_grad.h)[at];
    }
#pragma unroll
    for (int x = 0; x < kSaved; ++x) saved[x] = widen<A>(token.saved[x]);
    cell.backward(saved, dh, d, draw);
    store_carried(carried, d, at, p.shape.batch * item.hidden);
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) dx[gate * item.hidden] = narrow<T>(draw[gate]);
  });
}

template <class P, class A>
XLSTM_DEVICE void finish(const RecurrentBackwardParams<void>& p, const Item<P>& item, const Token<P>& token, A sum) {
  const int64_t at = item.state();
  if (token.last) return pass_through<A>(p.initial_state_grad, p.final_state_grad, at);  // a row without tokens
  with_cell<CellMath<typename P::T>>(p.cell, [&](auto cell) {
    using Functor = decltype(cell);
    A d[Functor::kGrads];
#pragma unroll
    for (int x = 0; x < Functor::kGrads; ++x) d[x] = token.carried[x];
    static_cast<A*>(p.initial_state_grad.h)[at] = sum;
    store_unit_state(p.initial_state_grad, at, Functor::store_grad(load_unit_state<A>(p.initial_state, at), d));
  });
}

// d raw of the token after, for the products of a block.
template <class P>
XLSTM_DEVICE Vectors<P> draw_after(const RecurrentBackwardParams<void>& p, int64_t t, const Block& block) {
  using T = typename P::T;
  if (t + 1 == p.shape.seqlen) return {};
  const int64_t hidden = p.shape.hidden(), of_head = block.head * p.shape.head_dim;
  return vectors_of<P>(block, p.shape.batch, hidden, [&](int64_t b) {
    const int64_t after = XLSTM_MUTANT("recurrent_stepwise_bwd: gates of the token itself") && t >= 0 ? t : t + 1;
    const int64_t index = token_of(p.shape, p.lengths, block.head, b, after);
    return static_cast<const T*>(p.dx) + index * kGates * hidden + of_head;
  });
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1)
    stepwise_bwd_kernel(RecurrentBackwardParams<void> p, int64_t t, typename F::Sum* carried, Grid grid, Loads loads) {
  using P = StepwiseTraits<F, true>;
  using A = typename P::A;
  XLSTM_SHARED(Shared<P>, s);
  const Block block = block_of<P>(grid);
  Token<P> tokens[P::kItems];
#pragma unroll
  for (int i = 0; i < P::kItems; ++i) {
    tokens[i] = load_token<P>(p, t, carried, Item<P>(p.shape, block, i), block.head);
  }
  const Vectors<P> draw = draw_after<P>(p, t, block);
  multiply<P>(s, matrix_of<P>(p.R, block, p.shape.head_dim), draw, loads);
#pragma unroll
  for (int i = 0; i < P::kItems; ++i) {
    const Item<P> item(p.shape, block, i);
    if (!tokens[i].exists) continue;
    A sum[1] = {};
    if (draw.rows > 0 && !tokens[i].last && !tokens[i].cut) sums_of<P>(sum, s, item);
    if (t < 0) {
      finish(p, item, tokens[i], sum[0]);
    } else {
      advance(p, carried, item, tokens[i], sum[0]);
    }
  }
}

// ---- launches ----

template <class F>
cudaError_t run(const RecurrentBackwardParams<void>& p, void* workspace, cudaStream_t stream) {
  using P = StepwiseTraits<F, true>;
  using T = typename P::T;
  auto* const carried = static_cast<typename P::A*>(workspace);
  Launch l;
  Grid grid;
  l.name = "recurrent_stepwise_bwd";
  if (!configure<P>(l, grid, p.shape, stream)) return cudaErrorInvalidConfiguration;
  const Loads loads = loads_of<P>(p.R, p.shape.head_dim, in_vectors<T>(p.dx, {}));
  for (int64_t t = p.shape.seqlen - 1; t >= -1; --t) {
    const cudaError_t error = launch(l, stepwise_bwd_kernel<F>, p, t, carried, grid, loads);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

size_t stepwise_bwd_workspace(const RecurrentBackwardParams<void>& p) {
  return carried_bytes(p.shape, p.cell, p.type);
}

cudaError_t stepwise_bwd(const RecurrentBackwardParams<void>& p, void* workspace, cudaStream_t stream) {
  if (p.shape.batch == 0) return cudaSuccess;
  return with_fragments(p.type, p.allow_tf32, [&](auto f) { return run<decltype(f)>(p, workspace, stream); });
}

}  // namespace xlstm::cuda
