#pragma once
// Interface of the host SIMT executor: runs a CUDA kernel on the CPU, one fiber per CUDA thread, in a seeded order.
// Kernels never call this; the wrappers of cuda/device and cuda_builtins.h do. Every fault is a std::runtime_error that
// names kernel, block, thread, source line and seed.
#include <cuda.h>  // CUtensorMap
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace simt {

// Where in a kernel's source a wrapper was called: the default argument of each of them.
struct Source {
  const char* file;
  int line;
  static constexpr Source here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// ---- launches ----
struct LaunchConfig {
  dim3 grid{1}, block{1};
  size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks per cluster, along x
  bool cooperative = false;  // the whole grid is resident
  const char* name = "kernel";
};

// by_seed: seed 0 fifo, 1 lifo, from 2 on any of them, threads, warps or blocks starting in random order
enum class Order { fifo, lifo, random, by_seed };
// When asynchronous copies and wgmma results become visible. by_seed: seeds 0 and 1 random, from 2 on any of them
enum class Landing { early, late, random, by_seed };

struct Options {
  uint64_t seed = 0;
  Order order = Order::by_seed;
  Landing landing = Landing::by_seed;
  int resident = 1;           // clusters that run interleaved
  bool races = true;          // only in a race build
  bool uninitialised = true;  // reads of shared or global memory never written (race build)
  int preempt = 0;            // > 0: also switch threads about every so many memory accesses (race build)
  size_t stack_bytes = size_t{128} << 10;
  int max_reports = 5;
  unsigned compute_capability = 90;  // what device_properties() says
  size_t max_shared_bytes = 232448;
  unsigned max_cluster = 16;  // 8 is portable
  unsigned multiprocessors = 132;
  uint64_t wait_limit = 0;  // attempts of a wait before it is a fault, see cuda/device/waiting.h; 0: no limit
  bool counting = false;    // PTX: instructions and memory traffic, see ptx/count.h
  bool adversary = false;   // PTX: what the ISA leaves open goes against the kernel, see ptx/adversary.h
  std::string mutant;       // the planted fault that is active: see cuda/device/mutant.h
};
Options& options();

bool mutant(const char* name);  // whether it is the active one

// Of every kernel launched so far, by name: the most dynamic shared memory that it asked for. May be cleared.
std::map<std::string, size_t>& shared_memory_of_kernels();

struct Stats {
  uint64_t launches, switches, barriers, shuffles, mma, ldmatrix, bank_conflicts, wgmma, accesses, reports;
};
Stats& stats();

// Runs the grid; body is the kernel with its arguments bound, called once per thread.
void run(const LaunchConfig& config, const std::function<void()>& body);

// The other form of a kernel, translated from its PTX, with its arguments bound: simt/ptx/registry.h. Empty where the
// library has no such forms; a kernel without one, where others have it, is a fault.
struct KernelArgument {
  const void* value;
  size_t bytes;
};
std::function<void()> translated(const LaunchConfig&, const void* kernel, const std::vector<KernelArgument>&);

template <class... P, class... A>
void launch(const LaunchConfig& config, void (*kernel)(P...), A&&... arguments) {
  const std::tuple<std::decay_t<P>...> values(std::forward<A>(arguments)...);
  const auto list = [](const auto&... value) { return std::vector<KernelArgument>{{&value, sizeof value}...}; };
  const auto other = translated(config, reinterpret_cast<const void*>(kernel), std::apply(list, values));
  run(config, other ? other : [&] { std::apply(kernel, values); });
}

// ---- memory ----
// Global memory of kernels: guard pages, poisoned with 0xFF, every access of a race build checked against its extent.
void* allocate(size_t bytes);
void release(void* pointer);
void release_all();
// Keeps other threads out, for a sequence of allocate, run and release_all. Each of them alone does so by itself.
std::unique_lock<std::recursive_mutex> hold();
// The contents count as written (uninitialised reads), as after a copy to the device.
void mark_written(void* pointer, size_t bytes);

void* shared_memory();
uint32_t shared_bytes();
uint32_t shared_address(const void* pointer, Source = Source::here());  // cvta.to.shared
void* generic_pointer(uint32_t shared_address, Source = Source::here());

// One access by the running thread, for code that the compiler does not instrument (collectives, atomics).
// Plain accesses race with one another; atomic ones only with plain ones. atomic: reads and writes, as atomicAdd;
// atomic_load and atomic_store: volatile, relaxed, acquire and release accesses.
enum class Access { read, write, atomic, atomic_load, atomic_store };
void touch(const void* pointer, size_t bytes, Access access, void* pc = nullptr);
// Of a load that takes global memory for constant: a fault where this launch has written there (race build).
void require_constant(const void* pointer, size_t bytes, Source = Source::here());
void acquire(const void* pointer);  // happens-before edges of ld.acquire and st.release
void release_to(const void* pointer);

[[noreturn]] void fail(const std::string& message, Source where = Source::here());

// ---- block and warp ----
struct VoteCount {
  int count;
  bool any, all;
};
VoteCount syncthreads(bool predicate, Source);
void named_barrier(int id, int threads, bool wait, Source);
void syncwarp(uint32_t mask, Source);
enum class Shuffle { index, up, down, exclusive_or };
uint64_t shuffle(Shuffle, uint32_t mask, uint64_t value, int lane, int width, Source);
enum class Vote { ballot, add, min, max, bit_and, bit_or, bit_xor, match_any };
uint32_t vote(Vote, uint32_t mask, uint32_t value, Source);
struct Elected {
  uint32_t lane;
  bool self;  // it is the calling one
};
Elected elect(uint32_t mask, Source);  // elect.sync
void yield();                          // __nanosleep, polling
void check_live(Source);               // counts polls; LIVELOCK after too many

// ---- tensor cores and shared-memory matrices ----
enum class Element { bf16, f16, tf32 };
void mma(Element, float* d, const uint32_t* a, const uint32_t* b, Source);  // m16n8k16, tf32: m16n8k8
void mma_f64(double& d0, double& d1, double a, double b, Source);           // m8n8k4
void ldmatrix(int matrices, bool transposed, uint32_t* registers, uint32_t address, Source);
void stmatrix(int matrices, bool transposed, const uint32_t* registers, uint32_t address, Source);
uint32_t movmatrix_transposed(uint32_t value, Source);

// ---- asynchronous copies of a thread ----
void cp_async(uint32_t to, const void* from, int bytes, int source_bytes, Source);
void cp_async_commit();
void cp_async_wait(int groups, Source);  // < 0: wait_all
void cp_async_mbarrier_arrive(uint32_t mbarrier, bool noinc, Source);

// ---- mbarrier ----
void mbarrier_init(uint32_t mbarrier, uint32_t count, Source);
void mbarrier_invalidate(uint32_t mbarrier, Source);
void mbarrier_arrive(uint32_t mbarrier, uint32_t count, uint32_t expect_bytes, Source);
void mbarrier_expect_tx(uint32_t mbarrier, uint32_t bytes, Source);
// block: sees what this block's threads and TMA wrote; cluster: what other blocks' threads did, too.
enum class Scope { block, cluster };
bool mbarrier_test(uint32_t mbarrier, uint32_t parity, Scope, Source);
void mbarrier_wait(uint32_t mbarrier, uint32_t parity, Scope, Source);
void fence_mbarrier_init();
void fence_proxy_async();

// ---- bulk copies, TMA ----
void tma_load(int dims, const CUtensorMap*, uint32_t to, uint32_t mbarrier, const int* at, uint16_t multicast, Source);
void tma_store(int dims, const CUtensorMap*, uint32_t from, const int* at, Source);
void tma_prefetch(int dims, const CUtensorMap*, const int* at, Source);  // to L2
void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier, Source);
void bulk_store(void* to, uint32_t from, uint32_t bytes, Source);
void bulk_commit();
void bulk_wait(int groups, bool read_only, Source);

// ---- clusters, cooperative grids ----
uint32_t cluster_rank();
uint32_t cluster_size();
uint32_t map_rank(uint32_t shared_address, uint32_t rank, Source);  // mapa
void cluster_arrive(Source);
void cluster_wait(Source);
void grid_sync(Source);
void st_async(uint32_t to, const void* value, int bytes, uint32_t mbarrier, Source);
void load_cluster(void* value, uint32_t from, int bytes, Source);
void store_cluster(uint32_t to, const void* value, int bytes, Source);

// ---- wgmma ----
void wgmma_fence(Source);
void wgmma_commit(Source);
void wgmma_wait(int groups, Source);
// d (m64 x n) += or = A B; A in four registers, a, which stay where they are until the product is waited for, or, where
// a is null, by descriptor.
void wgmma(Element, int n, float* d, const uint32_t* const* a, uint64_t a_descriptor, uint64_t b_descriptor,
           bool a_transposed, bool b_transposed, bool accumulate, Source);
void set_max_registers(int registers, bool increase, Source);  // setmaxnreg

}  // namespace simt
