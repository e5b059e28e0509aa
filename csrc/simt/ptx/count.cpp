#include "simt/ptx/count.h"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "simt/fault.h"
#include "simt/state.h"

namespace ptx {
namespace {

constexpr const char* kTraffic[] = {"ld.global", "st.global", "ld.shared", "st.shared", "ldmatrix",
                                    "stmatrix",  "cp.async",  "atom",      "tma"};
constexpr u32 kFollowedBlocks = 8;    // of a launch, the last ones
constexpr size_t kLongest = 1 << 14;  // of a course
constexpr u64 kNone = ~u64{0};        // of launches
constexpr u32 kBanks = 32, kBankBytes = 4, kSectorBytes = 32;

bool is_shared(Traffic traffic) {
  switch (traffic) {
    case Traffic::load_shared:
    case Traffic::store_shared:
    case Traffic::load_matrix:
    case Traffic::store_matrix:
      return true;
    case Traffic::load_global:
    case Traffic::store_global:
    case Traffic::copy_async:
    case Traffic::atomic:
    case Traffic::load_box:
      return false;
  }
  return false;
}

struct Place {
  Traffic traffic;
  u32 bytes;  // a lane
  const simt::Source* where;
  auto operator<=>(const Place&) const = default;
};
// What a warp asks for at once.
struct Request {
  u32 lanes = 0;
  u64 address[simt::kWarp];
};
struct Cost {
  u64 requests = 0, bytes = 0, wavefronts = 0, least_wavefronts = 0, sectors = 0;
  void operator+=(const Cost& other) {
    requests += other.requests, bytes += other.bytes, wavefronts += other.wavefronts;
    least_wavefronts += other.least_wavefronts, sectors += other.sectors;
  }
};

// Words of one bank follow one another; a wavefront takes 128 bytes, one word of each bank.
void cost_in_shared(const Request& request, u32 bytes, Cost& cost) {
  const u32 width = std::max(bytes, kBankBytes), group = std::min(simt::kWarp, kBanks * kBankBytes / width);
  for (u32 first = 0; first < simt::kWarp; first += group) {
    std::set<u64> words[kBanks];
    bool any = false;
    for (u32 lane = first; lane < first + group; ++lane) {
      if (!(request.lanes >> lane & 1)) continue;
      any = true;
      for (u32 b = 0; b < width; b += kBankBytes) {
        const u64 word = (request.address[lane] + b) / kBankBytes;
        words[word % kBanks].insert(word);
      }
    }
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    cost.wavefronts += most;
    cost.least_wavefronts += any;
  }
}

using Sectors = std::unordered_set<u64>;

void cost_in_global(const Request& request, u32 bytes, Cost& cost, Sectors& touched) {
  std::set<u64> sectors;
  for (u32 lane = 0; lane < simt::kWarp; ++lane) {
    if (!(request.lanes >> lane & 1)) continue;
    const u64 first = request.address[lane] / kSectorBytes, last = (request.address[lane] + bytes - 1) / kSectorBytes;
    for (u64 sector = first; sector <= last; ++sector) sectors.insert(sector);
  }
  cost.sectors += sectors.size();
  touched.insert(sectors.begin(), sectors.end());
}

Cost cost_of(const Place& place, const Request& request, Sectors& touched) {
  Cost cost;
  cost.requests = 1;
  cost.bytes = u64(std::popcount(request.lanes)) * place.bytes;
  if (is_shared(place.traffic)) {
    cost_in_shared(request, place.bytes, cost);
  } else {
    cost_in_global(request, place.bytes, cost, touched);
  }
  return cost;
}

// An instance of a kernel: how often its warps executed each basic block.
struct Instance {
  u64 warps = 0, launches = 0, launch = kNone;
  std::vector<u64> blocks;
  std::map<std::pair<u32, u32>, std::vector<u32>> courses;  // by block and warp, of the latest launch
};
// Of the launches of one name.
struct Totals {
  u64 warps = 0, launch = kNone;
  Sectors touched;         // of global memory, in the latest launch
  u64 touched_before = 0;  // the sum over the launches before
  std::map<std::string, u64> classes;
  std::map<std::string, Instance> instances;  // by what their PTX names them
  std::map<Place, Cost> places;
};
// A thread's, and then a warp's. A warp executes a block as often as the lane that is there most often.
struct Log {
  const Profile* profile;
  std::vector<u32> blocks;
  std::map<Place, std::vector<u64>> accesses;
  bool followed;
  std::vector<u32> course;
};
struct Warp {
  u32 lanes = 0;
  std::vector<u32> blocks;
  std::map<Place, std::vector<Request>> requests;
};

std::map<std::string, Totals>& totals() {
  static std::map<std::string, Totals> value;
  return value;
}
// Of the running launch: warps some of whose lanes have come to their end.
std::unordered_map<const simt::Warp*, Warp>& warps() {
  static std::unordered_map<const simt::Warp*, Warp> value;
  static u64 launch = 0;
  if (launch != simt::stats().launches) value.clear();
  launch = simt::stats().launches;
  return value;
}

void add_lane(Warp& warp, const Log& log, u32 lane) {
  warp.blocks.resize(log.blocks.size());
  for (size_t b = 0; b < log.blocks.size(); ++b) warp.blocks[b] = std::max(warp.blocks[b], log.blocks[b]);
  for (const auto& [place, addresses] : log.accesses) {
    std::vector<Request>& requests = warp.requests[place];
    if (requests.size() < addresses.size()) requests.resize(addresses.size());
    for (size_t i = 0; i < addresses.size(); ++i) {
      requests[i].lanes |= 1u << lane;
      requests[i].address[lane] = addresses[i];
    }
  }
}

// Of the launch.
u32 block_number(const simt::Thread& thread) {
  const auto& grid = simt::machine.config.grid;
  const uint3 at = thread.block->index;
  return (at.z * grid.y + at.y) * grid.x + at.x;
}
bool is_followed(const simt::Thread& thread) {
  const auto& grid = simt::machine.config.grid;
  return thread.lane == 0 && block_number(thread) + kFollowedBlocks >= grid.x * grid.y * grid.z;
}

// Whether this is another launch than the latest one.
bool begins_launch(u64& latest) {
  return std::exchange(latest, simt::stats().launches) != simt::stats().launches;
}

void keep_course(Instance& instance, const simt::Thread& thread, const std::vector<u32>& course) {
  if (begins_launch(instance.launch)) {
    ++instance.launches;
    instance.courses.clear();
  }
  instance.courses[{block_number(thread), thread.rank / simt::kWarp}] = course;
}

void add_warp(Totals& sum, const Warp& warp, const Profile& profile) {
  if (begins_launch(sum.launch)) {
    sum.touched_before += sum.touched.size();
    sum.touched.clear();
  }
  ++sum.warps;
  Instance& instance = sum.instances[profile.kernel];
  ++instance.warps;
  instance.blocks.resize(profile.blocks);
  for (size_t b = 0; b < warp.blocks.size(); ++b) instance.blocks[b] += warp.blocks[b];
  for (size_t i = 0; i < profile.class_count; ++i) {
    const BlockClass& c = profile.classes[i];
    sum.classes[c.name] += u64{warp.blocks[c.block]} * c.instructions;
  }
  for (const auto& [place, requests] : warp.requests) {
    for (const Request& request : requests) sum.places[place] += cost_of(place, request, sum.touched);
  }
}

std::string json(const Cost& cost) {
  return "{\"requests\": " + std::to_string(cost.requests) + ", \"bytes\": " + std::to_string(cost.bytes) +
         ", \"wavefronts\": " + std::to_string(cost.wavefronts) +
         ", \"least_wavefronts\": " + std::to_string(cost.least_wavefronts) +
         ", \"sectors\": " + std::to_string(cost.sectors) + "}";
}

template <class T>
std::string json(const std::vector<T>& numbers) {
  std::string list;
  for (T number : numbers) list += (list.empty() ? "" : ", ") + std::to_string(number);
  return "[" + list + "]";
}

std::string json(const Instance& instance) {
  std::string courses;
  for (const auto& [place, course] : instance.courses) courses += (courses.empty() ? "" : ", ") + json(course);
  return "{\"warps\": " + std::to_string(instance.warps) + ", \"launches\": " + std::to_string(instance.launches) +
         ", \"blocks\": " + json(instance.blocks) + ", \"courses\": [" + courses + "]}";
}

template <class Map, class Text>
std::string object(const Map& map, Text text) {
  std::string list;
  for (const auto& [name, value] : map) list += (list.empty() ? "\"" : ", \"") + name + "\": " + text(value);
  return "{" + list + "}";
}

std::string json(const Totals& sum) {
  std::map<std::string, Cost> traffic, lines;
  for (const auto& [place, cost] : sum.places) {
    const std::string kind = kTraffic[static_cast<int>(place.traffic)];
    traffic[kind] += cost;
    lines[kind + " " + simt::line_of(*place.where)] += cost;
  }
  const auto of_cost = [](const Cost& cost) { return json(cost); };
  const auto of_instance = [](const Instance& instance) { return json(instance); };
  return "{\"warps\": " + std::to_string(sum.warps) +
         ", \"touched_sectors\": " + std::to_string(sum.touched_before + sum.touched.size()) +
         ", \"instances\": " + object(sum.instances, of_instance) +
         ", \"instructions\": " + object(sum.classes, [](u64 n) { return std::to_string(n); }) +
         ", \"traffic\": " + object(traffic, of_cost) + ", \"lines\": " + object(lines, of_cost) + "}";
}

}  // namespace

Counting::Counting(const Profile& profile) : counts_(counting()) {
  if (!counts_) return;
  simt::Thread& thread = *simt::machine.running;
  thread.log = new Log{&profile, std::vector<u32>(profile.blocks), {}, is_followed(thread), {}};
}

void Counting::count(u32 block) {
  Log& log = *static_cast<Log*>(simt::machine.running->log);
  ++log.blocks[block];
  if (log.followed && log.course.size() < kLongest) log.course.push_back(block);
}

// A thread that a fault ends never comes here: what it had counted is lost with the launch.
Counting::~Counting() {
  if (!counts_) return;
  simt::Thread& thread = *simt::machine.running;
  const Log& log = *static_cast<Log*>(thread.log);
  Warp& warp = warps()[thread.warp];
  add_lane(warp, log, thread.lane);
  if (log.followed) {
    keep_course(totals()[simt::machine.config.name].instances[log.profile->kernel], thread, log.course);
  }
  const u32 size = std::min(simt::kWarp, simt::machine.block_threads - thread.rank / simt::kWarp * simt::kWarp);
  if (++warp.lanes == size) {
    add_warp(totals()[simt::machine.config.name], warp, *log.profile);
    warps().erase(thread.warp);
  }
  delete &log;
  thread.log = nullptr;
}

void count_access(Traffic traffic, const void* place, size_t bytes, At where) {
  auto* log = static_cast<Log*>(simt::machine.running->log);
  if (log) log->accesses[{traffic, static_cast<u32>(bytes), &where}].push_back(reinterpret_cast<u64>(place));
}

std::string counters() {
  return object(totals(), [](const Totals& sum) { return json(sum); });
}

void clear_counters() {
  totals().clear();
  warps().clear();
}

}  // namespace ptx
