// Chunkwise mLSTM, backward: one work item walks the chunks of one head of one sequence in reverse; or where there are
// fewer of these than threads, all threads share one (mlstm_split.h). The states that entered each chunk are
// recomputed, a group of chunks at a time, from checkpoints at the start of every group.
#include "cpu/simd/mlstm_chunk_grad.h"
#include "cpu/simd/mlstm_split.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// Chunks that are walked at a time: their states stay below a bound.
int64_t walk_group(int64_t num_chunks, int64_t state_bytes) {
  constexpr int64_t kStateBytes = 32 << 20;
  if (num_chunks * state_bytes <= kStateBytes) return max_of(1, num_chunks);
  int64_t size = 1;
  while (size * size < num_chunks) ++size;
  return size;
}

// Whether the gradient of the state after `count` chunks is not all zero.
template <class T>
bool has_dstate(const MlstmBackwardParams<T>& p, const CutSequence<T>& cut, int64_t count, int64_t num_chunks) {
  if (count == num_chunks) return p.final_state_grad.C || p.final_state_grad.n;
  return cut.chunks[count].start == Start::carry;
}

template <class T>
void load_final_grad(const MlstmBackwardParams<T>& p, const CutSequence<T>& cut, const StateRef<T>& to,
                     Columns columns) {
  const MlstmShape& shape = p.forward.shape;
  const MlstmState<const T>& grad = p.final_state_grad;
  const int64_t dqk = shape.head_dim_qk, dv = shape.head_dim_v;
  clear_columns(to, shape, columns);
  for (int64_t a = 0; grad.C && a < dqk; ++a) {
    const int64_t at = a * dv + columns.begin;
    scale_row<T>(to.C + at, 1, grad.C + cut.seq.state * dqk * dv + at, columns.count());
  }
  if (grad.n && columns.has_n()) scale_row<T>(to.n, 1, grad.n + cut.seq.state * dqk, dqk);
}

// What comes by way of the stabiliser m: it follows the larger argument of the max, from the last token to the first,
// and completes the gradients of the gates.
template <class T>
class Stabiliser {
 public:
  Stabiliser(const MlstmBackwardParams<T>& params, const Sequence& sequence)
      : p(params), seq(sequence), dm(p.final_state_grad.m ? p.final_state_grad.m[seq.state] : 0) {}

  // product: of the final state and its gradient.
  void start(double product) {
    if (!sigmoid_gate) dm -= product;
  }

  void pass(const Chunk& chunk, const GateGrad* grads) {
    for (int64_t t = chunk.len - 1; t >= 0; --t) {
      GateGrad grad = grads[t];
      if (!sigmoid_gate) {
        dm += grad.kappa;
        (grad.input_wins ? grad.di : grad.dlog_f) += dm;
        if (grad.input_wins) dm = 0;
      }
      if (t == 0 && chunk.start == Start::forget) grad.dlog_f = 0;
      *p.di.at(seq.row, seq.head, chunk.begin + t) = static_cast<T>(grad.di);
      *p.df.at(seq.row, seq.head, chunk.begin + t) = static_cast<T>(grad.dlog_f * grad.slope_f);
    }
    // Before a reset nothing is seen. The sigmoid gate hands m through unless a reset clears it.
    if (chunk.reset || (chunk.start == Start::forget && !sigmoid_gate)) dm = 0;
  }

  // product: of the initial state and its gradient.
  void finish(double product) {
    if (!sigmoid_gate && p.forward.initial_state.C) dm += product;
    p.initial_state_grad.m[seq.state] = static_cast<T>(dm);
  }

 private:
  const MlstmBackwardParams<T>& p;
  const Sequence seq;
  const bool sigmoid_gate = p.forward.options.sigmoid_gate;
  double dm;
};

// The working memory of a sequence.
template <class T>
struct SequenceBuffers {
  Chunk* chunks;
  double* M;
  StateRef<T>*checkpoints, *states;  // before a group; before each chunk of one group, and after the last
  GateGrad* gate_grads;              // of `tokens` tokens

  SequenceBuffers(Arena& arena, const MlstmShape& shape, int64_t num_chunks, int64_t group, int64_t tokens) {
    chunks = arena.take<Chunk>(num_chunks);
    M = arena.take<double>(num_chunks + 1);
    checkpoints = place_states<T>(arena, ceil_div(num_chunks, group), shape);
    states = place_states<T>(arena, group + 1, shape);
    gate_grads = arena.take<GateGrad>(tokens);
  }
};

