// The outputs of outputs.h on compute capability 9.0, bfloat16: by wgmma, from tiles that TMA brings.
//
// A block has up to 128 rows of a chunk and up to 256 columns: two consumer warpgroups with 64 rows each, and a third
// one, the producer, which leaves them its registers. The rows of X stay in shared memory. The producer sends
// everything else through a ring, in the order of use:
//
//   state    64 of the contracted values, all columns     acc += X state         (then times the rows' weights)
//   scores   64 tokens, up to 256 values of Y             P = X Y^T              for every tile of 64 tokens
//   values   64 tokens, all columns                       acc += P Z             P in registers
//
// A tile is read once by each warpgroup, not once by each warp. Where a warpgroup's rows do not see a tile, it only
// gives the stages back.
#include <algorithm>

#include "cuda/mlstm_chunkwise/current_device.h"
#include "cuda/mlstm_chunkwise/hopper_tiles.h"
#include "cuda/mlstm_chunkwise/outputs_rows.h"
#include "cuda/mlstm_chunkwise/outputs_wgmma.h"
#include "cuda/mlstm_chunkwise/token_maps.h"

namespace xlstm::cuda {
namespace {

using namespace device;

using T = __nv_bfloat16;
constexpr Product kProduct = Product::bf16;

constexpr int kGroups = 2;  // consumer warpgroups
constexpr int kGroupThreads = 128, kConsumers = kGroups * kGroupThreads, kThreads = kConsumers + kGroupThreads;
constexpr int kRows = kGroups * kTileRows;  // of a block
constexpr int kMaxDepth = 512;              // of X
constexpr int kMaxTiles = 4;                // of tokens in a chunk
constexpr int kMinStages = 2, kMaxStages = 4;
constexpr int kScoreSlabs = 4;  // of Y in a stage, at most
constexpr int kConsumerBarrier = 1;

struct Maps {
  CUtensorMap X, Y, Z, state;
};

struct WgmmaTiling : OutputsTiling {
  int depth;        // slabs of X's rows
  int stages;       // of the ring
  int stage_slabs;  // of 64 rows
};

// After it: X, a slab of 128 rows after the other; then the ring.
struct alignas(kSharedAlignment) Shared {
  Item at[kGroups];  // the rows of each warpgroup
  RowVectors<float> rows[kGroups];
  TokenVectors<float> columns[kMaxTiles];
  float n[kMaxDepth];
  uint64_t x_full, full[kMaxStages], empty[kMaxStages];

  XLSTM_DEVICE uint32_t x(int slab) const { return shared_address(this + 1) + slab * kGroups * kSlabBytes; }
  XLSTM_DEVICE Ring ring(const WgmmaTiling& tiling) const {
    return Ring(x(tiling.depth), shared_address(full), shared_address(empty), tiling.stages,
                tiling.stage_slabs * kSlabBytes);
  }
  // One per warp, over X and the ring.
  XLSTM_DEVICE Exchange<float>& exchange() { return reinterpret_cast<Exchange<float>*>(this + 1)[threadIdx.x / 32]; }
};

size_t shared_bytes(const WgmmaTiling& tiling) {
  const size_t slabs = tiling.depth * kGroups + tiling.stages * tiling.stage_slabs;
  return sizeof(Shared) + std::max(slabs * kSlabBytes, kConsumers / 32 * sizeof(Exchange<float>));
}

// For tiles of so many columns, with as many stages as the shared memory has room for.
WgmmaTiling with_ring(WgmmaTiling tiling, int depth, int columns, size_t room) {
  tiling.depth = tiles(depth, kSlabColumns);
  tiling.stage_slabs = std::max(columns / kSlabColumns, std::min(kScoreSlabs, tiling.depth));
  tiling.stages = kMaxStages;
  while (tiling.stages > 0 && shared_bytes(tiling) > room) --tiling.stages;
  return tiling;
}

// What a block does, known to all of its threads.
struct Work {
  int groups;  // warpgroups that have rows
  bool has_state;
  int own_tile;               // of tokens: the first warpgroup's rows
  int first_tile, last_tile;  // of tokens that some row sees
};

template <OutputKind O>
XLSTM_DEVICE Work work_of(const Item& at, bool zero_state) {
  const int tokens = uniform(at.tokens), own = uniform(at.first_row / kTileRows);
  Work work;
  work.groups = tokens > (own + 1) * kTileRows ? 2 : 1;
  work.has_state = !(uniform(at.outermost) && zero_state);
  work.own_tile = own;
  work.first_tile = kRowsAreQueries<O> ? 0 : own;
  work.last_tile = kRowsAreQueries<O> ? own + work.groups - 1 : tiles(tokens, kTileRows) - 1;
  return work;
}

// Whether rows of this tile see tokens of that one.
template <OutputKind O>
XLSTM_DEVICE bool sees_tile(int rows, int tokens) {
  return kRowsAreQueries<O> ? tokens <= rows : tokens >= rows;
}

// ---- the producer ----

// One thread. It sends boxes in the order in which consumers use them.
template <OutputKind O, int kColumns>
struct Producer {
  const Maps& maps;
  const Shared& s;
  const WgmmaTiling& tiling;
  Ring ring;

