#include "simt/ptx/adversary.h"

#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "simt/race.h"
#include "simt/state.h"

namespace ptx {
namespace {

u64 mixed(u64 x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

// The value before the latest store, and who must not see it any more.
struct Before {
  u8 value[8];
  u32 bytes;
  const simt::Domain* domain;
  u32 agent, clock;            // of the store
  simt::SnapshotRef released;  // to what it replaces
  int shown = 0;
  std::unordered_set<u32> knowing;  // agents that have seen the new value
};
constexpr int kMostShown = 8;  // a value becomes visible in the end

std::unordered_map<const void*, Before>& befores() {
  static std::unordered_map<const void*, Before> map;
  return map;
}

bool active() {
  return adversary() && simt::machine.races;
}

}  // namespace

double drawn(u64 bits) {
  const u64 random = mixed(bits + mixed(simt::options().seed + 1));
  return 2 * (static_cast<double>(random >> 11) * 0x1p-53) - 1;
}

bool contracted(u32 instruction) {
  return adversary() && drawn(instruction) > 0;
}

void forget() {
  befores().clear();
}

void remember(const void* place, u32 bytes) {
  if (!active() || bytes > sizeof(Before::value)) return;
  const simt::Thread& thread = *simt::machine.running;
  const auto& flags = thread.block->domain->flags;
  const auto flag = flags.find(place);
  const simt::SnapshotRef released = flag == flags.end() ? simt::SnapshotRef() : flag->second.peek();
  Before before{{}, bytes, thread.block->domain, thread.agent, thread.view.self.clock, released};
  std::memcpy(before.value, place, bytes);
  befores()[place] = before;
}

const void* outdated(const void* place, u32 bytes) {
  if (!active()) return nullptr;
  const auto found = befores().find(place);
  if (found == befores().end() || found->second.bytes != bytes) return nullptr;
  Before& before = found->second;
  const simt::Thread& thread = *simt::machine.running;
  const bool ordered = before.domain != thread.block->domain || before.agent == thread.agent ||
                       thread.view.seen(before.agent) >= before.clock;
  if (ordered || before.knowing.contains(thread.agent)) return nullptr;
  if (before.shown < kMostShown && simt::machine.random.coin()) {
    ++before.shown;
    return before.value;
  }
  before.knowing.insert(thread.agent);
  return nullptr;
}

void acquire_outdated(const void* place) {
  const simt::SnapshotRef& released = befores().at(place).released;
  if (released) simt::acquire_view(*simt::machine.running, simt::clone(released));
}

}  // namespace ptx
