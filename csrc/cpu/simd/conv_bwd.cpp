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
template <class E, class T = ArithmeticOf<E>>
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
  T* sum_of(int64_t d) const { return sums + d * in.shape.features + from; }
  int64_t seers(int64_t s) const;
  const T* final_state_grad(int64_t s) const;
  template <class To>
  void input_grad(To* to, int64_t s, int64_t nearest) const;
  void usual_input_grads(int64_t s) const;
};

template <class E, class T>
void RunGrad<E, T>::compute_g() const {
  const int64_t last = min_of(run.last + in.shape.past(), run.end);
  const auto dy = [&](int64_t t) { return row_of<const E>(p.dy, run.row, 0, t) + from; };
  if (!in.silu) {
    for (int64_t t = run.first; t < last; ++t) {
      for_vectors<T>(count,
                     [&](int64_t j, int64_t lanes) { store_n(g_of(t) + j, load_elements(dy(t) + j, lanes), lanes); });
    }
    return;
  }
  const PreActivations<E> pre{in, run, w, from, count};
  pre.each(run.first, last, [&](int64_t t, int64_t j, int64_t lanes, Vec<T> a) {
    const Vec<T> sig = sigmoid<T>(a), slope = sig + a * sig * (static_cast<T>(1) - sig);
    store_n(g_of(t) + j, load_elements(dy(t) + j, lanes) * slope, lanes);
  });
}

// How many tokens after s, all of them next to it, are not cut off from it.
template <class E, class T>
int64_t RunGrad<E, T>::seers(int64_t s) const {
  int64_t count = 0;
  while (count < in.shape.past() && s + count + 1 < run.end) {
    if (s + count + 1 >= run.begin && in.reset.at(run.row, s + count + 1)) break;
    ++count;
  }
  return count;
}

// The state after the last token holds input s where no reset follows it.
template <class E, class T>
const T* RunGrad<E, T>::final_state_grad(int64_t s) const {
  const int64_t past = in.shape.past(), row = past - (run.end - s);
  if (!p.dnext || row < 0 || seers(s) < run.end - 1 - s) return nullptr;
  return p.dnext + (run.sequence * past + row) * in.shape.features + from;
}

// Of input s, which tokens from the distance `nearest` on see.
template <class E, class T>
template <class To>
void RunGrad<E, T>::input_grad(To* to, int64_t s, int64_t nearest) const {
  const int64_t F = in.shape.features, farthest = seers(s);
  const E* x = conv_input<E>(in, run, s);  // null: the input is zero
  const T* dnext = final_state_grad(s);
  for_vectors<T>(count, [&](int64_t j, int64_t lanes) {
    const Vec<T> input = x ? load_elements(x + from + j, lanes) : splat<T>(0);
    Vec<T> sum = dnext ? load_n(dnext + j, lanes) : splat<T>(0);
    for (int64_t d = nearest; d <= farthest; ++d) {
      const Vec<T> grad = load_n(g_of(s + d) + j, lanes);
      T* dw = sum_of(d) + j;
      sum += load_n(w + d * F + from + j, lanes) * grad;
      store_n(dw, load_n(dw, lanes) + input * grad, lanes);
    }
    store_elements(to + j, sum, lanes);
  });
}

// Of kConvTokens inputs of x from s on, which all usual tokens see. dbias too.
template <class E, class T>
void RunGrad<E, T>::usual_input_grads(int64_t s) const {
  const int64_t F = in.shape.features;
  const E* x = conv_input<E>(in, run, s) + from;
  E* dx = row_of<E>(p.dx, run.row, 0, s) + from;
  for_vectors<T>(count, [&](int64_t j, int64_t lanes) {
    Vec<T> input[kConvTokens], sum[kConvTokens], dw[kUsualTaps], weight[kUsualTaps];
    Vec<T> dbias = load_n(sum_of(kUsualTaps) + j, lanes);
    for (int c = 0; c < kConvTokens; ++c) input[c] = load_elements(x + c * in.x.time + j, lanes), sum[c] = splat<T>(0);
    for (int d = 0; d < kUsualTaps; ++d) {
      weight[d] = load_n(w + d * F + from + j, lanes), dw[d] = load_n(sum_of(d) + j, lanes);
    }
    XLSTM_UNROLL
    for (int t = 0; t < kConvTokens + kUsualPast; ++t) {
      const Vec<T> grad = load_n(g_of(s + t) + j, lanes);
      if (t < kConvTokens) dbias += grad;
      XLSTM_UNROLL
      for (int c = 0; c < kConvTokens; ++c) {
        const int d = t - c;
        if (d >= 0 && d < kUsualTaps) sum[c] += weight[d] * grad, dw[d] += input[c] * grad;
      }
    }
    for (int c = 0; c < kConvTokens; ++c) store_elements(dx + c * p.dx.time + j, sum[c], lanes);
    for (int d = 0; d < kUsualTaps; ++d) store_n(sum_of(d) + j, dw[d], lanes);
    store_n(sum_of(kUsualTaps) + j, dbias, lanes);
  });
}

template <class E, class T>
void RunGrad<E, T>::own_gradients() const {
  const int64_t F = in.shape.features, K = in.shape.taps, past = in.shape.past();
  for (int64_t d = 0; d <= K; ++d) fill_row<T>(sum_of(d), 0, count);
  for (int64_t s = run.first; s < run.last;) {
    if (s + kConvTokens <= run.last && conv_usual(in, run, s, s + kConvTokens + kUsualPast)) {
      usual_input_grads(s), s += kConvTokens;
    } else {
      axpby_row<T>(sum_of(K), 1, 1, g_of(s), count);
      input_grad(row_of<E>(p.dx, run.row, 0, s) + from, s, 0), ++s;
    }
  }
  // The state's inputs: all that see them are tokens of this run or the K - 1 after it.
  for (int64_t s = run.begin - past; run.starts && s < run.begin; ++s) {
    input_grad(p.dstate + (run.sequence * past + s - run.begin + past) * F + from, s, run.begin - s);
  }
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
  with_elements_of<T>(in.x.type, [&](auto element) {
    runtime.parallel(slots * blocks, conv_grain(in.shape, 3), [&](int64_t item) {
      const int64_t slot = item / blocks, from = item % blocks * kConvFeatures;
      const ConvRun run = conv_run(in.shape, length, slot);
      const size_t bytes = static_cast<size_t>((length + K) * kConvFeatures) * sizeof(T);
      T *own = sums + slot * (K + 1) * F, *g = static_cast<T*>(runtime.scratch(1, bytes));
      const RunGrad<decltype(element)> grad{p, in, run, w, own, g, from, min_of(kConvFeatures, F - from)};
      grad.compute_g();
      grad.own_gradients();
    });
  });
  add_up(p, sums, slots, runtime);
}

template void conv_bwd<float>(const ConvBackwardParams<float>&, const Runtime&);
template void conv_bwd<double>(const ConvBackwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