  XLSTM_DEVICE Producer(const Maps& maps_, const Shared& s_, const WgmmaTiling& tiling_)
      : maps(maps_), s(s_), tiling(tiling_), ring(s_.ring(tiling_)) {}

  XLSTM_DEVICE void run(const Work& work) {
    send_x();
    for (int k = 0; work.has_state && k < tiling.depth; ++k) send_state(k);
    for (int tile = work.first_tile; tile <= work.last_tile; ++tile) {
      for (int k = 0; k < tiling.depth; k += kScoreSlabs) send_scores(tile, k, min(kScoreSlabs, tiling.depth - k));
      send_values(tile);
    }
  }

 private:
  // Tokens from `row` of the chunk on, columns from `column` on.
  XLSTM_DEVICE void send_tokens(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t full) const {
    const Item& at = s.at[0];
    const int corner[4] = {column, at.begin + row, at.head, at.batch};
    tma_load(to, &map, corner, full);
  }

  XLSTM_DEVICE void send_x() const {
    const uint32_t full = shared_address(&s.x_full);
    mbarrier_arrive_expect_tx(full, tiling.depth * kGroups * kSlabBytes);
    for (int k = 0; k < tiling.depth; ++k) send_tokens(s.x(k), maps.X, k * kSlabColumns, s.at[0].first_row, full);
  }

  XLSTM_DEVICE void open(int slabs) const {
    if (!XLSTM_MUTANT("mlstm_outputs_wgmma: a stage is filled while it is read")) ring.await_empty();
    const bool less = XLSTM_MUTANT("mlstm_outputs_wgmma: a slab is not waited for");
    mbarrier_arrive_expect_tx(ring.full(), (less ? slabs - 1 : slabs) * kSlabBytes);
  }

  XLSTM_DEVICE void send_state(int k) {
    open(kColumns / kSlabColumns);
    const Item& at = s.at[0];
    if constexpr (kStateTransposed<O>) {
#pragma unroll 1
      for (int j = 0; j < kColumns / kSlabColumns; ++j) {
        const int corner[3] = {at.first_column + j * kSlabColumns, k * kSlabColumns, at.slot};
        tma_load(ring.memory() + j * kSlabBytes, &maps.state, corner, ring.full());
      }
    } else {
      const int corner[3] = {k * kSlabColumns, at.first_column, at.slot};
      tma_load(ring.memory(), &maps.state, corner, ring.full());
    }
    ring.advance();
  }

  XLSTM_DEVICE void send_scores(int tile, int k, int slabs) {
    open(slabs);
#pragma unroll 1
    for (int j = 0; j < slabs; ++j) {
      send_tokens(ring.memory() + j * kSlabBytes, maps.Y, (k + j) * kSlabColumns, tile * kTileRows, ring.full());
    }
    ring.advance();
  }

  XLSTM_DEVICE void send_values(int tile) {
    open(kColumns / kSlabColumns);
#pragma unroll 1
    for (int j = 0; j < kColumns / kSlabColumns; ++j) {
      const int column = s.at[0].first_column + j * kSlabColumns;
      send_tokens(ring.memory() + j * kSlabBytes, maps.Z, column, tile * kTileRows, ring.full());
    }
    ring.advance();
  }
};

// ---- the consumers ----

// Of a tile of tokens, by one thread; zeros past the chunk.
template <OutputKind O>
XLSTM_DEVICE void load_column(TokenVectors<float>& to, const MlstmOutputsParams<float>& p, const Item& at, int index) {
  const int c = index % kTileRows;
  const bool inside = index < at.tokens;
  const int64_t token = at.token(p.shape, inside ? index : 0);
  to.log[c] = inside ? (kRowsAreQueries<O> ? p.gates.y : p.gates.z)[token] : Pair<float>{0, 0};
  if (kRowsAreQueries<O>) return;
  to.start[c] = inside ? p.gates.start[token] : 0;
  to.iota[c] = inside ? p.iota[token] : 0;
  if (kUsesRho<O>) to.rho[c] = inside ? p.rho[token] : 0;
}

template <OutputKind O, int kColumns>
struct Consumer {
  using F = Fragments<kProduct>;
  static constexpr int kBlocks = kColumns / kTileRows;
  template <int kCount>
  using Sums = float[kCount][8][4];

