#include "simt/launch.h"

#include <algorithm>
#include <stdexcept>

#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/race.h"
#include "simt/scheduler.h"
#include "simt/state.h"

extern dim3 blockDim, gridDim;

namespace simt {

Machine machine;
bool instrumented = false;

Options& options() {
  static Options value;
  return value;
}

std::map<std::string, size_t>& shared_memory_of_kernels() {
  static std::map<std::string, size_t> value;
  return value;
}

bool mutant(const char* name) {
  const std::string& active = options().mutant;
  return !active.empty() && active == name;
}

Stats& stats() {
  static Stats value{};
  return value;
}

std::unique_lock<std::recursive_mutex> hold() {
  static std::recursive_mutex mutex;
  return std::unique_lock(mutex);
}

namespace {

// Of one domain: the race detector must be able to name their agents, and each has a stack of its own.
constexpr uint32_t kMostThreads = 16384;

uint64_t volume(dim3 size) {
  return uint64_t{size.x} * size.y * size.z;
}

uint3 unflatten(uint32_t index, dim3 size) {
  return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

void require(bool condition, const std::string& message) {
  if (!condition) throw_error(message);
}

void check_config(const LaunchConfig& config) {
  const Options& device = options();
  const uint64_t threads = volume(config.block), blocks = volume(config.grid);
  require(threads >= 1 && threads <= 1024, "a block of " + std::to_string(threads) + " threads, expected 1 to 1024");
  require(config.block.z <= 64, "blockDim.z is " + std::to_string(config.block.z) + ", at most 64");
  require(blocks >= 1 && config.grid.x < 1u << 31 && config.grid.y < 1u << 16 && config.grid.z < 1u << 16 &&
              blocks <= UINT32_MAX,
          "a grid that the device cannot launch");
  require(config.shared_bytes <= std::min(device.max_shared_bytes, kWindowBytes),
          "needs " + std::to_string(config.shared_bytes) + " bytes of shared memory, the device has " +
              std::to_string(device.max_shared_bytes));
  if (config.cluster <= 1) return;
  require(device.compute_capability >= 90,
          "clusters need compute capability 90, the device has " + std::to_string(device.compute_capability));
  require(config.cluster <= std::min(device.max_cluster, 16u), "a cluster of " + std::to_string(config.cluster) +
                                                                   " blocks, the device has at most " +
                                                                   std::to_string(std::min(device.max_cluster, 16u)));
  require(config.grid.x % config.cluster == 0, "gridDim.x is not a multiple of the cluster size");
}

void choose_schedule() {
  const Options& chosen = options();
  machine.random.seed(chosen.seed);
  const bool varied = chosen.seed >= 2;
  machine.order = chosen.order;
  if (chosen.order == Order::by_seed) {
    machine.order = chosen.seed == 0   ? Order::fifo
                    : chosen.seed == 1 ? Order::lifo
                                       : static_cast<Order>(machine.random.below(3));
  }
  machine.landing = chosen.landing;
  if (chosen.landing == Landing::by_seed) {
    machine.landing = varied ? static_cast<Landing>(machine.random.below(3)) : Landing::random;
  }
  machine.shuffled = varied && chosen.order == Order::by_seed;
}

void start_thread(Thread& thread, Block& block, uint32_t rank, uint32_t agent, const SnapshotRef& nothing) {
  uint8_t* stack = thread.stack;
  thread = Thread{};
  thread.stack = stack;
  thread.block = &block;
  thread.warp = &block.warps[rank / kWarp];
  thread.index = unflatten(rank, machine.config.block);
  thread.rank = rank;
  thread.lane = rank % kWarp;
  thread.agent = agent;
  thread.warp->live |= 1u << thread.lane;
  thread.context = make_context(stack, thread_entry);
  if (machine.races) {
    thread.view.base = nothing;
    thread.view.agent = agent;
    thread.view.copies_agent = copies_agent(thread);
    thread.view.self.clock = 1;
  }
  machine.ready.push_back(&thread);
}

void start_block(Domain& domain, uint32_t rank) {
  Block& block = domain.blocks[rank];
  block.domain = &domain;
  block.index = unflatten(domain.number * machine.domain_blocks + rank, machine.config.grid);
  block.rank = rank % machine.cluster_blocks;
  block.cluster = rank / machine.cluster_blocks;
  block.live = machine.block_threads;
  block.shared = shared_window(domain.first_window + rank);
  block.warps.assign((machine.block_threads + kWarp - 1) / kWarp, Warp{});
  for (Barrier& barrier : block.barriers) barrier = Barrier{};
  block.warpgroups.clear();
}

void start_domain(Domain& domain) {
  const size_t first_ready = machine.ready.size();
  domain.number = machine.next_domain++;
  domain.serial = serial_of(domain.number);
  domain.live = domain_threads();
  domain.clusters.assign(machine.domain_blocks / machine.cluster_blocks, PhaseBarrier{});
  for (PhaseBarrier& cluster : domain.clusters) cluster.live = machine.cluster_blocks * machine.block_threads;
  domain.grid = PhaseBarrier{};
  domain.grid.live = domain.live;
  domain.mbarriers.clear();
  domain.engine = Engine{};
  domain.flags.clear();
  const SnapshotRef nothing = machine.races ? zero_snapshot() : SnapshotRef();
  for (uint32_t rank = 0, agent = 0; rank < machine.domain_blocks; ++rank) {
    start_block(domain, rank);
    for (uint32_t i = 0; i < machine.block_threads; ++i, ++agent) {
      start_thread(domain.threads[agent], domain.blocks[rank], i, agent, nothing);
    }
  }
  shuffle_ready(first_ready);
}

void create_domains() {
  const uint32_t resident = std::clamp<uint32_t>(std::max(1, options().resident), 1, machine.domain_count);
  require(uint64_t{resident} * domain_threads() <= 2 * kMostThreads, "options().resident keeps too many threads");
  require(uint64_t{resident} * machine.domain_blocks <= kWindows,
          "more than " + std::to_string(kWindows) +
              " blocks at a time: a cooperative grid or options().resident is too large");
  machine.ready.reset(size_t{resident} * domain_threads());
  set_stack_size(options().stack_bytes);
  for (uint32_t i = 0; i < resident; ++i) {
    Domain& domain = *machine.domains.emplace_back(std::make_unique<Domain>());
    domain.first_window = i * machine.domain_blocks;
    domain.blocks.resize(machine.domain_blocks);
    domain.threads.resize(domain_threads());
    for (Thread& thread : domain.threads) thread.stack = take_stack();
  }
  for (auto& domain : machine.domains) start_domain(*domain);
}

bool launch_is_over() {
  for (auto& domain : machine.domains) {
    if (!domain->live && machine.next_domain < machine.domain_count) start_domain(*domain);
  }
  return std::all_of(machine.domains.begin(), machine.domains.end(), [](const auto& domain) { return !domain->live; });
}

void run_to_end() {
  std::string message;
  while (message.empty() && !machine.stopped && !launch_is_over()) {
    if (machine.ready.empty()) {
      message = deadlock_report();
    } else {
      resume_threads();
      if (fault_pending()) message = take_fault();
    }
  }
  if (const std::string races = race_reports(); !races.empty()) message += (message.empty() ? "" : "\n") + races;
  const std::string overrun = check_global_slack();
  if (message.empty()) message = overrun;
  if (!message.empty()) throw_error(message);
}

// Leaves nothing of a launch behind, however it ended.
struct CleanUp {
  ~CleanUp() {
    for (auto& domain : machine.domains) {
      for (Thread& thread : domain->threads) {
        if (thread.stack) give_back_stack(thread.stack);
      }
    }
    machine.domains.clear();
    machine.ready.reset(0);
    machine.running = nullptr;
    machine.operations_in_flight = 0;
    clear_fault();
  }
};

}  // namespace

void run(const LaunchConfig& config, const std::function<void()>& body) {
  const auto lock = hold();
  map_arena();
  machine.config = config;
  machine.body = &body;
  check_config(config);
  ++stats().launches;
  size_t& most = shared_memory_of_kernels()[config.name];
  most = std::max(most, config.shared_bytes);
  machine.block_threads = static_cast<uint32_t>(volume(config.block));
  machine.cluster_blocks = std::max(1u, config.cluster);
  const auto grid = static_cast<uint32_t>(volume(config.grid));
  machine.domain_blocks = config.cooperative ? grid : machine.cluster_blocks;
  machine.domain_count = grid / machine.domain_blocks;
  machine.next_domain = 0;
  machine.races = options().races && instrumented;
  machine.stopped = false;
  machine.polls = 0;
  require(uint64_t{machine.domain_blocks} * machine.block_threads <= kMostThreads,
          "a cluster or cooperative grid of " +
              std::to_string(uint64_t{machine.domain_blocks} * machine.block_threads) + " threads, at most " +
              std::to_string(kMostThreads) + " can be run and tracked");
  choose_schedule();
  blockDim = config.block;
  gridDim = config.grid;
  begin_races(machine.domain_count);
  const CleanUp clean_up;
  create_domains();
  const SignalGuard signals;
  run_to_end();
}

bool finish_thread(Thread& thread) {
  if (!thread.copies.copies.empty()) fault({}, "a thread exits with cp.async copies that it has not waited for");
  if (!thread.bulk.all_read()) fault({}, "a thread exits with bulk stores that it has not waited for");
  finish_wgmma(thread);
  Block& block = *thread.block;
  Domain& domain = *block.domain;
  thread.exited = true;
  machine.polls = 0;
  thread.warp->live &= ~(1u << thread.lane);
  --domain.live;
  if (--block.live == 0) {
    check_shared_slack(block);
    for (const Warpgroup& group : block.warpgroups) group.aligned.finish();
  }
  const Barrier& barrier = block.barriers[0];
  if (!barrier.waiting.empty() && barrier.expected > block.live) {
    fault(barrier.waiting[0]->wait.where, "a thread exits while %zu threads wait in __syncthreads",
          barrier.waiting.size());
  }
  on_exit_barriers(thread);
  if (domain.live) return false;
  finish_operations(domain);
  return machine.next_domain < machine.domain_count;
}

}  // namespace simt
