#include "cuda/headwise/headwise.h"

#include <initializer_list>

namespace xlstm::cuda {
namespace {

// One long row, where the rows of all views lie one after the other: then runs do not end with them.
HeadwiseShape in_one_row(HeadwiseShape s, std::initializer_list<const AnyView*> views) {
  for (const AnyView* x : views) {
    if (x->data != nullptr && s.batch > 1 && x->batch != s.seqlen * x->time) return s;
  }
  s.seqlen *= s.batch;
  s.batch = 1;
  return s;
}

}  // namespace

cudaError_t run(const HeadwiseForwardParams<void>& params, const Allocator&, cudaStream_t stream) {
  HeadwiseForwardParams<void> p = params;
  if (p.shape.tokens() == 0) return cudaSuccess;
  p.shape = in_one_row(p.shape, {&p.x, &p.y[0], &p.y[1]});
  if (has_usual_blocks(p)) return headwise_fwd_usual(p, stream);
  return p.x.type == Type::f64 ? headwise_fwd_any<double>(p, stream) : headwise_fwd_any<float>(p, stream);
}

template <class A>
cudaError_t run(const HeadwiseBackwardParams<void, A>& params, const Allocator& memory, cudaStream_t stream) {
  HeadwiseBackwardParams<void, A> p = params;
  HeadwiseShape& s = p.forward.shape;
  s = in_one_row(s, {&p.forward.x, &p.dx, &p.dy[0], &p.dy[1]});
  A* sums = memory.get<A>(headwise_runs(s, kHeadwiseGradTokens) * s.all_sums());
  cudaError_t error = cudaSuccess;
  bool done = s.tokens() == 0;
  if constexpr (sizeof(A) == 4) {
    if (!done && has_usual_blocks(p.forward)) {
      error = headwise_bwd_usual(p, sums, stream);
      done = true;
    }
  }
  if (!done) error = headwise_bwd_any<A>(p, sums, stream);
  return error == cudaSuccess ? headwise_add_up<A>(p, sums, stream) : error;
}

template cudaError_t run(const HeadwiseBackwardParams<void, float>&, const Allocator&, cudaStream_t);
template cudaError_t run(const HeadwiseBackwardParams<void, double>&, const Allocator&, cudaStream_t);

}  // namespace xlstm::cuda