  const MlstmOutputsParams<float>& p;
  Shared& s;
  const WgmmaTiling& tiling;
  const Work work;
  Ring ring;
  const int group = uniform(threadIdx.x / kGroupThreads),
            m = threadIdx.x / 32 % 4 * 16;  // rows m .. m + 15 of the group's
  const Item& at;
  float acc[kColumns / 2], scores[32];
  float of_p[2] = {}, of_n[2] = {};

  XLSTM_DEVICE Consumer(const MlstmOutputsParams<float>& p_, Shared& s_, const WgmmaTiling& tiling_, const Work& work_)
      : p(p_), s(s_), tiling(tiling_), work(work_), ring(s_.ring(tiling_)), at(s_.at[group]) {}

  XLSTM_DEVICE void run() {
    load_vectors();
    sync();
    mbarrier_wait(shared_address(&s.x_full), 0, {"the rows of X"});
#pragma unroll
    for (float& x : acc) x = 0;
    if (work.has_state) add_state();
    const int own = work.own_tile + group;
#pragma unroll 1
    for (int tile = work.first_tile; tile <= work.last_tile; ++tile) {
      if (sees_tile<O>(own, tile)) {
        add_scores(tile);
        add_values();
      } else {
        pass_tile();
      }
    }
    sync();  // the exchange lies over X and the ring
    const int blocks = min(tiling.blocks, tiles(columns_of<O>(p.shape) - at.first_column, kTileRows));
    const OutputRows<float> rows = {at, s.rows[group], s.exchange(), work.has_state, blocks};
    store_output<kProduct, O, kBlocks>(p, rows, tiling.column_tiles, m, in_blocks(acc), of_p, of_n);
  }

 private:
  XLSTM_DEVICE void sync() const { barrier_sync(kConsumerBarrier, work.groups * kGroupThreads); }

  // wgmma and mma have the same accumulators for the 16 rows of a warp.
  template <int kCount>
  static XLSTM_DEVICE Sums<kCount / 32>& in_blocks(float (&x)[kCount]) {
    return reinterpret_cast<Sums<kCount / 32>&>(x);
  }

  XLSTM_DEVICE uint32_t x(int slab) const {
    return s.x(slab) +
           (XLSTM_MUTANT("mlstm_outputs_wgmma: rows of another warpgroup") ? group ^ 1 : group) * kSlabBytes;
  }

  XLSTM_DEVICE void load_vectors() const {
    const int thread = threadIdx.x % kGroupThreads;
    if (thread < kTileRows) load_row<kProduct, O>(s.rows[group], p, at, thread, work.has_state);
    const int end = (work.last_tile + 1) * kTileRows;
    for (int index = work.first_tile * kTileRows + threadIdx.x; index < end; index += work.groups * kGroupThreads) {
      load_column<O>(s.columns[index / kTileRows], p, at, index);
    }
    if (O != OutputKind::h || !work.has_state) return;
    const int64_t Dqk = p.shape.head_dim_qk;
    for (int a = threadIdx.x; a < tiling.depth * kSlabColumns; a += work.groups * kGroupThreads) {
      s.n[a] = a < Dqk ? p.normalisers[at.slot * Dqk + a] : 0;
    }
  }

  XLSTM_DEVICE void await_stage() const {
    if (!XLSTM_MUTANT("mlstm_outputs_wgmma: a stage is read before it is filled")) ring.await_full();
  }

  // Products of the stage that is next, added to `sums`. Nothing may touch these, or registers that products read, from
  // here to finish_products.
  template <int kCount>
  XLSTM_DEVICE void begin_products(float (&sums)[kCount]) const {
    await_stage();
    wgmma_operands(sums);
  }

  // Waits for them, and gives the stage back.
  template <int kCount>
  XLSTM_DEVICE void finish_products(float (&sums)[kCount]) {
    wgmma_commit();
    const bool early = XLSTM_MUTANT("mlstm_outputs_wgmma: a stage is given back before it is read");
    if (early) ring.release();
    wgmma_wait<0>();
    wgmma_operands(sums);
    if (!early) ring.release();
    ring.advance();
  }