template <class T>
void walk(const MlstmBackwardParams<T>& p, const Sequence& seq, int64_t L, const Runtime& runtime) {
  const MlstmForwardParams<T>& in = p.forward;
  const MlstmShape& shape = in.shape;
  const int64_t state_bytes = static_cast<int64_t>(sizeof(T)) * shape.head_dim_qk * (shape.head_dim_v + 1);
  const int64_t num_chunks = cut_chunks(in, seq, L, nullptr), group = walk_group(num_chunks, state_bytes);
  Arena count;
  SequenceBuffers<T>(count, shape, num_chunks, group, L);
  ChunkGrad<T>(count, p, seq, L);
  Arena arena(runtime.scratch(1, count.used()));
  const SequenceBuffers<T> w(arena, shape, num_chunks, group, L);
  ChunkGrad<T> grad(arena, p, seq, L);
  cut_chunks(in, seq, L, w.chunks);

  const CutSequence<T> cut = {in, seq, L, w.chunks, w.M};
  const Columns all = {0, shape.head_dim_v};
  const StateRef<T> dstate = state_of(p.initial_state_grad, seq, shape);  // at the end of a chunk, then at its start
  Stabiliser<T> stabiliser(p, seq);
  load_final_grad(p, cut, dstate, all);
  if (num_chunks == 0) return stabiliser.finish(0);
  const auto advance = [&](int64_t c, const StateRef<T>& from, const StateRef<T>& to) {
    w.M[c + 1] = grad.advance(w.chunks[c], w.M[c], from, to);
  };
  w.M[0] = in.initial_state.m ? in.initial_state.m[seq.state] : 0;
  cut.load_initial(w.checkpoints[0], all);
  for (int64_t c = 0; c < (ceil_div(num_chunks, group) - 1) * group; ++c) {
    advance(c, w.checkpoints[c / group + (c % group > 0)], w.checkpoints[c / group + 1]);
  }
  for (int64_t first = (num_chunks - 1) / group * group; first >= 0; first -= group) {
    const int64_t last = min_of(first + group, num_chunks);
    copy_columns(w.states[0], w.checkpoints[first / group], shape, all);
    for (int64_t c = first; c < last; ++c) advance(c, w.states[c - first], w.states[c - first + 1]);
    for (int64_t c = last - 1; c >= first; --c) {
      const StateRef<T>* states = w.states + (c - first);
      grad.enter(w.chunks[c], w.M[c]);
      const double product = grad.gradients(w.chunks[c], states[0], states[1], dstate,
                                            has_dstate(p, cut, c + 1, num_chunks), w.gate_grads);
      grad.state_grad(w.chunks[c], dstate, dstate, all);
      if (c == num_chunks - 1) stabiliser.start(product);
      stabiliser.pass(w.chunks[c], w.gate_grads);
    }
  }
  stabiliser.finish(has_dstate(p, cut, 0, num_chunks) ? state_product(dstate, w.checkpoints[0], shape) : 0);
}

// One sequence on all threads.
template <class T>
class Split {
 public:
  Split(Arena& arena, const MlstmBackwardParams<T>& params, const Sequence& sequence, int64_t chunk_size,
        int64_t chunks, int64_t group_, const Runtime& runtime_)
      : p(params),
        shape(p.forward.shape),
        L(chunk_size),
        num_chunks(chunks),
        group(group_),
        runtime(runtime_),
        w(arena, shape, num_chunks, group, group * L),
        dstates(place_states<T>(arena, group + 1, shape)),
        cut{p.forward, sequence, L, w.chunks, w.M},
        stabiliser(p, sequence) {}

