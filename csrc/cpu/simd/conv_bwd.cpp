// Causal depthwise convolution, backward: a work item is a run of tokens of a block of features. With g[t] the gradient
// of the pre-activation p[t] and d the distance from which token s + d sees input s,
//
//   dx[s] = sum_d weight[d] g[s + d]        dweight[d] = sum_s x[s] g[s + d]        dbias = sum_t g[t]
//
// A run computes g of its own tokens and of the K - 1 after it, and sums for the weights of its own inputs alone. These
// sums are added up in the order of the runs: a result does not depend on the number of threads.
#include "cpu/simd/conv.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// Features [from, from + count) of one run. sums (K + 1, F): of the weights by distance, then of the bias.
template <class T>
struct RunGrad {
  const ConvBackwardParams<T>& p;
  const ConvForwardParams<T>& in;
  const ConvRun& run;
  const T* w;
  T *sums, *g;  // g (tokens from run.first on, kConvFeatures)
  int64_t from, count;

  void compute_g() const;
  void own_gradients() const;

 private:
  T* g_of(int64_t t) const { return g + (t - run.first) * kConvFeatures; }
  int64_t seers(int64_t s) const;
  void input_grad(int64_t s, int64_t nearest, int64_t farthest) const;
  void add_final_state_grad(int64_t s, T* to) const;
};

template <class T>
void RunGrad<T>::compute_g() const {
  const int64_t last = min_of(run.last + in.shape.past(), run.end);
  for (int64_t t = run.first; t < last; ++t) {
    const PreActivation<T> pre{in, run, w, t, conv_seen(in, run, t)};
    const T* dy = p.dy.at(run.row, 0, t) + from;
    for_vectors<T>(count, [&](int64_t j, int64_t lanes) {
      Vec<T> grad = load_n(dy + j, lanes);
      if (in.silu) {
        const Vec<T> a = pre(from + j, lanes), sig = sigmoid<T>(a);
        grad *= sig + a * sig * (static_cast<T>(1) - sig);
      }
      store_n(g_of(t) + j, grad, lanes);
    });
  }
}

// How many tokens after s, all of them next to it, are not cut off from it.
template <class T>
int64_t RunGrad<T>::seers(int64_t s) const {
  int64_t count = 0;
  while (count < in.shape.past() && s + count + 1 < run.end) {
    if (s + count + 1 >= run.begin && in.reset.at(run.row, s + count + 1)) break;
    ++count;
  }
  return count;
}

// Of input s, which tokens at the distances nearest .. farthest see.
template <class T>
void RunGrad<T>::input_grad(int64_t s, int64_t nearest, int64_t farthest) const {
  const int64_t F = in.shape.features;
  const bool given = s >= run.begin || in.state;  // else the input is zero
  const T* x = given ? conv_input(in, run, s) + from : nullptr;
  T* dx = s >= run.begin ? p.dx.at(run.row, 0, s)
                         : p.dstate + (run.sequence * in.shape.past() + s - run.begin + in.shape.past()) * F;
  for_vectors<T>(count, [&](int64_t j, int64_t lanes) {
    const Vec<T> input = given ? load_n(x + j, lanes) : splat<T>(0);
    Vec<T> sum = splat<T>(0);
    for (int64_t d = nearest; d <= farthest; ++d) {
      const Vec<T> grad = load_n(g_of(s + d) + j, lanes);
      T* dw = sums + d * F + from + j;
      sum += load_n(w + d * F + from + j, lanes) * grad;
      store_n(dw, load_n(dw, lanes) + input * grad, lanes);
    }
    store_n(dx + from + j, sum, lanes);
  });
  add_final_state_grad(s, dx + from);
}

// The state after the last token holds input s where no reset follows it.
template <class T>
void RunGrad<T>::add_final_state_grad(int64_t s, T* to) const {
  const int64_t past = in.shape.past(), row = past - (run.end - s);
  if (!p.dnext || row < 0 || seers(s) < run.end - 1 - s) return;
  axpby_row<T>(to, 1, 1, p.dnext + (run.sequence * past + row) * in.shape.features + from, count);
}

template <class T>
void RunGrad<T>::own_gradients() const {
  const int64_t F = in.shape.features, past = in.shape.past();
  for (int64_t d = 0; d <= in.shape.taps; ++d) fill_row<T>(sums + d * F + from, 0, count);
  for (int64_t s = run.first; s < run.last; ++s) {
    axpby_row<T>(sums + in.shape.taps * F + from, 1, 1, g_of(s), count);
    input_grad(s, 0, seers(s));
  }
  // The state's inputs: all that see them are tokens of this run or the K - 1 after it.
  for (int64_t s = run.begin - past; run.starts && s < run.begin; ++s) input_grad(s, run.begin - s, seers(s));
}

template <class T>
void add_up(const ConvBackwardParams<T>& p, const T* sums, int64_t slots, const Runtime& runtime) {
  const int64_t F = p.forward.shape.features, K = p.forward.shape.taps;
  const int64_t work = max_of(1, slots * (K + 1) * min_of(F, kConvFeatures));
  runtime.parallel(ceil_div(F, kConvFeatures), ceil_div(int64_t{1} << 16, work), [&](int64_t block) {
    const int64_t from = block * kConvFeatures, end = min_of(from + kConvFeatures, F);
    for (int64_t d = 0; d <= K; ++d) {
      for (int64_t f = from; f < end; ++f) {
        T sum = 0;
        for (int64_t slot = 0; slot < slots; ++slot) sum += sums[(slot * (K + 1) + d) * F + f];
        (d == K ? p.dbias[f] : p.dweight[f * K + K - 1 - d]) = sum;
      }
    }
  });
}

}  // namespace

template <class T>
void conv_bwd(const ConvBackwardParams<T>& p, const Runtime& runtime) {
  const ConvForwardParams<T>& in = p.forward;
  const int64_t F = in.shape.features, K = in.shape.taps, length = conv_run_length(in.shape);
  const int64_t slots = conv_slots(in.shape, length), blocks = ceil_div(F, kConvFeatures);
  Arena sizes;
  sizes.take<T>(K * F), sizes.take<T>(slots * (K + 1) * F);
  Arena arena(runtime.scratch(0, sizes.used()));
  const T* w = weights_by_distance(in, arena.take<T>(K * F));
  T* sums = arena.take<T>(slots * (K + 1) * F);
  runtime.parallel(slots * blocks, conv_grain(in.shape, 3), [&](int64_t item) {
    const int64_t slot = item / blocks, from = item % blocks * kConvFeatures;
    const ConvRun run = conv_run(in.shape, length, slot);
    const size_t bytes = static_cast<size_t>((length + K) * kConvFeatures) * sizeof(T);
    T *own = sums + slot * (K + 1) * F, *g = static_cast<T*>(runtime.scratch(1, bytes));
    const RunGrad<T> grad{p, in, run, w, own, g, from, min_of(kConvFeatures, F - from)};
    grad.compute_g();
    grad.own_gradients();
  });
  add_up(p, sums, slots, runtime);
}

template void conv_bwd<float>(const ConvBackwardParams<float>&, const Runtime&);
template void conv_bwd<double>(const ConvBackwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