  XLSTM_DEVICE void add_state() {
#pragma unroll 1
    for (int k = 0; k < tiling.depth; ++k) {
      if (O == OutputKind::h) add_n(k);
      begin_products(acc);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kSlabSteps; ++step) {
        const uint64_t rows = k_major(x(k), step);
        const uint32_t tile = ring.memory();
        if constexpr (kStateTransposed<O>) {
          wgmma_ss<T, kColumns, false, true>(acc, rows, mn_major(tile, step));
        } else {
          wgmma_ss<T, kColumns, false, false>(acc, rows, k_major(tile, step));
        }
      }
      finish_products(acc);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m + lane_group() + 8 * half;
      const RowVectors<float>& rows = s.rows[group];
      const float scale = O == OutputKind::dq ? static_cast<float>(p.options.scale) * rows.iota[row] : 1;
      const float weight = rows.of_state[row] * scale;
#pragma unroll
      for (int j = 0; j < kColumns / 4; ++j) {
        float& x = acc[j / 2 * 4 + 2 * half + j % 2];
        x = times_weight(x, weight);
      }
    }
  }

  // of_n += X n, 64 values of the depth.
  XLSTM_DEVICE void add_n(int k) {
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      F::A a;
      ldmatrix(a.x, fragment_row(x(k), m, step));
      F::dot(of_n, a, s.n + k * kSlabColumns + step * F::kDepth);
    }
  }

  XLSTM_DEVICE void add_scores(int tile) {
#pragma unroll
    for (float& x : scores) x = 0;
#pragma unroll 1
    for (int k = 0; k < tiling.depth; k += kScoreSlabs) {
      const int slabs = min(kScoreSlabs, tiling.depth - k);
      begin_products(scores);
#pragma unroll 1
      for (int j = 0; j < slabs; ++j) {
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSlabSteps; ++step) {
          const uint32_t tokens = ring.memory() + j * kSlabBytes;
          wgmma_ss<T, kTileRows>(scores, k_major(x(k + j), step), k_major(tokens, step));
        }
      }
      finish_products(scores);
    }
    weigh<O, false>(in_blocks(scores)[0], s.rows[group], m, s.columns[tile], tile, at,
                    static_cast<float>(p.options.scale), of_p);
  }

  XLSTM_DEVICE void add_values() {
    F::A a[kSlabSteps];
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) F::to_a(a[step], in_blocks(scores)[0], step);
#pragma unroll
    for (F::A& fragment : a) wgmma_operands(fragment.x);
    begin_products(acc);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSlabSteps; ++step) {
      wgmma_rs<T, kColumns, true>(acc, a[step].x, mn_major(ring.memory(), step));
    }
    finish_products(acc);
  }

  XLSTM_DEVICE void pass_tile() {
    const int stages = tiles(tiling.depth, kScoreSlabs) + 1;
#pragma unroll 1
    for (int i = 0; i < stages; ++i) {
      ring.await_full();  // else a later wait would take the phase before for its own
      ring.release();
      ring.advance();
    }
  }
};

// ---- the kernel ----

// Blocks of a multiprocessor, and registers of a thread. A block's warpgroups together may have what they start with,
// more would never come: the launch gives each thread the same part of 65,536, in steps of 8.
template <int kColumns>
constexpr int kResident = kColumns == 64 ? 2 : 1;
template <int kColumns>
constexpr int kLaunchRegisters = 65536 / (kThreads * kResident<kColumns>) / 8 * 8;
constexpr int kProducerRegisters = 24;
template <int kColumns>
constexpr int kConsumerRegisters = ((kGroups + 1) * kLaunchRegisters<kColumns> - kProducerRegisters) / kGroups / 8 * 8;