  void run() {
    const MlstmState<const T>& initial = p.forward.initial_state;
    cut_chunks(p.forward, cut.seq, L, w.chunks);
    w.M[0] = initial.m ? initial.m[cut.seq.state] : 0;
    in_own_columns([&](Columns own) { cut.load_initial(w.checkpoints[0], own); });
    const int64_t last_group = (num_chunks - 1) / group;
    for (int64_t g = 0; g < last_group; ++g) {
      const auto state_at = [&](int64_t j) { return w.checkpoints[g + (j > 0)]; };
      in_own_columns([&](Columns own) { cut.advance(g * group, (g + 1) * group, state_at, own, runtime); });
    }
    for (int64_t g = last_group; g >= 0; --g) group_grad(g, g * group, min_of((g + 1) * group, num_chunks));
    const bool seen = has_dstate(p, cut, 0, num_chunks);
    stabiliser.finish(seen ? state_product(dstates[0], w.checkpoints[0], shape) : 0);
  }

 private:
  const MlstmBackwardParams<T>& p;
  const MlstmShape& shape;
  const int64_t L, num_chunks, group;
  const Runtime& runtime;
  const SequenceBuffers<T> w;
  StateRef<T>* dstates;  // gradients of `states`
  const CutSequence<T> cut;
  Stabiliser<T> stabiliser;

  template <class F>
  void in_own_columns(const F& f) {
    in_columns<T>(shape, group * L, runtime, f);
  }

  // Chunks [first, last): the states, their gradients, then each chunk by itself.
  void group_grad(int64_t g, int64_t first, int64_t last) {
    const auto state_at = [&](int64_t j) { return w.states[j]; };
    in_own_columns([&](Columns own) {
      copy_columns(w.states[0], w.checkpoints[g], shape, own);
      cut.advance(first, last, state_at, own, runtime);
    });
    in_own_columns([&](Columns own) { state_grads(first, last, own); });
    double last_product = 0;
    runtime.parallel(last - first, 1, [&](int64_t j) {
      const int64_t c = first + j;
      auto grad = thread_buffers<ChunkGrad<T>>(runtime, p, cut.seq, L);
      grad.enter(w.chunks[c], w.M[c]);
      const double product = grad.gradients(w.chunks[c], w.states[j], w.states[j + 1], dstates[j + 1],
                                            has_dstate(p, cut, c + 1, num_chunks), w.gate_grads + j * L);
      if (c == num_chunks - 1) last_product = product;
    });
    if (last == num_chunks) stabiliser.start(last_product);
    for (int64_t c = last - 1; c >= first; --c) stabiliser.pass(w.chunks[c], w.gate_grads + (c - first) * L);
  }

  void state_grads(int64_t first, int64_t last, Columns own) {
    if (last == num_chunks)
      load_final_grad(p, cut, dstates[last - first], own);
    else
      copy_columns(dstates[group], dstates[0], shape, own);
    auto grad = thread_buffers<ChunkGrad<T>>(runtime, p, cut.seq, L);
    for (int64_t c = last - 1; c >= first; --c) {
      grad.enter(w.chunks[c], w.M[c]);
      grad.state_grad(w.chunks[c], dstates[c - first + 1], dstates[c - first], own);
    }
    if (first == 0) copy_columns(state_of(p.initial_state_grad, cut.seq, shape), dstates[0], shape, own);
  }
};

template <class T>
void split(const MlstmBackwardParams<T>& p, const Sequence& seq, int64_t L, const Runtime& runtime) {
  const int64_t num_chunks = cut_chunks(p.forward, seq, L, nullptr);
  if (num_chunks == 0) return walk(p, seq, L, runtime);
  const int64_t group = split_group<T>(p.forward.shape, num_chunks, runtime);
  Arena count;
  Split<T>(count, p, seq, L, num_chunks, group, runtime);
  Arena arena(runtime.scratch(0, count.used()));
  Split<T>(arena, p, seq, L, num_chunks, group, runtime).run();
}

}  // namespace

template <class T>
void mlstm_bwd(const MlstmBackwardParams<T>& p, const Runtime& runtime) {
  const MlstmShape& shape = p.forward.shape;
  const int64_t L = chunk_size_of(p.forward), sequences = shape.num_sequences * shape.num_heads;
  if (worth_splitting(p.forward, L, runtime)) {
    for (int64_t item = 0; item < sequences; ++item) split(p, sequence_of(shape, item), L, runtime);
    return;
  }
  runtime.parallel(sequences, 1, [&](int64_t item) { walk(p, sequence_of(shape, item), L, runtime); });
}

template void mlstm_bwd<float>(const MlstmBackwardParams<float>&, const Runtime&);
template void mlstm_bwd<double>(const MlstmBackwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
