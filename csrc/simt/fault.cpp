#include "simt/fault.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <stdexcept>

#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

// Formatted where it happens, without allocating: the stack that it happens on is abandoned.
struct Fault {
  bool pending = false;
  char text[2048];
  char thread[160];
  Site site;
} current;

void record(Site site, const char* format, va_list arguments) {
  std::vsnprintf(current.text, sizeof current.text, format, arguments);
  current.site = site;
  current.thread[0] = 0;
  current.pending = true;
  if (!machine.running) return;
  const Thread& thread = *machine.running;
  const uint3 block = thread.block->index;
  std::snprintf(current.thread, sizeof current.thread, " [block (%u,%u,%u) thread %u: warp %u lane %u]", block.x,
                block.y, block.z, thread.rank, thread.rank / kWarp, thread.lane);
}

[[noreturn]] void raise() {
  if (!machine.running) throw_error(take_fault());
  leave_for_main();
}

// "0-31,64"
std::string ranges(std::vector<uint32_t> values) {
  std::sort(values.begin(), values.end());
  std::string text;
  for (size_t i = 0; i < values.size();) {
    size_t last = i;
    while (last + 1 < values.size() && values[last + 1] == values[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += std::to_string(values[i]);
    if (last > i) text += '-' + std::to_string(values[last]);
    i = last + 1;
  }
  return text;
}

std::string describe_wait(const Thread& thread) {
  const Wait& wait = thread.wait;
  std::string text = std::string(wait.what) + " at " + line_of(wait.where);
  char detail[160] = "";
  if (const auto* barrier = static_cast<const Barrier*>(wait.object);
      barrier >= thread.block->barriers && barrier < thread.block->barriers + kNamedBarriers) {
    std::snprintf(detail, sizeof detail, ", id %zd (%u of %u arrived)", barrier - thread.block->barriers,
                  barrier->arrived, barrier->expected);
  } else if (wait.what == kMbarrierWait) {
    const auto* mbarrier = static_cast<const Mbarrier*>(wait.object);
    std::snprintf(detail, sizeof detail,
                  ", shared +0x%zx, parity %u (phase %u, %u of %u arrivals and %lld bytes outstanding)",
                  mbarrier->address - thread.block->shared, wait.detail, mbarrier->phase, mbarrier->pending,
                  mbarrier->expected, static_cast<long long>(mbarrier->transaction_bytes));
  } else if (wait.what == kClusterWait || wait.what == kGridWait) {
    const auto* barrier = static_cast<const PhaseBarrier*>(wait.object);
    std::snprintf(detail, sizeof detail, " (%u of %u threads arrived)", barrier->arrived, barrier->live);
  }
  return text + detail;
}

}  // namespace

void record_fault(Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(site, format, arguments);
  va_end(arguments);
}

void fault(Source where, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(site_of(where), format, arguments);
  va_end(arguments);
  raise();
}

void fault_at(Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(site, format, arguments);
  va_end(arguments);
  raise();
}

void fail(const std::string& message, Source where) {
  fault(where, "%s", message.c_str());
}

void require_capability(unsigned least, const char* what, Source where) {
  const unsigned capability = options().compute_capability;
  if (capability < least) fault(where, "%s needs compute capability %u, the device has %u", what, least, capability);
}

std::string line_of(Source where) {
  return describe(site_of(where));
}

std::string block_name(uint3 index) {
  return "block (" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

std::string thread_name(const Thread& thread) {
  return "thread " + std::to_string(thread.rank) + " of " + block_name(thread.block->index);
}

std::string agent_name(const Domain& domain, uint32_t agent) {
  const uint32_t threads = domain_threads();
  if (agent < threads) return thread_name(domain.threads[agent]);
  if (agent < 2 * threads) return "cp.async of " + thread_name(domain.threads[agent - threads]);
  if (agent < slot_agent(kEngineSlots)) return "an asynchronous copy (TMA, bulk or st.async)";
  const uint32_t first = (agent - slot_agent(kEngineSlots)) * kWarpgroup;
  return "wgmma of the warpgroup of " + thread_name(domain.threads[first]);
}

void clear_fault() {
  current.pending = false;
}
bool fault_pending() {
  return current.pending;
}

void throw_error(const std::string& message) {
  throw std::runtime_error(std::string("simt: kernel '") + machine.config.name + "', seed " +
                           std::to_string(options().seed) + ": " + message);
}

std::string take_fault() {
  current.pending = false;
  std::string message = current.text;
  if (current.site) message += " at " + describe(current.site);
  return message + current.thread;
}

std::string deadlock_report() {
  constexpr int kGroups = 12;
  std::map<std::pair<std::string, std::string>, std::vector<uint32_t>> groups;
  for (const auto& domain : machine.domains) {
    for (const Thread& thread : domain->threads) {
      if (!thread.exited) groups[{block_name(thread.block->index), describe_wait(thread)}].push_back(thread.rank);
    }
  }
  std::string report = "DEADLOCK: no thread can run.";
  int shown = 0;
  for (const auto& [where, threads] : groups) {
    if (++shown > kGroups) {
      report += "\n  and " + std::to_string(groups.size() - kGroups) + " more";
      break;
    }
    report += "\n  " + where.first + ": " + std::to_string(threads.size()) + " threads (" + ranges(threads) + ") in " +
              where.second;
  }
  return report;
}

}  // namespace simt