template <OutputKind O, int kColumns>
__global__ void __launch_bounds__(kThreads, kResident<kColumns>)
    outputs_wgmma(const __grid_constant__ Maps maps, const MlstmOutputsParams<float> p, const WgmmaTiling tiling) {
#if XLSTM_SM90A
  XLSTM_SHARED(Shared, s);
  const int role = uniform(threadIdx.x / kGroupThreads);
  if (threadIdx.x == 0) {
    Item at = locate<O>(p, tiling, kRows);
    const int groups = at.tokens - at.first_row > kTileRows ? 2 : 1;
    s.at[0] = at;
    at.first_row += kTileRows;
    s.at[1] = at;
    mbarrier_init(shared_address(&s.x_full), 1);
    for (int stage = 0; stage < tiling.stages; ++stage) {
      mbarrier_init(shared_address(&s.full[stage]), 1);
      mbarrier_init(shared_address(&s.empty[stage]), groups * kGroupThreads / 32);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (uniform(s.at[0].first_row >= s.at[0].tokens)) return;
  const Work work = work_of<O>(s.at[0], p.outer_state_is_zero);
  if (role == kGroups) {
    set_max_registers_dec<kProducerRegisters>();
    if (threadIdx.x == kConsumers) Producer<O, kColumns>(maps, s, tiling).run(work);
  } else if (role < work.groups) {
    set_max_registers_inc<kConsumerRegisters<kColumns>>();
    Consumer<O, kColumns>(p, s, tiling, work).run();
  }
#endif
}

// ---- launch ----

template <OutputKind O>
bool map_states(CUtensorMap& map, const MlstmOutputsParams<float>& p, int slots, int columns) {
  const auto dqk = static_cast<uint64_t>(p.shape.head_dim_qk), dv = static_cast<uint64_t>(p.shape.head_dim_v);
  const auto count = static_cast<uint64_t>(p.shape.batch * p.shape.num_heads * slots);
  const uint32_t rows = kStateTransposed<O> ? kSlabColumns : columns;
  const TensorMapShape<3> in = {{dv, dqk, count}, {dv, dqk * dv}, {kSlabColumns, rows, 1}};
  T* data = static_cast<T*>(const_cast<void*>(p.states));
  return make_tensor_map(&map, data, in, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_SUCCESS;
}

template <OutputKind O>
bool make_maps(Maps& maps, const MlstmOutputsParams<float>& p, int slots, int columns) {
  const int64_t a = depth_of<O>(p.shape), b = columns_of<O>(p.shape);
  return map_tokens(maps.X, p.X, p.shape, a, kRows) && map_tokens(maps.Y, p.Y, p.shape, a, kTileRows) &&
         map_tokens(maps.Z, p.Z, p.shape, b, kTileRows) && map_states<O>(maps.state, p, slots, columns);
}

template <OutputKind O, int kColumns>
cudaError_t launch_columns(const MlstmOutputsParams<float>& p, WgmmaTiling tiling, cudaStream_t stream) {
  const int64_t chunks = p.shape.batch * p.shape.num_heads * tiling.slots;
  const int64_t blocks = chunks * tiling.row_tiles * tiling.column_tiles;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  tiling = with_ring(tiling, depth_of<O>(p.shape), kColumns, max_shared_bytes());
  Maps maps;
  if (tiling.stages < kMinStages || !make_maps<O>(maps, p, tiling.slots, kColumns)) return cudaErrorInvalidValue;
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks));
  l.block = dim3(kThreads);
  l.shared_bytes = shared_bytes(tiling);
  l.name = "mlstm outputs wgmma";
  l.stream = stream;
  return launch(l, outputs_wgmma<O, kColumns>, maps, p, tiling);
}

// Of the instance for tiles of so many blocks of 64 columns.
int instance_columns(int blocks) {
  return blocks <= 1 ? 64 : blocks <= 2 ? 128 : 256;
}

template <OutputKind O>
cudaError_t launch_output(const MlstmOutputsParams<float>& p, const WgmmaTiling& tiling, cudaStream_t stream) {
  const int columns = instance_columns(tiling.blocks);
  if (columns == 64) return launch_columns<O, 64>(p, tiling, stream);
  if (columns == 128) return launch_columns<O, 128>(p, tiling, stream);
  return launch_columns<O, 256>(p, tiling, stream);
}

}  // namespace

bool compiled_for_wgmma() {
  return compiled_for(outputs_wgmma<OutputKind::h, 64>) == 90;
}

bool outputs_wgmma_takes(OutputKind output, const MlstmShape& shape, int blocks, size_t room) {
  const bool transposed = output == OutputKind::h || output == OutputKind::dv;
  const auto depth = static_cast<int>(transposed ? shape.head_dim_qk : shape.head_dim_v);
  const bool whole = shape.head_dim_v * sizeof(T) % 16 == 0;  // rows of states
  return whole && depth <= kMaxDepth && with_ring({}, depth, instance_columns(blocks), room).stages >= kMinStages;
}

cudaError_t outputs_wgmma(const MlstmOutputsParams<float>& p, const OutputsTiling& of, cudaStream_t stream) {
  WgmmaTiling tiling = {of, 0, 0, 0};
  tiling.row_tiles = tiles(p.chunk_size, kRows);
  if (!outputs_wgmma_takes(p.output, p.shape, tiling.blocks, max_shared_bytes())) return cudaErrorInvalidValue;
  switch (p.output) {
    case OutputKind::h:
      return launch_output<OutputKind::h>(p, tiling, stream);
    case OutputKind::dq:
      return launch_output<OutputKind::dq>(p, tiling, stream);
    case OutputKind::dk:
      return launch_output<OutputKind::dk>(p, tiling, stream);
    case OutputKind::dv:
      return launch_output<OutputKind::dv>(p, tiling, stream);
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
